"""TLS in front of servers: those of the wheels are built without it."""

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from support.redis_servers import RedisServer


class Listener(Protocol):
    """A server on a port of 127.0.0.1."""

    @property
    def port(self) -> int: ...


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Create a self-signed certificate for 127.0.0.1 and its key."""
    paths = folder / "server.crt", folder / "server.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", paths[0], "-keyout", paths[1]),
        ],
        check=True,
        capture_output=True,
    )
    return paths


@asynccontextmanager
async def behind_tls(
    server: Listener, certificate: tuple[Path, Path], *, clients: Path | None = None
) -> AsyncIterator[int]:
    """Listen with TLS on a port and forward to the server, which need not run yet.

    Args:
        server: the server.
        certificate: the listener's certificate and its key.
        clients: authorities of the certificates that clients must show; None: they need none.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    if clients is not None:
        context.load_verify_locations(clients)
        context.verify_mode = ssl.CERT_REQUIRED

    async with accepting(only(context), partial(_forward, server)) as port:
        yield port


@asynccontextmanager
async def tls_or_plain(server: RedisServer, certificate: tuple[Path, Path]) -> AsyncIterator[int]:
    """Listen on a port for TLS and for plain connections, by a connection's first byte, and forward to the server.

    A sentinel without TLS watches the address that it tells its clients.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)

    async def either(connection: socket.socket) -> ssl.SSLContext | None:
        connection.setblocking(True)
        first = await asyncio.to_thread(connection.recv, 1, socket.MSG_PEEK)
        connection.setblocking(False)
        return context if first == _TLS_HANDSHAKE else None

    async with accepting(either, partial(_forward, server)) as port:
        yield port


_TLS_HANDSHAKE = b"\x16"


def only(context: ssl.SSLContext) -> Callable[[socket.socket], Awaitable[ssl.SSLContext]]:
    """Return a `context_for` of `accepting` that uses this TLS context for every connection."""

    async def choose(_connection: socket.socket) -> ssl.SSLContext:
        return context

    return choose


@asynccontextmanager
async def accepting(
    context_for: Callable[[socket.socket], Awaitable[ssl.SSLContext | None]],
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]],
) -> AsyncIterator[int]:
    """Listen on a port and serve connections; at the end close them all, those amid a handshake too.

    `asyncio.start_server` knows nothing of a connection before its handshake is over.

    Args:
        context_for: returns the TLS context of a connection; None: plain TCP.
        serve: handles a connection; an `OSError` only closes that connection.

    Raises:
        Exception: any other error of `serve`, when the listener closes.
    """
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)

    async def begin(connection: socket.socket) -> None:
        # The server does not run yet, or the client has closed the connection.
        with suppress(OSError):
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=await context_for(connection)
            )
            await serve(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    serving: dict[asyncio.Task[None], socket.socket] = {}

    def accept() -> None:
        connection, _ = listener.accept()
        connection.setblocking(False)
        serving[loop.create_task(begin(connection))] = connection

    loop.add_reader(listener, accept)
    try:
        yield listener.getsockname()[1]
    finally:
        loop.remove_reader(listener)
        listener.close()
        for task in serving:
            task.cancel()
        results = await asyncio.gather(*serving, return_exceptions=True)
        await sockets_closed()
        for connection in serving.values():
            connection.close()
        for error in results:
            if isinstance(error, Exception):
                raise error


async def _forward(server: Listener, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    async def pass_on(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            sink.close()

    writers = [writer]
    try:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", server.port)
        writers.append(upstream_writer)
        await asyncio.gather(pass_on(reader, upstream_writer), pass_on(upstream_reader, writer))
    finally:
        for one in writers:
            one.transport.abort()


async def sockets_closed() -> None:
    """Wait until the event loop has closed the sockets of aborted transports, which takes it a few turns."""
    for _ in range(10):
        await asyncio.sleep(0)
