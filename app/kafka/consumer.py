"""From messages to answers: what the batch route does, with offsets in place of a status.

    take -> parse and validate -> batcher (Redis has the commit) -> answers and dead letters -> commit of the offsets

Each arrow overlaps with the batches before and after. At most two batches are scored and not committed, and a session
has at most half a deduplication window of events in each. So a crash replays no more events of a session than its
record recognises, and each counts once. Events of one session keep their order: one batch is scored at a time, and its
first temporary failure ends the attempt before later events of that session begin.
"""

import asyncio
import signal
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

import msgspec
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Message

from app.api.bodies import score_json
from app.api.services import Services
from app.errors import (
    BodyTooLargeError,
    ConflictError,
    DeadlineExceededError,
    InvalidJsonError,
    OverloadedError,
    ShuttingDownError,
    StoreUnavailableError,
    WillbuyError,
    without_traceback,
)
from app.kafka.options import KafkaOptions
from app.kafka.sink import OutMessage, Sink, check_clients
from app.kafka.source import Source
from app.monitoring.failures import Failures
from app.runtime.slices import Slices
from app.schemas.events import EventBody
from app.scoring.events import QueuedEvent
from app.scoring.parsing import parse_event
from app.scoring.session_update import Score

# Failures that another attempt may not have; everything else is an answer or a dead letter.
_TEMPORARY: Final = (
    ConflictError,
    DeadlineExceededError,
    OverloadedError,
    ShuttingDownError,
    StoreUnavailableError,
)
_FIRST_WAIT_S: Final = 0.1
_LONGEST_WAIT_S: Final = 1.0
# Brokers send a backlog partition by partition. A batch of one has few sessions, so a step of the model has few rows.
_TAKEN_BATCHES: Final = 4
# A pause makes librdkafka fetch anew what it has fetched, so it is for stalls; and the group expects polls.
_PAUSE_AFTER_S: Final = 1.0
_DRAIN_S: Final = 10.0
# Longer than a batch takes to end or to give up. An unfinished one is read again by the partitions' next owner.
_RELEASE_S: Final = 10.0
# Below the brokers' default limit of a message, 1 MB; the whole message stays at its source.
_LARGEST_DEAD_LETTER: Final = 512 * 1024
# With partition and offset, below the longest id of an event.
_TOPIC_IN_ID: Final = 90


@dataclass(slots=True)
class _Row:
    """One message, from its topic to its result."""

    message: Message
    partition: int
    body: EventBody | None = None
    queued: QueuedEvent | None = None
    result: Score | Exception | None = None


@dataclass(slots=True, eq=False)
class _Batch:
    rows: list[_Row]
    give_up_at: float
    scored: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once no event of it is folded any more."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once its offsets are committed, or others have its partitions."""

    @property
    def partitions(self) -> set[int]:
        return {row.partition for row in self.rows}

    def next_offsets(self) -> dict[int, int]:
        """Return the offset behind the messages with a result, by partition; none behind one without a result."""
        found: dict[int, int] = {}
        stopped: set[int] = set()
        for row in self.rows:
            if row.result is None:
                stopped.add(row.partition)
            elif row.partition not in stopped:
                found[row.partition] = row.message.offset() + 1  # type: ignore[operator]  # a message without error has one
        return found


class KafkaFeed:
    """Feeds a service with the events of a topic.

    Args:
        options: topics and clients.

    Attributes:
        failure: what ended the feed, and with it the process; None: nothing has.

    Raises:
        ValueError: the clients' configuration is wrong.
    """

    def __init__(self, options: KafkaOptions) -> None:
        check_clients(options)
        self._options = options
        self.failure: Exception | None = None
        self._closing = False
        self._taken: dict[int, deque[Message]] = {}
        """Those that are not in a batch yet, by partition."""
        self._ready: _Batch | None = None
        """The next batch."""
        self._open: list[_Batch] = []
        """Batches that are scored or committed."""
        self._leaving: set[int] = set()
        """Partitions that are being given up."""
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._end_task: asyncio.Task[None] | None = None

    async def start(self, services: Services) -> None:
        """Join the group and begin; call once, inside the event loop."""
        self._services = services
        settings = services.settings
        self._most = min(settings.max_batch_events, settings.max_queue)
        self._most_of_session = max(1, settings.dedupe_window // 2)
        failures = Failures(services.metrics.kafka_errors, services.logger, event="kafka_failed")
        self._sink = Sink(self._options, failures=failures)
        self._source = Source(
            self._options,
            release=self._release,
            metrics=services.metrics,
            failures=failures,
            logger=services.logger,
        )
        services.readiness.others["kafka"] = self._source.check
        await self._source.start()
        self._task = asyncio.create_task(self._run(), name="kafka")

    async def close(self) -> None:
        """End what is begun, commit it, and leave the group; may be called again."""
        if self._end_task is None and self._task is not None:
            self._end_task = asyncio.create_task(self._finish(self._task), name="kafka-end")
        if self._end_task is not None:
            await self._end_task

    async def _finish(self, task: asyncio.Task[None]) -> None:
        self._closing = True
        self._changed.set()
        await asyncio.wait([task], timeout=_DRAIN_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await self._source.close()
        self._sink.close()

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read())
                tasks.create_task(self._work(tasks))
        except* Exception as group:
            self.failure = group.exceptions[0]
            self._services.logger.exception("kafka_ended")
            # The server stops as it always does; `willbuy consume` looks at `failure` then.
            signal.raise_signal(signal.SIGTERM)

    async def _read(self) -> None:
        """Keep the next batch ready."""
        while not self._closing:
            await self._take()
            if not self._taken:
                continue
            self._ready = await self._next_batch()
            self._changed.set()
            await self._handed_over()

    async def _take(self) -> None:
        """Take what is there; wait for it only if nothing else is to be done."""
        room = _TAKEN_BATCHES * self._most - sum(map(len, self._taken.values()))
        for message in await self._source.take(max(1, room), waits=not self._taken):
            self._taken.setdefault(message.partition(), deque()).append(message)  # type: ignore[arg-type]  # it has one

    async def _handed_over(self) -> None:
        """Wait until the batch is taken; pause meanwhile if that takes long."""
        is_paused = False
        while self._ready is not None and not self._closing:
            self._changed.clear()
            try:
                async with asyncio.timeout(_PAUSE_AFTER_S):
                    await self._changed.wait()
            except TimeoutError:
                # Each time, as a rebalance may have brought partitions.
                await self._source.pause()
                is_paused = True
                # Serves rebalances, and shows the group that this member is alive.
                await self._take()
        if is_paused:
            await self._source.resume()

    async def _next_batch(self) -> _Batch:
        """Return the next batch: of all partitions alike, and of no session too much."""
        give_up_at = asyncio.get_running_loop().time() + self._services.settings.request_timeout_s
        rows: list[_Row] = []
        of_session: Counter[str] = Counter()
        slices = Slices()
        turns = deque(self._taken.items())
        while turns and len(rows) < self._most:
            partition, taken = turns.popleft()
            if not taken:
                continue
            row = _Row(taken[0], partition)
            try:
                row.body = self._body(row.message)
                if of_session[row.body.session_id] == self._most_of_session:
                    # All behind it in its partition waits too, as offsets are committed in order.
                    continue
                of_session[row.body.session_id] += 1
                self._validate(row, give_up_at)
            except Exception as exc:  # noqa: BLE001 - whatever a message raises is the reason of its dead letter
                row.result = without_traceback(exc)
            taken.popleft()
            rows.append(row)
            turns.append((partition, taken))
            await slices.pause()
        self._taken = {partition: taken for partition, taken in self._taken.items() if taken}
        return _Batch(rows, give_up_at)

    def _body(self, message: Message) -> EventBody:
        """Return the event in a message; its place in the topic is the id, and its time the time, of one without."""
        value = message.value()
        if value is None:
            raise InvalidJsonError("The message has no value.")
        if len(value) > (most := self._services.settings.max_body_bytes):
            raise BodyTooLargeError(f"Expected an event of at most {most} bytes.")
        body = parse_event(value)
        if not body.event_id:
            name = f"{self._options.topic[-_TOPIC_IN_ID:]}/{message.partition()}/{message.offset()}"
            body = msgspec.structs.replace(body, event_id=name)
        if not isinstance(body.timestamp, int):
            kind, timestamp_ms = message.timestamp()
            if kind != TIMESTAMP_NOT_AVAILABLE:
                body = msgspec.structs.replace(body, timestamp=timestamp_ms)
        return body

    def _validate(self, row: _Row, give_up_at: float) -> None:
        if row.body is not None:
            services = self._services
            row.queued = services.intake.submission(
                row.body, now_ms=services.now_ms(), model=services.model, give_up_at=give_up_at
            )

    async def _work(self, tasks: asyncio.TaskGroup) -> None:
        """Score one batch after another, and commit each while the next one is scored."""
        ending: asyncio.Task[None] | None = None
        while (batch := await self._next()) is not None:
            await self._score(batch)
            batch.scored.set()
            if ending is not None:
                await ending
            ending = tasks.create_task(self._end(batch))

    async def _next(self) -> _Batch | None:
        while self._ready is None and not self._closing:
            self._changed.clear()
            await self._changed.wait()
        if self._closing:
            # Not begun: the next owner of its partitions reads it.
            return None
        batch, self._ready = self._ready, None
        self._changed.set()
        if batch is not None:
            self._open.append(batch)
        return batch

    async def _score(self, batch: _Batch) -> None:
        """Give each row its result, except those that this replica must not work on any more."""
        services, wait_s = self._services, _FIRST_WAIT_S
        give_up_at = batch.give_up_at
        rows = [row for row in batch.rows if row.queued is not None]
        while rows := list(self._wanted(rows)):
            try:
                results: Sequence[Score | Exception | None] = await services.batcher.submit_many(
                    [row.queued for row in rows if row.queued is not None],
                    give_up_at=give_up_at,
                    stops_at=_is_temporary,
                )
            except _TEMPORARY as exc:
                results = [exc] * len(rows)
            left = []
            for row, result in zip(rows, results, strict=True):
                if result is None or _is_temporary(result):
                    left.append(row)
                else:
                    row.result = result
            if not left:
                return
            services.metrics.kafka_retries.inc()
            await asyncio.sleep(wait_s)
            wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)
            give_up_at = asyncio.get_running_loop().time() + services.settings.request_timeout_s
            rows = []
            for row in left:
                try:
                    self._validate(row, give_up_at)
                except WillbuyError as exc:
                    row.result = without_traceback(exc)
                else:
                    rows.append(row)

    def _wanted(self, rows: Iterable[_Row]) -> Iterable[_Row]:
        """Yield the rows that are this replica's to work on."""
        return () if self._closing else (row for row in rows if row.partition in self._source.partitions)

    async def _end(self, batch: _Batch) -> None:
        """Send the answers and dead letters of a batch, then commit its offsets."""
        try:
            for row in batch.rows:
                if (message := self._out(row)) is not None:
                    await self._sink.send(message)
            if await self._sink.delivered(lambda: any(self._wanted(batch.rows))):
                await self._commit(batch)
        finally:
            self._open.remove(batch)
            batch.ended.set()

    async def _commit(self, batch: _Batch) -> None:
        """Commit what has a result, of the partitions that are still this replica's."""
        while True:
            ours = self._source.partitions | self._leaving
            offsets = {partition: offset for partition, offset in batch.next_offsets().items() if partition in ours}
            if await self._source.commit(offsets):
                self._services.metrics.kafka_messages.inc(sum(row.partition in offsets for row in batch.rows))
                return
            if not any(self._wanted(batch.rows)):
                return
            await asyncio.sleep(_FIRST_WAIT_S)

    def _out(self, row: _Row) -> OutMessage | None:
        """Return what a row's result is sent as."""
        message, result, options = row.message, row.result, self._options
        if result is None:
            return None
        if isinstance(result, Score):
            if options.scores is None:
                return None
            event_id = row.body.event_id if row.body is not None else None
            name: list[tuple[str, str | bytes | None]] = [("willbuy-event-id", str(event_id).encode())]
            return OutMessage(options.scores, result.session_id.encode(), score_json(result), name)
        if isinstance(result, WillbuyError):
            code, reason = result.code, result.detail
        else:
            code, reason = WillbuyError.code, "The service failed on this event; the log says why."
            self._services.logger.error("event_failed", exc_info=result)
        self._services.metrics.kafka_dead_letters.labels(code).inc()
        value = message.value()
        headers = [
            *(message.headers() or ()),
            ("willbuy-code", code.encode()),
            ("willbuy-reason", reason.encode()),
            ("willbuy-source", f"{options.topic}/{message.partition()}/{message.offset()}".encode()),
        ]
        if value is not None and len(value) > _LARGEST_DEAD_LETTER:
            headers.append(("willbuy-bytes", str(len(value)).encode()))
            value = value[:_LARGEST_DEAD_LETTER]
        return OutMessage(options.dead_letters, message.key(), value, headers)

    async def _release(self, partitions: AbstractSet[int], is_lost: bool) -> None:
        """Return once nothing of these partitions is worked on, or when all of it must have been given up."""
        for partition in partitions & self._taken.keys():
            # The next batch may be taking from it.
            self._taken.pop(partition).clear()
        if self._ready is not None:
            self._ready.rows = [row for row in self._ready.rows if row.partition not in partitions]
        if not is_lost:
            self._leaving |= partitions
        try:
            async with asyncio.timeout(_RELEASE_S):
                for batch in list(self._open):
                    if not partitions.isdisjoint(batch.partitions):
                        # Of lost partitions nothing can be committed, and a commit would wait for this.
                        await (batch.scored if is_lost else batch.ended).wait()
        finally:
            self._leaving -= partitions


def _is_temporary(result: object) -> bool:
    return isinstance(result, _TEMPORARY)
