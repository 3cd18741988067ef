"""Server-sent events: what changes on the board and in the numbers, worked out once however many listen.

A *channel* asks one question again and again while somebody listens to it; a *listener* hears several channels. What a
listener has not taken when something newer comes is replaced by it: a slow one misses what is outdated, and costs no
memory.

The format is that of https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from structlog.typing import FilteringBoundLogger

from app.board.content import Content
from app.board.query import BoardQuery
from app.errors import ShuttingDownError, TooManyStreamsError, WillbuyError, to_problem

HEARTBEAT_S: Final = 15.0
# How soon a browser comes again when its stream has ended.
_PREAMBLE: Final = b"retry: 2000\n\n"
_HEARTBEAT: Final = b": still here\n\n"
_PROBLEM: Final = "problem"
# A page that redraws more often than once a second is hard to read.
STREAM_INTERVAL_S: Final = 1.0


class Listener:
    """One open stream."""

    def __init__(self) -> None:
        self._mail: dict[str, bytes] = {}
        self._arrived = asyncio.Event()
        self._is_closed = False

    def hear(self, event: str, data: bytes) -> None:
        """Put down an event; one of the same name that was not taken is outdated."""
        self._mail[event] = data
        self._arrived.set()

    def close(self) -> None:
        """Let the stream end."""
        self._is_closed = True
        self._arrived.set()

    async def frames(self, *, heartbeat_s: float = HEARTBEAT_S) -> AsyncIterator[bytes]:
        """Yield the bytes of the stream, and something at least every `heartbeat_s` seconds, until it is closed."""
        yield _PREAMBLE
        while not self._is_closed:
            try:
                async with asyncio.timeout(heartbeat_s):
                    await self._arrived.wait()
            except TimeoutError:
                yield _HEARTBEAT
                continue
            self._arrived.clear()
            mail, self._mail = self._mail, {}
            if mail:
                yield b"".join(b"event: %b\ndata: %b\n\n" % (name.encode(), data) for name, data in mail.items())


class _Channel:
    """Asks one question every `interval_s` seconds, and tells its listeners when the answer is another one."""

    def __init__(self, event: str, ask: Callable[[], Awaitable[Content]], *, interval_s: float) -> None:
        self.listeners: set[Listener] = set()
        self._event = event
        self._ask = ask
        self._interval_s = interval_s
        self._latest: tuple[str, bytes] | None = None
        self._tag = b""

    def join(self, listener: Listener) -> None:
        self.listeners.add(listener)
        if self._latest is not None:
            listener.hear(*self._latest)

    async def run(self) -> None:
        while True:
            try:
                content = await self._ask()
                self._tell(self._event, content.body, content.tag)
            except WillbuyError as exc:
                self._tell(_PROBLEM, json.dumps(to_problem(exc)).encode(), exc.code.encode())
            await asyncio.sleep(self._interval_s)

    def _tell(self, event: str, data: bytes, tag: bytes) -> None:
        if tag == self._tag:
            return
        self._tag, self._latest = tag, (event, data)
        for listener in self.listeners:
            listener.hear(event, data)


class Streams:
    """All open streams of a replica.

    Args:
        board: answers a query of the board.
        stats: answers with the numbers.
        interval_s: how often they are asked.
        most_streams: how many may be open.
        logger: where a defect of a channel is told.
    """

    def __init__(
        self,
        *,
        board: Callable[[BoardQuery], Awaitable[Content]],
        stats: Callable[[], Awaitable[Content]],
        most_streams: int,
        logger: FilteringBoundLogger,
        interval_s: float = STREAM_INTERVAL_S,
    ) -> None:
        self._board = board
        self._stats = stats
        self._interval_s = interval_s
        self._most_streams = most_streams
        self._logger = logger
        self._channels: dict[BoardQuery | None, tuple[_Channel, asyncio.Task[None]]] = {}
        self._listeners: set[Listener] = set()
        self._is_closed = False

    @property
    def open(self) -> int:
        """How many streams are open."""
        return len(self._listeners)

    @contextmanager
    def listening(self, query: BoardQuery) -> Iterator[Listener]:
        """Open a stream of a query's answers and of the numbers, for as long as the context lasts.

        Raises:
            ShuttingDownError: the replica is about to stop.
            TooManyStreamsError: as many are open as may be.
        """
        if self._is_closed:
            raise ShuttingDownError("This replica is shutting down; connect again.")
        if len(self._listeners) >= self._most_streams:
            raise TooManyStreamsError(
                f"At most {self._most_streams} streams may be open; poll GET /v1/sessions instead."
            )
        listener = Listener()
        self._listeners.add(listener)
        keys: Sequence[BoardQuery | None] = (query, None)
        for key in keys:
            self._channel(key).join(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            for key in keys:
                self._leave(key, listener)

    def close(self) -> None:
        """End all streams and open no more."""
        self._is_closed = True
        for listener in self._listeners:
            listener.close()

    def _channel(self, key: BoardQuery | None) -> _Channel:
        if key not in self._channels:
            event, ask = ("stats", self._stats) if key is None else ("board", lambda: self._board(key))
            channel = _Channel(event, ask, interval_s=self._interval_s)
            task = asyncio.create_task(channel.run())
            task.add_done_callback(self._ended)
            self._channels[key] = (channel, task)
        return self._channels[key][0]

    def _leave(self, key: BoardQuery | None, listener: Listener) -> None:
        channel, task = self._channels[key]
        channel.listeners.discard(listener)
        if not channel.listeners:
            del self._channels[key]
            task.cancel()

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """Tell of a channel that broke, and end the streams, whose callers then come again."""
        if task.cancelled() or (failure := task.exception()) is None:
            return
        self._logger.error("stream_failed", exc_info=failure)
        for channel, ended in self._channels.values():
            if ended is task:
                for listener in channel.listeners:
                    listener.close()
