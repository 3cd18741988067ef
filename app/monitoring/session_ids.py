"""Session ids in the log: they name visitors, and logs live longer and travel farther than sessions do."""

import hashlib
import re
from collections.abc import Callable, MutableMapping
from typing import Any, Final, Literal

from structlog.typing import Processor

_SHORT: Final = 4
_HASH_BYTES: Final = 6
_SESSION_PATH: Final = re.compile(r"(/v1/sessions/)(.+?)(/outcome)?$", re.DOTALL)


def hide_session_ids(form: Literal["full", "short", "hash"]) -> Processor:
    """Return a processor that writes the ids in `session_id` and in a request's `path` in this form.

    `hash` is the first twelve hexadecimal digits of the id's BLAKE2b of six bytes, the same each time, so that the
    lines of one session are found together, and by whoever knows its id:

        python -c 'import hashlib, sys; print(hashlib.blake2b(sys.argv[1].encode(), digest_size=6).hexdigest())' ID
    """
    forms: dict[str, Callable[[str], str]] = {"full": str, "short": _shortened, "hash": _hashed}
    hidden = forms[form]

    def hide(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:  # noqa: ANN401 - structlog's
        if isinstance(session_id := event.get("session_id"), str):
            event["session_id"] = hidden(session_id)
        if isinstance(path := event.get("path"), str):
            event["path"] = _SESSION_PATH.sub(lambda found: found[1] + hidden(found[2]) + (found[3] or ""), path)
        return event

    return hide


def _shortened(session_id: str) -> str:
    return session_id if len(session_id) <= _SHORT else session_id[:_SHORT] + "…"


def _hashed(session_id: str) -> str:
    return hashlib.blake2b(session_id.encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).hexdigest()
