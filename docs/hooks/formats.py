"""Adds `reference/stored-formats.md`: what lies in Redis and in an artifact, as the code that writes it says."""

import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from app.store import history_codec as entries
from app.store import keys
from app.store import record_codec as records
from model import states
from model.manifest import FORMAT_VERSION, Manifest

_INTRODUCTION: Final = """# Stored formats

Made from the descriptions beside the code that writes and reads them. Every format begins with its version; a release
reads what the one before it wrote, or says in [its changes](../changes.md) that it does not.
"""
_FIELDS: Final = re.compile(r"^    (?P<names>[\w, ]+): (?P<text>.+(?:\n        .+)*)", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the site."""
    files.append(File.generated(config, "reference/stored-formats.md", content=page()))
    return files


def page() -> str:
    """Return the Markdown of all stored formats."""
    return "\n".join(
        [
            _INTRODUCTION,
            "## Keys in Redis\n",
            _described(keys),
            f"## A record {{#record}}\n\nCodec version {records.CODEC_VERSION}.\n",
            _described(records),
            "## The state in a record {#state}\n",
            _described(states),
            "## An entry of a history {#history}\n",
            _described(entries),
            "## The artifact's manifest {#manifest}\n",
            f"`manifest.json` inside the artifact, format version {FORMAT_VERSION}.\n",
            "| field | |\n|---|---|",
            *_manifest_rows(),
            "",
        ]
    )


def _described(module: ModuleType) -> str:
    """Return a module's description; what is indented there is a table of plain text and stays one."""
    return inspect.cleandoc(module.__doc__ or "") + "\n"


def _manifest_rows() -> Iterator[str]:
    described = {
        name.strip(): " ".join(found["text"].split())
        for found in _FIELDS.finditer(inspect.cleandoc(Manifest.__doc__ or ""))
        for name in found["names"].split(",")
    }
    for name in Manifest.__dataclass_fields__:
        # A field without its description would stop the build here.
        yield f"| `{name}` | {described[name]} |"
