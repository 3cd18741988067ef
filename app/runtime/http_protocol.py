"""uvicorn's HTTP protocol (httptools) with bounds on heads and trailers: how many bytes, and how long they may take.

uvicorn itself reads heads and trailers of any size and waits for them without a time limit. A client without a key
could take a gigabyte of memory with a hundred megabytes of small headers, or hold a connection open by sending nothing.
`app.api.middleware.check_head` then refuses complete heads that are too large, with a problem.
"""

import asyncio
import logging
from typing import Any, Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_BYTES: Final = 65536
HEAD_TIMEOUT_S: Final = 10.0

_logger: Final = logging.getLogger("uvicorn.error")

_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class _PatientTransport:
    """A transport whose `write` does nothing once the client has gone.

    uvloop raises where asyncio's own transports write nothing. The protocol learns of a lost connection one turn of the
    loop later, so the answers to a client that pipelines requests and leaves would each be a traceback in the log.
    """

    __slots__ = ("_transport", "_write", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._write = transport.write
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        try:
            self._write(data)
        except RuntimeError:
            if not self.is_closing():
                raise
            _logger.debug("The client had gone before its answer.")

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the transport's
        return getattr(self._transport, name)


class BoundedHttp(HttpToolsProtocol):
    """Closes connections that send more than 64 KiB which are neither a body nor end a head or a request.

    The connection is also closed when a head takes more than ten seconds, from the connection's start or from the
    head's own first byte. Trailers are dropped, so that none passes for a header.

    The methods that run for each request name the base class, because `super()` costs twice as much.

    Pass the class to uvicorn as `http`: `--http app.runtime.http_protocol:BoundedHttp`. `willbuy serve` does.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - the server's
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._has_moved = False
        self._idle_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        """Start the timer of the first head; called by the event loop."""
        super().connection_made(cast("asyncio.Transport", _PatientTransport(transport)))
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer; called by the event loop."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and count the bytes that complete nothing; called by the event loop."""
        self._has_moved = False
        HttpToolsProtocol.data_received(self, data)
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

    def on_headers_complete(self) -> None:
        """Begin to serve the request; called by the parser."""
        self._has_moved = True
        self._in_head = False
        HttpToolsProtocol.on_headers_complete(self)
        # The scope of the request keeps the list so far. The parser adds trailers to the copy, which is never read.
        self.headers = self.headers.copy()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body; called by the parser."""
        self._has_moved = True
        HttpToolsProtocol.on_body(self, body)

    def on_message_complete(self) -> None:
        """Take note that the request is all there; called by the parser."""
        self._has_moved = True
        self._in_head = True
        HttpToolsProtocol.on_message_complete(self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
