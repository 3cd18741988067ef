"""Adds pages of the repository's root to the site, and replaces links out of `docs/` by file names."""

import posixpath
import re
from functools import partial
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[2]
# File in the root: its page in the site.
PAGES: Final = {"ARCHITECTURE.md": "design.md", "CHANGELOG.md": "changes.md"}
_LINK: Final = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to the site."""
    for source, target in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, target, content=_LINK.sub(_from_root, text)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs' call
    """Replace links to files outside `docs/` by the file's name, since the site has no such page."""
    return _LINK.sub(partial(_outwards, posixpath.dirname(page.file.src_uri)), markdown)


def _from_root(link: re.Match[str]) -> str:
    text, target = link.groups()
    if target.startswith("docs/"):
        return f"[{text}]({target.removeprefix('docs/')})"
    return link.group() if "://" in target or target.startswith("#") else _named(text, target)


def _outwards(folder: str, link: re.Match[str]) -> str:
    """Return a link of a page in `folder` of docs/ as a link within the site, or as a file name."""
    text, target = link.groups()
    path = posixpath.normpath(posixpath.join(folder, target.partition("#")[0]))
    if not path.startswith("../"):
        return link.group()
    inside = path.removeprefix("../")
    return f"[{text}]({posixpath.relpath(PAGES[inside], folder or '.')})" if inside in PAGES else _named(text, inside)


def _named(text: str, path: str) -> str:
    """Return the link's text, and the path in code unless the text is the path."""
    return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"
