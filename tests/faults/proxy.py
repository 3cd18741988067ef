"""A TCP proxy on loopback between the replicas and Redis: delays, disconnects, and redirects to another server."""

import asyncio
import contextlib


class Proxy:
    """Forwards every connection to `target_port`.

    Attributes:
        port: listening port; set by `start`.
        target_port: target of new connections.
        delay_s: delay of each chunk of bytes, in each direction.
    """

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.target_port = target_port
        self.delay_s = 0.0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Close every connection, also in the middle of a message."""
        for writer in list(self._writers):
            writer.close()

    async def close(self) -> None:
        """Stop listening and close every connection."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            beyond_reader, beyond_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, beyond_writer}
        try:
            await asyncio.gather(self._forward(reader, beyond_writer), self._forward(beyond_reader, writer))
        finally:
            for end in (writer, beyond_writer):
                self._writers.discard(end)
                end.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(chunk)
                await writer.drain()
        writer.close()
