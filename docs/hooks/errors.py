"""Adds `reference/problems.md`: every `code` that the service answers with, made from the tree of errors."""

from collections.abc import Iterator
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

# The whole service, so that errors of every part of it are known.
from app import main as _service  # noqa: F401 - see above
from app.errors import WillbuyError

_INTRODUCTION: Final = """# Problems

An error is `application/problem+json` (RFC 9457). `code` is stable and what to decide by; `detail` is for people and
may change; `errors` names the fields at fault. **Again** says whether the very same request may help later: after so
many seconds (the header `Retry-After` says it too), with the same `event_id`.

| code | status | again | title | when |
|---|---|---|---|---|
"""

_FOOTER: Final = """
Beside these: `not_found` (404) and `method_not_allowed` (405) for paths and methods that are not there, `http_error`
for any other fault of the request's form, and `internal_error` (500), whose `request_id` is in the service's log.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page to the site."""
    files.append(File.generated(config, "reference/problems.md", content=page()))
    return files


def page() -> str:
    """Return the Markdown of all errors, by status and code."""
    found = sorted({one.code: one for one in _below(WillbuyError)}.values(), key=lambda one: (one.status, one.code))
    return _INTRODUCTION + "\n".join(map(_row, found)) + "\n" + _FOOTER


def _below(kind: type[WillbuyError]) -> Iterator[type[WillbuyError]]:
    """Yield the kinds below `kind` that say what they are; the others only group."""
    for below in kind.__subclasses__():
        if "title" in vars(below):
            yield below
        yield from _below(below)


def _row(error: type[WillbuyError]) -> str:
    again = "" if error.retry_after_s is None else f"{error.retry_after_s} s"
    text = " ".join((error.__doc__ or "").split("\n\n")[0].split())
    return f"| `{error.code}` | {error.status} | {again} | {error.title} | {text} |"
