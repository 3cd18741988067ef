"""uvicorn's HTTP protocol (httptools) for callers that cannot be trusted: bounded heads, one request for each body.

uvicorn itself reads heads and trailers of any size and waits for them without a time limit. A client without a key
could take a gigabyte of memory with a hundred megabytes of small headers, or hold a connection open by sending nothing.
`app.api.middleware.check_head` then refuses complete heads that are too large, with a problem.

uvicorn and its parser drop the body of a request that offers an upgrade, and take that body for the next request
(uvicorn #2722). Here an offer is ignored, as RFC 9110 section 7.8 allows, and the body is read.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.errors import HeadTooLargeError, MalformedRequestError, WillbuyError, error_response
from app.runtime.connection import ARRIVED, CONNECTION

MOST_BYTES: Final = 65536
HEAD_TIMEOUT_S: Final = 10.0
# More than nearly every answer; a larger one is sent in parts, so that the transport can ask the sender to wait.
_MOST_HELD_BYTES: Final = 65536

_logger: Final = logging.getLogger("uvicorn.error")
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


class _PatientTransport:
    """A transport that sends what one turn of the event loop writes with one call of the system.

    uvicorn writes an answer's head and body one after another, and uvloop sends each at once. Together they cost the
    server one system call less, and the client one wake-up less (docs/performance.md).

    `write` does nothing once the client has gone. uvloop raises there, where asyncio's own transports write nothing.
    The protocol learns of a lost connection one turn of the loop later, so the answers to a client that pipelines
    requests and leaves would each be a traceback in the log.
    """

    __slots__ = ("_call_soon", "_held", "_held_bytes", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._call_soon = loop.call_soon
        self._held: list[bytes] = []
        self._held_bytes = 0
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        held = self._held
        if not held:
            self._call_soon(self._send)
        held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > _MOST_HELD_BYTES:
            self._send()

    def close(self) -> None:
        self._send()
        self._transport.close()

    def _send(self) -> None:
        held = self._held
        if not held:
            return
        data = held[0] if len(held) == 1 else b"".join(held)
        held.clear()
        self._held_bytes = 0
        try:
            self._transport.write(data)
        except RuntimeError:
            if not self.is_closing():
                raise
            _logger.debug("The client had gone before its answer.")

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the transport's
        return getattr(self._transport, name)


class BoundedHttp(HttpToolsProtocol):
    """Closes connections that send more than 64 KiB which are neither a body nor end a head or a request.

    The connection is also closed when a head takes more than ten seconds, from the connection's start or from the
    head's own first byte. Trailers are dropped, so that none passes for a header. What is not HTTP is answered with a
    problem, unless earlier requests of the connection have no answer yet.

    The methods that run for each request name the base class, because `super()` costs twice as much.

    Pass the class to uvicorn as `http`: `--http app.runtime.http_protocol:BoundedHttp`. `willbuy serve` does.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - the server's
        super().__init__(*args, **kwargs)
        # An upgrade to WebSockets is ignored as well, whatever is installed.
        self.ws_protocol_class = None
        self.is_lost = False
        self.on_lost: Callable[[], None] | None = None
        self._in_head = True
        self._is_refused = False
        self._has_moved = False
        self._idle_bytes = 0
        self._head_began_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base class
        """Start the timer of the first head; called by the event loop."""
        super().connection_made(cast("asyncio.Transport", _PatientTransport(transport, self.loop)))
        self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer, and tell the request that is being answered; called by the event loop."""
        self._stop_timer()
        super().connection_lost(exc)
        self.is_lost = True
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        """Parse what came, and count the bytes that complete nothing; called by the event loop."""
        if self._is_refused:
            return
        self._has_moved = False
        if self._in_head and not self._idle_bytes:
            self._head_began_s = self.loop.time()
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            self._ignore_upgrade(data[exc.args[0] :])
        except httptools.HttpParserError as exc:
            self._refuse_malformed(exc)
        if self._has_moved:
            self._idle_bytes = 0
            if self._timer is not None:
                self._stop_timer()
            return
        self._idle_bytes += len(data)
        if self._idle_bytes > MOST_BYTES:
            self._refuse(_too_large())
        elif self._timer is None and self._in_head:
            self._timer = self.loop.call_later(HEAD_TIMEOUT_S, self._close)

    def on_headers_complete(self) -> None:
        """Begin to serve the request; called by the parser."""
        self._has_moved = True
        self._in_head = False
        HttpToolsProtocol.on_headers_complete(self)
        # The request's task runs later, so it finds these.
        self.scope[ARRIVED] = self._head_began_s  # type: ignore[typeddict-unknown-key]  # servers may add their own
        self.scope[CONNECTION] = self  # type: ignore[typeddict-unknown-key]  # same
        # The scope of the request keeps the list so far. The parser adds trailers to the copy, which is never read.
        self.headers = self.headers.copy()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body; called by the parser."""
        self._has_moved = True
        HttpToolsProtocol.on_body(self, body)

    def on_message_complete(self) -> None:
        """Take note that the request is all there; called by the parser."""
        self._has_moved = True
        if self.parser.should_upgrade():
            # The parser leaves out the body after such a head; `_ignore_upgrade` reads it.
            return
        self._in_head = True
        HttpToolsProtocol.on_message_complete(self)

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Read the body of a request that offers an upgrade, and what follows, with a parser that sees no offer."""
        framing = b"".join(b"%b: %b\r\n" % header for header in self.headers if header[0] in _FRAMING)
        self.parser = httptools.HttpRequestParser(_BehindHead(self))
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        try:
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")
            self.parser.feed_data(rest)
        except httptools.HttpParserUpgrade as exc:
            self._ignore_upgrade(rest[exc.args[0] :])
        except httptools.HttpParserError as exc:
            self._refuse_malformed(exc)

    def _refuse_malformed(self, error: Exception) -> None:
        self.logger.warning("Invalid HTTP request received.")  # in the server's own words
        self._refuse(_malformed(error))

    def _refuse(self, answer: bytes) -> None:
        """Answer what is no request, or a request whose body is none, and take nothing more from the connection."""
        self._is_refused = True
        cycle = self.cycle
        is_own_body = cycle is not None and cycle.more_body and not cycle.response_started and not self.pipeline
        if cycle is None or cycle.response_complete or is_own_body:
            self.transport.write(answer)
            self._close()
        else:
            # The answer to an earlier request must not be taken for this one's.
            cycle.keep_alive = False

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


class _BehindHead:
    """Passes a parser's callbacks on to a protocol, but for those of the first head, which it knows already."""

    def __init__(self, protocol: BoundedHttp) -> None:
        self._protocol = protocol
        self._is_behind = False
        self.on_body = protocol.on_body
        self.on_message_complete = protocol.on_message_complete

    def on_message_begin(self) -> None:
        if self._is_behind:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._is_behind:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_behind:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_behind:
            self._protocol.on_headers_complete()
        self._is_behind = True


def _malformed(error: Exception) -> bytes:
    """Return the answer to bytes that the parser refuses."""
    # Errors of a callback name functions of the server.
    is_callback = isinstance(error, httptools.HttpParserCallbackError)
    return _raw(MalformedRequestError("The address is not valid." if is_callback else f"{error}."))


@lru_cache(maxsize=1)
def _too_large() -> bytes:
    return _raw(HeadTooLargeError(f"Expected a head of at most {MOST_BYTES} bytes."))


def _raw(error: WillbuyError) -> bytes:
    """Return the bytes of a problem as the last answer on a connection."""
    response = error_response(error)
    headers = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
    reason = b"Bad Request" if error.status == MalformedRequestError.status else b"Request Header Fields Too Large"
    return b"HTTP/1.1 %d %b\r\n%bconnection: close\r\n\r\n%b" % (error.status, reason, headers, bytes(response.body))
