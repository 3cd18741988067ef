"""A shop's webhook: a real HTTPS server on a loopback port that verifies, records and answers as it is asked to."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from standardwebhooks import Webhook as Verifier

from support.tls import accepting, only

Answer = tuple[int, Mapping[str, str]]


@dataclass
class Receiver:
    """What was received.

    Attributes:
        url: the address.
        secret: verifies every message.
        answer: called with the number of the request, from 0; status and headers of the response. None hangs.
        received: id and verified body of each request.
        accepted: the same of those that were answered with a status below 300.
    """

    url: str
    secret: str
    answer: Callable[[int], Answer | None]
    received: list[tuple[str, Any]] = field(default_factory=list)
    accepted: list[tuple[str, Any]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ids(self) -> list[str]:
        return [message_id for message_id, _ in self.received]

    async def until(self, count: int) -> None:
        """Wait for so many requests."""
        while len(self.received) < count:
            self.arrived.clear()
            await self.arrived.wait()


@asynccontextmanager
async def receiver(
    certificate: tuple[Path, Path], secret: str, answer: Callable[[int], Answer | None] = lambda _: (204, {})
) -> AsyncIterator[Receiver]:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            number = len(found.received)
            found.received.append((headers["webhook-id"], Verifier(secret).verify(body, headers)))
            found.arrived.set()
            said = found.answer(number)
            if said is None:
                await asyncio.Event().wait()
                return
            status, extra = said
            if status < 300:
                found.accepted.append(found.received[number])
            lines = [
                f"HTTP/1.1 {status} x",
                "content-length: 0",
                *(f"{name}: {value}" for name, value in extra.items()),
            ]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await respond(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the sender has closed the connection
        finally:
            writer.transport.abort()

    async with accepting(only(context), serve) as port:
        found = Receiver(f"https://127.0.0.1:{port}/hook", secret, answer)
        yield found
