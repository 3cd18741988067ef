"""HTTP by uvicorn and httptools, with a bound on what a connection may send before there is a request.

The server reads heads and trailers of any size into memory, and waits for their end without an end: who opens a
connection can take a gigabyte with a hundred megabytes of small headers, or keep it open for good by sending nothing.
Both happen before any key is looked at, so they are stopped here. `app.auth.head_limit` then refuses, with a problem,
heads that are complete and too large.
"""

import asyncio
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_BYTES: Final = 65536
HEAD_TIMEOUT_S: Final = 10.0

_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class BoundedHttp(HttpToolsProtocol):
    """Closes connections that send more than 64 KiB which are neither a body nor end a head or a request.

    It also closes those whose head, from the connection's start or from its own first byte, is not there after ten
    seconds. Trailers are dropped: nothing here reads them, and they must not pass for headers.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - the server's
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._has_moved = False
        self._idle_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._has_moved = False
        super().data_received(data)
        if self._has_moved:
            self._idle_bytes = 0
            if self._timer is not None:
                self._stop_timer()
            return
        self._idle_bytes += len(data)
        if self._idle_bytes > MOST_BYTES:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.write(_TOO_LARGE)
            self._close()
        elif self._timer is None and self._in_head:
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._close)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; called by the parser."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to serve the request; called by the parser."""
        self._has_moved = True
        self._in_head = False
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body; called by the parser."""
        self._has_moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take note that the request is all there; called by the parser."""
        self._has_moved = True
        self._in_head = True
        super().on_message_complete()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
