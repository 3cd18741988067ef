"""The topic of the events: reads, follows rebalances, pauses, commits.

librdkafka calls back from the thread that polls. One thread of its own polls, so that the event loop never waits.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from structlog.typing import FilteringBoundLogger

from app.kafka.options import KafkaOptions
from app.monitoring.failures import Failures
from app.monitoring.metrics import Metrics

_POLL_S: Final = 0.2
_LAG_EVERY_S: Final = 1.0
_ASK_TIMEOUT_S: Final = 2.0


class Source:
    """The consumer group's member of this process.

    Args:
        options: brokers, topic and group.
        release: called in the event loop with partitions that this member is to give up, and whether others may have
            them already; returns once no message of theirs is worked on.
        metrics: lag, partitions, pauses.
        failures: counts and logs errors.
        logger: gets rebalances.
    """

    def __init__(
        self,
        options: KafkaOptions,
        *,
        release: Callable[[AbstractSet[int], bool], Coroutine[None, None, None]],
        metrics: Metrics,
        failures: Failures,
        logger: FilteringBoundLogger,
    ) -> None:
        self._topic = options.topic
        self._release = release
        self._metrics = metrics
        self._failures = failures
        self._logger = logger
        self._committed: dict[int, int] = {}
        self._has_joined = False
        self._gone: frozenset[int] = frozenset()
        self._lag_due_s = 0.0
        self._thread = ThreadPoolExecutor(1, "kafka")
        self._loop = asyncio.get_running_loop()
        self._consumer: Consumer = Consumer({**options.of_consumer, "error_cb": self._on_error})
        self.partitions: frozenset[int] = frozenset()
        """Those that this member owns; replaced by the thread that polls."""

    async def start(self) -> None:
        """Join the group."""
        await self._call(
            self._consumer.subscribe,
            [self._topic],
            on_assign=self._on_assign,
            on_revoke=partial(self._on_gone, is_lost=False),
            on_lost=partial(self._on_gone, is_lost=True),
        )

    async def close(self) -> None:
        """Leave the group."""
        await self._call(self._consumer.close)
        self._thread.shutdown(wait=False)

    async def take(self, most: int, *, waits: bool) -> list[Message]:
        """Return the messages that are there, at most `most`; wait a fifth of a second for the first if `waits`.

        Raises:
            KafkaException: an error that this member cannot get over.
        """
        messages: list[Message] = await self._call(self._take, most, _POLL_S if waits else 0)
        return messages

    async def pause(self) -> None:
        """Return no more messages until `resume`, and stay in the group."""
        self._metrics.kafka_paused.set(1)
        await self._call(lambda: self._consumer.pause(self._consumer.assignment()))

    async def resume(self) -> None:
        """End a pause."""
        self._metrics.kafka_paused.set(0)
        await self._call(lambda: self._consumer.resume(self._consumer.assignment()))

    async def commit(self, offsets: Mapping[int, int]) -> bool:
        """Commit the next offset of each partition; return False if it has to be tried again."""
        if not offsets:
            return True
        wanted = [TopicPartition(self._topic, partition, offset) for partition, offset in offsets.items()]
        try:
            # Not in the thread that polls, which waits for this in a rebalance.
            done = await asyncio.to_thread(self._consumer.commit, offsets=wanted, asynchronous=False)
            error = next((one.error for one in done or () if one.error is not None), None)
        except KafkaException as exc:
            error = error_of(exc)
        if error is not None:
            self._failures.note(error.name(), KafkaException(error))
            # Also of an old generation: the next one may keep the partitions, and `on_lost` tells if it does not.
            return False
        self._committed |= offsets
        return True

    async def check(self) -> str:
        """Return `ok` if a broker knows the topic and the group has this member; otherwise the error, or `joining`."""
        ask = partial(self._consumer.list_topics, self._topic, timeout=_ASK_TIMEOUT_S)
        try:
            error = (await asyncio.to_thread(ask)).topics[self._topic].error
        except KafkaException as exc:
            error = error_of(exc)
        except RuntimeError:
            return "closed"
        if error is not None:
            return str(error.name()).strip("_").lower()
        return "ok" if self._has_joined else "joining"

    async def _call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:  # noqa: ANN401 - any function's
        return await self._loop.run_in_executor(self._thread, partial(function, *args, **options))

    def _take(self, most: int, wait_s: float) -> list[Message]:
        first = self._consumer.poll(wait_s)
        self._gone = frozenset()
        found = [] if first is None else self._consumer.consume(most - 1, 0)
        # A rebalance between the two may have taken the first one's partition.
        if first is not None and first.partition() not in self._gone:
            found.insert(0, first)
        if time.monotonic() > self._lag_due_s:
            self._lag_due_s = time.monotonic() + _LAG_EVERY_S
            self._show_lag()
        messages = []
        for message in found:
            if (error := message.error()) is None:
                messages.append(message)
                continue
            self._failures.note(error.name(), KafkaException(error))
            if error.code() == KafkaError._FATAL:  # noqa: SLF001 - librdkafka's own error codes begin like this
                raise KafkaException(error)
        return messages

    def _show_lag(self) -> None:
        places = self._consumer.assignment()
        if unknown := [place for place in places if place.partition not in self._committed]:
            try:
                for place in self._consumer.committed(unknown, timeout=_ASK_TIMEOUT_S):
                    # Negative where nothing is committed yet.
                    self._committed.setdefault(place.partition, place.offset)
            except KafkaException as exc:
                self._failures.note(error_of(exc).name(), exc)
                return
        for place in places:
            low, high = self._consumer.get_watermark_offsets(place, cached=True) or (0, 0)
            committed = max(low, self._committed[place.partition])
            self._metrics.kafka_lag.labels(str(place.partition)).set(max(0, high - committed))

    def _on_assign(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        # One that was given up during a pause is still paused when it comes back.
        consumer.resume(places)
        numbers = {place.partition for place in places}
        self.partitions |= numbers
        self._has_joined = True
        self._metrics.kafka_partitions.set(len(self.partitions))
        self._logger.info("kafka_assigned", partitions=sorted(self.partitions), new=sorted(numbers))

    def _on_gone(self, _consumer: Consumer, places: list[TopicPartition], *, is_lost: bool) -> None:
        gone = frozenset(place.partition for place in places)
        # Nothing of theirs is begun any more; what has been stored is committed meanwhile.
        self.partitions -= gone
        self._gone |= gone
        try:
            asyncio.run_coroutine_threadsafe(self._release(gone, is_lost), self._loop).result()
        except Exception as exc:  # noqa: BLE001 - librdkafka must get its thread back; what is not committed is read again
            self._failures.note("RELEASE", exc)
        for number in gone:
            self._committed.pop(number, None)
            self._metrics.retire(self._metrics.kafka_lag, str(number))
        self._metrics.kafka_partitions.set(len(self.partitions))
        event = "kafka_lost" if is_lost else "kafka_revoked"
        self._logger.info(event, partitions=sorted(gone), left=sorted(self.partitions))

    def _on_error(self, error: KafkaError) -> None:
        self._failures.note(error.name(), KafkaException(error))


def error_of(failure: KafkaException) -> KafkaError:
    """Return what is in an exception of the client."""
    error: KafkaError = failure.args[0]
    return error
