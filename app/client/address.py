"""Where the service is, how long it is asked, and what a request to it looks like."""

from typing import Any, TypedDict

import httpx

from app.client.calls import DEFAULT_BATCH_BYTES, DEFAULT_BATCH_EVENTS, DEFAULT_SESSION_EVENTS, Calls
from app.client.retries import DEFAULT_DEADLINE_S, DEFAULT_TIMEOUT_S, Attempt, Retries


class Options(TypedDict, total=False):
    """What both clients may be told, see `Client`."""

    api_key: str | None
    timeout_s: float
    deadline_s: float
    batch_events: int
    batch_bytes: int
    session_events: int


class ServiceAddress:
    """Where the service is and what it is asked with; what the sync and the async client have in common."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        deadline_s: float = DEFAULT_DEADLINE_S,
        batch_events: int = DEFAULT_BATCH_EVENTS,
        batch_bytes: int = DEFAULT_BATCH_BYTES,
        session_events: int = DEFAULT_SESSION_EVENTS,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url: expected http:// or https://, not {url!r}")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("api_key: expected printable ASCII characters")
        self._url = url.rstrip("/")
        self._headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._calls = Calls(Retries(timeout_s, deadline_s), batch_events, batch_bytes, session_events)

    def _arguments(self, attempt: Attempt) -> dict[str, Any]:
        """Return what httpx's `stream` needs for an attempt."""
        request = attempt.request
        typed = {} if request.content_type is None else {"content-type": request.content_type}
        return {
            "method": request.method,
            "url": self._url + request.path,
            "params": request.params or None,
            "content": request.content,
            "headers": {"accept": "application/json", **self._headers, **typed},
            "timeout": attempt.timeout_s,
            "follow_redirects": False,
        }

    def _in_time(self, attempt: Attempt) -> None:
        """Raise where an answer comes in drops: each is in time, and all of them are not."""
        if self._calls.retries.clock() >= attempt.give_up_at:
            raise httpx.ReadTimeout("the answer was not complete in time")
