"""The demo's shop behind Kafka: shoppers' events go into a topic, and the answers come from another one."""

import asyncio
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event as Flag
from threading import Thread
from typing import Any, Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

_PARTITIONS: Final = 6
_TIMEOUT_S: Final = 15.0
_POLL_S: Final = 0.2


class Topics:
    """Topics of one demo.

    Args:
        brokers: HOST:PORT, separated by commas.
    """

    def __init__(self, brokers: str) -> None:
        self.brokers = brokers
        run = secrets.token_hex(3)
        self.events, self.scores = f"willbuy-demo-{run}", f"willbuy-demo-{run}-scores"

    @contextmanager
    def created(self) -> Iterator[None]:
        """Create the topics, and delete them at the end; raise `ValueError` where the brokers refuse."""
        admin = AdminClient({"bootstrap.servers": self.brokers, "log_level": 0})
        names = [self.events, self.scores, f"{self.events}-dead-letters"]
        try:
            created = admin.create_topics([NewTopic(name, _PARTITIONS) for name in names], operation_timeout=_TIMEOUT_S)
            for done in created.values():
                done.result(_TIMEOUT_S)
        except (KafkaException, TimeoutError) as exc:
            raise ValueError(f"--kafka: {exc or 'no broker answers'}") from exc
        try:
            yield
        finally:
            admin.delete_topics(names)
            admin.poll(_POLL_S)

    def command(self) -> list[str]:
        """Return command and options of the service."""
        options = ("--brokers", self.brokers, "--topic", self.events, "--scores", self.scores, "--group", self.events)
        return ["consume", *options]


class TopicClient:
    """Sends events, and waits for their answers; use it inside the event loop."""

    def __init__(self, topics: Topics) -> None:
        self._topics = topics
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._stopped = Flag()
        self._producer = Producer({"bootstrap.servers": topics.brokers, "linger.ms": 0, "log_level": 0})
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()

    async def answered(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to an event, however long it takes."""
        answer: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._waiting[body["event_id"]] = answer
        self._producer.produce(self._topics.events, json.dumps(body).encode(), body["session_id"])
        self._producer.poll(0)
        return await answer

    def close(self) -> None:
        """End the thread that reads."""
        self._stopped.set()
        self._thread.join()

    def _read(self) -> None:
        consumer = Consumer(
            {"bootstrap.servers": self._topics.brokers, "group.id": self._topics.scores, "log_level": 0}
        )
        consumer.assign(
            [TopicPartition(self._topics.scores, number, OFFSET_BEGINNING) for number in range(_PARTITIONS)]
        )
        while not self._stopped.is_set():
            message = consumer.poll(_POLL_S)
            if message is None or message.error() is not None:
                continue
            headers: Any = message.headers()
            name = dict(headers)["willbuy-event-id"].decode()
            self._loop.call_soon_threadsafe(self._resolve, name, json.loads(message.value() or b"{}"))
        consumer.close()

    def _resolve(self, event_id: str, answer: dict[str, Any]) -> None:
        waiting = self._waiting.pop(event_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)
