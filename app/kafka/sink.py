"""The topics of answers and dead letters: one idempotent producer for both."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from app.kafka.options import KafkaOptions
from app.kafka.source import error_of
from app.monitoring.failures import Failures

_FLUSH_S: Final = 1.0
_AGAIN_S: Final = 0.5
_ROOM_S: Final = 0.1


class OutMessage(msgspec.Struct, frozen=True):
    """One message to send."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, str | bytes | None]]


class Sink:
    """Sends messages until the brokers have them.

    Args:
        options: brokers and topics.
        failures: counts and logs errors.
    """

    def __init__(self, options: KafkaOptions, *, failures: Failures) -> None:
        self._failures = failures
        self._failed: list[OutMessage] = []
        self._fatal: KafkaError | None = None
        self._producer: Producer = Producer({**options.of_producer, "error_cb": self._on_error})

    async def send(self, message: OutMessage) -> None:
        """Queue a message; `delivered` tells what becomes of it."""
        while True:
            try:
                self._producer.produce(
                    message.topic,
                    message.value,
                    message.key,
                    headers=message.headers,
                    on_delivery=partial(self._on_delivery, message),
                )
            except BufferError:
                await asyncio.to_thread(self._producer.poll, _ROOM_S)
            except KafkaException as exc:
                self._note(error_of(exc))
                self._failed.append(message)
                return
            else:
                return

    async def delivered(self, is_wanted: Callable[[], bool]) -> bool:
        """Wait until the brokers have every message; what they refuse is sent again for as long as `is_wanted` says.

        Raises:
            KafkaException: an error that the producer cannot get over.
        """
        while True:
            # In a thread, which has the GIL only while it reports failures.
            left = await asyncio.to_thread(self._producer.flush, _FLUSH_S)
            if self._fatal is not None:
                raise KafkaException(self._fatal)
            if not left and not self._failed:
                return True
            if not is_wanted():
                return False
            if self._failed:
                await asyncio.sleep(_AGAIN_S)
                again, self._failed = self._failed, []
                for message in again:
                    await self.send(message)

    def close(self) -> None:
        """Drop what is not delivered."""
        self._producer.purge()

    def _on_delivery(self, message: OutMessage, error: KafkaError | None, _reported: Message) -> None:
        if error is not None:
            self._note(error)
            self._failed.append(message)

    def _on_error(self, error: KafkaError) -> None:
        self._note(error)
        if error.fatal():
            self._fatal = error

    def _note(self, error: KafkaError) -> None:
        self._failures.note(error.name(), KafkaException(error))


def check_clients(options: KafkaOptions) -> None:
    """Raise `ValueError` that names the property if the configuration of a client is wrong; connects nowhere."""
    try:
        Consumer(options.of_consumer).close()
        Producer(options.of_producer).close()
    except KafkaException as exc:
        raise ValueError(f"--properties: {error_of(exc).str()}") from exc
