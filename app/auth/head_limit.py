"""A bound on the head of a request: its address and its headers."""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import HeadTooLargeError, error_response
from app.monitoring.metrics import Metrics

MOST_HEADERS: Final = 100
# Proxies forward 4 to 16 KiB (nginx: 4 x 8 KiB, ALB: 64 KiB); cookies and traces of real clients fit.
MAX_HEAD_BYTES: Final = 16384
# `name: value\r\n`
_AROUND_BYTES: Final = 4


class HeadLimit:
    """ASGI middleware: refuses requests whose head has more than `max_head_bytes`, or more than 100 headers."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, max_head_bytes: int = MAX_HEAD_BYTES) -> None:
        self._app = app
        self._max_head_bytes = max_head_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http" and (error := self._fault(scope)) is not None:
            self._metrics.errors.labels(error.code).inc()
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _fault(self, scope: Scope) -> HeadTooLargeError | None:
        headers = scope["headers"]
        if len(headers) > MOST_HEADERS:
            return HeadTooLargeError(f"Expected at most {MOST_HEADERS} headers.")
        size = len(scope["path"]) + len(scope["query_string"]) + _AROUND_BYTES * len(headers)
        for name, value in headers:
            size += len(name) + len(value)
        if size > self._max_head_bytes:
            return HeadTooLargeError(f"Expected an address and headers of at most {self._max_head_bytes} bytes in all.")
        return None
