"""Server-sent events: changes of the board and of the statistics, read once for all listeners.

A *channel* reads one answer at an interval while it has listeners; a *listener* is an open stream and joins several
channels. A newer event replaces an older one that the listener has not taken: a slow listener skips outdated events and
needs no more memory. Decisions of rules are no state but happenings, so each is sent; a slow listener loses the oldest.
Their `id` is a time of Redis, from which a stream that was cut off continues.

The format is that of https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

import msgspec
from structlog.typing import FilteringBoundLogger

from app.board.content import Content
from app.board.query import BoardQuery
from app.errors import ShuttingDownError, TooManyStreamsError, WillbuyError, to_problem
from app.runtime.periodic import PeriodicTask
from app.store.interventions import NOW, DecisionPage, DecisionStore, HandedOver
from model.clock import now_ms, utc
from model.redis_keys import SHARDS

HEARTBEAT_S: Final = 15.0
# How soon a browser reconnects after the end of its stream.
_PREAMBLE: Final = b"retry: 2000\n\n"
_HEARTBEAT: Final = b": still here\n\n"
_PROBLEM: Final = "problem"
# A page that redraws more often than once a second is hard to read.
STREAM_INTERVAL_S: Final = 1.0
DECISIONS_INTERVAL_S: Final = 0.5
"""Interval at which decisions of rules are read while a stream is open, in seconds."""
_MOST_DECISIONS: Final = 1000
# A stream that continues reads so much of each shard at once, and at most so far back.
_RESUMED_AT_ONCE: Final = 16
_LONGEST_GAP_MS: Final = 600_000
# A shard may be read just before it gets a decision that is older than another shard's newest. So a stream that
# continues begins so much earlier, and what it had already may come twice.
_OVERLAP_MS: Final = 2_000
_DECISIONS: Final = b"interventions"


class Listener:
    """One open stream."""

    def __init__(self) -> None:
        self._pending: dict[str, bytes] = {}
        self._decisions: deque[bytes] = deque(maxlen=_MOST_DECISIONS)
        self._position: int | None = None
        self._arrived = asyncio.Event()
        self._is_closed = False

    def put(self, event: str, data: bytes) -> None:
        """Keep an event for sending, in place of an older one of the same name."""
        self._pending[event] = data
        self._arrived.set()

    def add_decisions(self, decisions: Sequence[bytes], position: int | None = None) -> None:
        """Keep decisions of rules for sending, each as JSON; of those not yet taken the last thousand.

        Args:
            decisions: the decisions.
            position: time of the newest decision that was read, Redis' clock in ms; None: older ones are added.
        """
        self._decisions.extend(decisions)
        self._position = position if position is not None else self._position
        self._arrived.set()

    def close(self) -> None:
        """End the stream."""
        self._is_closed = True
        self._arrived.set()

    async def frames(self, *, heartbeat_s: float = HEARTBEAT_S) -> AsyncIterator[bytes]:
        """Yield the bytes of the stream until it is closed; a comment after `heartbeat_s` seconds without an event."""
        yield _PREAMBLE
        while not self._is_closed:
            try:
                async with asyncio.timeout(heartbeat_s):
                    await self._arrived.wait()
            except TimeoutError:
                yield _HEARTBEAT
                continue
            self._arrived.clear()
            pending, self._pending = {name.encode(): data for name, data in self._pending.items()}, {}
            if self._decisions:
                pending[_DECISIONS] = b"[%b]" % b",".join(self._decisions)
                self._decisions.clear()
            frame = b"".join(b"event: %b\ndata: %b\n\n" % one for one in pending.items())
            if self._position is not None:
                # Behind the decisions, since who has not got them has to get them again.
                frame += b"id: %d\n\n" % self._position
                self._position = None
            if frame:
                yield frame


class _Channel:
    """Reads one answer at an interval, and gives it to its listeners when it has changed."""

    def __init__(
        self,
        event: str,
        read: Callable[[], Awaitable[Content]],
        *,
        interval_s: float,
        logger: FilteringBoundLogger,
    ) -> None:
        self.listeners: set[Listener] = set()
        self._event = event
        self._read = read
        self._latest: tuple[str, bytes] | None = None
        self._tag = b""
        self._task = PeriodicTask(
            self._update,
            name=f"stream-{event}",
            every_s=interval_s,
            logger=logger,
            failed="stream_failed",
            on_failure=self._end_streams,
        )
        self._task.start()

    def join(self, listener: Listener) -> None:
        self.listeners.add(listener)
        if self._latest is not None:
            listener.put(*self._latest)

    def stop(self) -> None:
        self._task.stop()

    async def _update(self) -> None:
        try:
            content = await self._read()
            self._publish(self._event, content.body, content.tag)
        except WillbuyError as exc:
            self._publish(_PROBLEM, json.dumps(to_problem(exc)).encode(), exc.code.encode())

    def _publish(self, event: str, data: bytes, tag: bytes) -> None:
        if tag == self._tag:
            return
        self._tag, self._latest = tag, (event, data)
        for listener in self.listeners:
            listener.put(event, data)

    def _end_streams(self, _failure: Exception) -> None:
        """End the streams of a channel that has a defect; their callers reconnect."""
        for listener in self.listeners:
            listener.close()


class _DecisionChannel:
    """Reads what rules have decided since the last look, and gives it to all listeners."""

    def __init__(
        self, store: DecisionStore, has_rules: Callable[[], bool], *, interval_s: float, logger: FilteringBoundLogger
    ) -> None:
        self.listeners: set[Listener] = set()
        self._store = store
        self._has_rules = has_rules
        self._places = dict.fromkeys(range(SHARDS), NOW)
        self._position: int | None = None
        self._task = PeriodicTask(
            self._update, name="stream-decisions", every_s=interval_s, logger=logger, failed="stream_failed"
        )
        self._task.start()

    def join(self, listener: Listener) -> None:
        self.listeners.add(listener)
        listener.add_decisions((), self._position)

    def stop(self) -> None:
        self._task.stop()

    async def resume(self, listener: Listener, after_ms: int) -> None:
        """Give a listener the decisions since it was cut off; end its stream if they cannot be read."""
        begin_ms = max(after_ms - _OVERLAP_MS, now_ms() - _LONGEST_GAP_MS)
        places = dict.fromkeys(range(SHARDS), f"{begin_ms}-0")
        try:
            if self._has_rules():
                await self._catch_up(listener, places)
            # Not before, since its id would tell that the listener has what was read above.
            self.join(listener)
            if self._has_rules():
                await self._catch_up(listener, places)
        except WillbuyError:
            listener.close()

    async def _catch_up(self, listener: Listener, places: dict[int, str]) -> None:
        """Give a listener what stands after the places, which move on."""
        behind: Sequence[int] = list(places)
        while behind:
            pages = await self._store.read({shard: places[shard] for shard in behind}, most=_RESUMED_AT_ONCE)
            listener.add_decisions(_all_told(pages))
            places.update((shard, page.after) for shard, page in pages.items())
            behind = [shard for shard, page in pages.items() if page.is_more]

    async def _update(self) -> bool:
        if not self._has_rules():
            return False
        try:
            pages = await self._store.read(self._places)
        except WillbuyError:
            # The board's channel tells the listeners, and the places stay.
            return False
        self._places = {shard: page.after for shard, page in pages.items()}
        told, before = _all_told(pages), self._position
        self._position = max(int(place.partition("-")[0]) for place in self._places.values())
        if told or before is None:
            for listener in self.listeners:
                listener.add_decisions(told, self._position)
        return any(page.is_more for page in pages.values())


class _Told(msgspec.Struct, frozen=True):
    """A decision as streams have it, control groups only where the rule tells them."""

    session_id: str
    name: str
    group: str
    probability: float
    event: int
    decided: str
    idle: bool


_encode: Final = msgspec.json.Encoder().encode


def _all_told(pages: Mapping[int, DecisionPage]) -> list[bytes]:
    return [_told(entry.decision) for page in pages.values() for entry in page.entries if entry.decision.told]


def _told(decision: HandedOver) -> bytes:
    return _encode(
        _Told(
            decision.session_id,
            decision.rule,
            decision.group,
            decision.probability,
            decision.event,
            utc(decision.decided_ms).isoformat(timespec="milliseconds"),
            decision.idle,
        )
    )


class Streams:
    """All open streams of a replica.

    Args:
        board: answers a query of the board.
        stats: answers with the statistics.
        decisions: the decisions of rules.
        has_rules: whether there are rules; without any, no decision is looked for.
        most_streams: how many may be open.
        logger: where a defect of a channel is logged.
        interval_s: interval of the readings.
    """

    def __init__(
        self,
        *,
        board: Callable[[BoardQuery], Awaitable[Content]],
        stats: Callable[[], Awaitable[Content]],
        decisions: DecisionStore,
        has_rules: Callable[[], bool],
        most_streams: int,
        logger: FilteringBoundLogger,
        interval_s: float = STREAM_INTERVAL_S,
    ) -> None:
        self._board = board
        self._stats = stats
        self._open_decisions = partial(
            _DecisionChannel,
            decisions,
            has_rules,
            interval_s=min(interval_s, DECISIONS_INTERVAL_S),
            logger=logger,
        )
        self._decisions: _DecisionChannel | None = None
        self._interval_s = interval_s
        self._most_streams = most_streams
        self._logger = logger
        self._channels: dict[BoardQuery | None, _Channel] = {}
        self._listeners: set[Listener] = set()
        self._is_closed = False

    @property
    def open(self) -> int:
        """How many streams are open."""
        return len(self._listeners)

    @contextmanager
    def listening(self, query: BoardQuery, after_ms: int | None = None) -> Iterator[Listener]:
        """Open a stream of a query's answers and of the statistics, for as long as the context lasts.

        Args:
            query: the board's.
            after_ms: the last `id` of a stream that was cut off; decisions since then come first. None: a new stream.

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
        if self._decisions is None:
            self._decisions = self._open_decisions()
        resuming = None
        if after_ms is None:
            self._decisions.join(listener)
        else:
            resuming = asyncio.create_task(self._decisions.resume(listener, after_ms))
        try:
            yield listener
        finally:
            if resuming is not None:
                resuming.cancel()
            self._listeners.discard(listener)
            for key in keys:
                self._leave(key, listener)
            if self._decisions is not None:
                self._decisions.listeners.discard(listener)
                if not self._listeners:
                    self._decisions.stop()
                    self._decisions = None

    def close(self) -> None:
        """End all streams and open no more."""
        self._is_closed = True
        for listener in self._listeners:
            listener.close()

    def _channel(self, key: BoardQuery | None) -> _Channel:
        if key not in self._channels:
            event, read = ("stats", self._stats) if key is None else ("board", lambda: self._board(key))
            self._channels[key] = _Channel(event, read, interval_s=self._interval_s, logger=self._logger)
        return self._channels[key]

    def _leave(self, key: BoardQuery | None, listener: Listener) -> None:
        channel = self._channels[key]
        channel.listeners.discard(listener)
        if not channel.listeners:
            del self._channels[key]
            channel.stop()
