"""TLS in front of servers: those of the wheels are built without it."""

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
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

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        # The server does not run yet, or the test is over; asyncio reports what a connection raises as an error.
        with suppress(OSError, asyncio.CancelledError):
            await _forward(reader, writer, server)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await sockets_closed()


@asynccontextmanager
async def tls_or_plain(server: RedisServer, certificate: tuple[Path, Path]) -> AsyncIterator[int]:
    """Listen on a port for TLS and for plain connections, by a connection's first byte, and forward to the server.

    A sentinel without TLS watches the address that it tells its clients.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    loop = asyncio.get_running_loop()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)

    async def serve(connection: socket.socket) -> None:
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            connection.setblocking(True)
            first = await asyncio.to_thread(connection.recv, 1, socket.MSG_PEEK)
            connection.setblocking(False)
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=context if first == _TLS_HANDSHAKE else None
            )
        except BaseException:
            connection.close()
            raise
        await _forward(reader, asyncio.StreamWriter(transport, protocol, reader, loop), server)

    async def accept() -> None:
        async with asyncio.TaskGroup() as group:
            while True:
                connection, _ = await loop.sock_accept(listener)
                group.create_task(_without_error(serve(connection)))

    accepting = asyncio.create_task(accept())
    try:
        yield listener.getsockname()[1]
    finally:
        accepting.cancel()
        await asyncio.gather(accepting, return_exceptions=True)
        listener.close()
        await sockets_closed()


_TLS_HANDSHAKE = b"\x16"


async def _without_error(serving: Coroutine[None, None, None]) -> None:
    with suppress(OSError):
        await serving


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: Listener) -> None:
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
