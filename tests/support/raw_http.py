"""HTTP over a bare socket: what is sent is exactly these bytes, and every answer that comes back is read."""

import contextlib
import socket
from collections.abc import Iterator
from typing import NamedTuple

_LAST = b"GET /healthz HTTP/1.1\r\nHost: shop\r\nX-Request-ID: last\r\nConnection: close\r\n\r\n"
_PIECE = 11


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def answers_of(port: int, sent: bytes, *, in_pieces: bool = False) -> list[Answer]:
    """Send these bytes and a last request that closes the connection; return all answers but to that one."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The server may close before it has read everything.
        with contextlib.suppress(OSError):
            for at in range(0, len(sent), _PIECE) if in_pieces else ():
                connection.sendall(sent[at : at + _PIECE])
            connection.sendall(_LAST if in_pieces else sent + _LAST)
        received = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                received += part
    return [answer for answer in parsed(bytes(received)) if answer.headers.get("x-request-id") != "last"]


def parsed(received: bytes) -> Iterator[Answer]:
    """Return the answers in these bytes; each must have a length or be in chunks."""
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while True:
                size, _, received = received.partition(b"\r\n")
                chunk, received = received[: int(size, 16)], received[int(size, 16) + 2 :]
                if not chunk:
                    break
                body += chunk
        else:
            length = int(headers.get("content-length", 0))
            body, received = received[:length], received[length:]
        yield Answer(int(status.split(" ")[1]), headers, body)
