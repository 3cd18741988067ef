"""How the server's protocol writes: one call of the transport for what a turn of the event loop has to send."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from app.runtime.http_protocol import BoundedHttp

pytestmark = pytest.mark.anyio

_GET = b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n"
_PART = b"#" * 30_000


class Wire(asyncio.Transport):
    """A transport that keeps what is written, and may be gone as uvloop's are."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.is_gone = False
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.is_gone:
            raise RuntimeError("the handler is closed")
        assert not self.is_closed, "written after the close"
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_gone or self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


async def _app(scope: Scope, _receive: Receive, send: Send) -> None:
    parts = int(scope["query_string"] or 1)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % (5 * parts))]})
    for number in range(parts):
        await send({"type": "http.response.body", "body": b"12345", "more_body": number + 1 < parts})


async def _stream(_scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for _ in range(10):
        await send({"type": "http.response.body", "body": _PART, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _connected(app: Callable[..., Any]) -> tuple[BoundedHttp, Wire]:
    config = uvicorn.Config(app, http=BoundedHttp, access_log=False, lifespan="off", log_config=None)
    config.load()
    protocol = BoundedHttp(config=config, server_state=ServerState(), app_state={})
    wire = Wire()
    protocol.connection_made(wire)
    return protocol, wire


async def _turns(until: Callable[[], bool]) -> None:
    for _ in range(100):
        await asyncio.sleep(0)
        if until():
            return
    pytest.fail("nothing came in a hundred turns of the event loop")


@pytest.mark.parametrize("parts", [1, 3])
async def test_the_head_and_the_body_of_an_answer_are_one_write(parts: int) -> None:
    # Given
    protocol, wire = _connected(_app)

    # When
    protocol.data_received(_GET.replace(b"/ ", b"/?%d " % parts))
    await _turns(lambda: bool(wire.writes))

    # Then
    (answer,) = wire.writes
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n" + b"12345" * parts)


async def test_a_large_answer_is_written_in_parts_and_whole() -> None:
    # Given
    protocol, wire = _connected(_stream)

    # When
    protocol.data_received(_GET)
    await _turns(lambda: wire.writes[-1:] != [] and wire.writes[-1].endswith(b"0\r\n\r\n"))

    # Then
    sent = b"".join(wire.writes)
    assert sent.count(b"#") == 10 * len(_PART)
    assert max(map(len, wire.writes)) < 65536 + len(_PART) + 100


async def test_what_was_written_leaves_before_the_connection_closes() -> None:
    # Given
    protocol, wire = _connected(_app)

    # When
    protocol.data_received(b"not HTTP at all\r\n\r\n")

    # Then
    (answer,) = wire.writes
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert wire.is_closed


async def test_an_answer_to_a_client_that_has_gone_is_dropped() -> None:
    # Given
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
    protocol, wire = _connected(_app)

    # When
    protocol.data_received(_GET)
    wire.is_gone = True
    await _turns(lambda: protocol.cycle is not None and protocol.cycle.response_complete)
    await asyncio.sleep(0)

    # Then
    assert not wire.writes
    assert not failures
