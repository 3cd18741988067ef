"""A small HTTP/1.1 client without retries and time-outs.

The harness has to know the result of each attempt. A cancelled request closes its connection, like a client that gives
up.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer."""

    status: int
    body: dict[str, Any]


class HttpClient:
    """Keep-alive connections to one loopback port, one for each concurrent request; requests carry `key`."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._key = key
        self._idle: list[_Connection] = []

    async def post(self, path: str, body: bytes) -> Reply:
        """Return the answer; raise `OSError` or `EOFError` if there is none."""
        reader, writer = await self._connection()
        whole = False
        try:
            head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            head += f"Authorization: Bearer {self._key}\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            status, headers = _parsed(await reader.readuntil(b"\r\n\r\n"))
            content = await reader.readexactly(int(headers.get("content-length", "0")))
            whole = headers.get("connection", "").lower() != "close"
        finally:
            if whole:
                self._idle.append((reader, writer))
            else:
                writer.close()
        # A gateway's own answers are pages.
        is_json = "json" in headers.get("content-type", "")
        return Reply(status, json.loads(content) if content and is_json else {})

    def close(self) -> None:
        """Close idle connections."""
        while self._idle:
            self._idle.pop()[1].close()

    async def _connection(self) -> _Connection:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)


def _parsed(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return int(first.split(" ", 2)[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}
