"""The text of `reference/problems.md`: every problem `code` of the service, from the tree of errors."""

from typing import Final

# Imports every module of the service, so that all subclasses of WillbuyError exist.
from app import main as _service  # noqa: F401 - see above
from app.errors import WillbuyError, error_types

_INTRODUCTION: Final = """# Problems

An error is `application/problem+json` (RFC 9457). Decide by `code`, which is stable; `detail` is for people and may
change. `errors` names the invalid fields. Where **retry after** has a value, send the same request again after that
time, with the same `event_id`. The header `Retry-After` holds the same value.

| code | status | retry after | title | when |
|---|---|---|---|---|
"""

_FOOTER: Final = """
Four more codes have no row. `not_found` (404) and `method_not_allowed` (405): the path or the method does not exist.
`http_error`: the request is malformed in another way. `internal_error` (500): the service's log has the `request_id`.
"""


def page() -> str:
    """Return the Markdown of all errors, by status and code."""
    found = sorted({one.code: one for one in error_types()}.values(), key=lambda one: (one.status, one.code))
    return _INTRODUCTION + "\n".join(map(_row, found)) + "\n" + _FOOTER


def _row(error: type[WillbuyError]) -> str:
    again = "" if error.retry_after_s is None else f"{error.retry_after_s} s"
    text = " ".join((error.__doc__ or "").split("\n\n")[0].split())
    return f"| `{error.code}` | {error.status} | {again} | {error.title} | {text} |"
