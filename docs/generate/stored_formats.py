"""The text of `reference/stored-formats.md`: the formats in Redis and in the artifact, from the codecs' docstrings."""

import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Final

from app.store import history_codec as entries
from app.store import keys
from app.store import record_codec as records
from model import states
from model.manifest import FORMAT_VERSION, Manifest

_INTRODUCTION: Final = """# Stored formats

The descriptions below are the docstrings of the codecs. Every format begins with its version. A release reads the
formats of the release before it; [the change log](../../CHANGELOG.md) names every exception.
"""
_FIELDS: Final = re.compile(r"^    (?P<names>[\w, ]+): (?P<text>.+(?:\n        .+)*)", re.MULTILINE)


def page() -> str:
    """Return the Markdown of all stored formats."""
    return "\n".join(
        [
            _INTRODUCTION,
            "## Keys in Redis\n",
            _described(keys),
            f"## Record\n\nCodec version {records.CODEC_VERSION}.\n",
            _described(records),
            "## State\n",
            _described(states),
            "## History\n",
            _described(entries),
            "## Manifest\n",
            f"`manifest.json` inside the artifact, format version {FORMAT_VERSION}.\n",
            "| field | |\n|---|---|",
            *_manifest_rows(),
            "",
        ]
    )


def _described(module: ModuleType) -> str:
    """Return a module's docstring; an indented table in the docstring stays a code block."""
    return inspect.cleandoc(module.__doc__ or "") + "\n"


def _manifest_rows() -> Iterator[str]:
    described = {
        name.strip(): " ".join(found["text"].split())
        for found in _FIELDS.finditer(inspect.cleandoc(Manifest.__doc__ or ""))
        for name in found["names"].split(",")
    }
    for name in Manifest.__dataclass_fields__:
        # A field without a description raises KeyError here.
        yield f"| `{name}` | {described[name]} |"
