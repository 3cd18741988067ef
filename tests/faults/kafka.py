"""The same sessions through a topic: `willbuy consume` in place of requests, and answers from another topic."""

import asyncio
import json
import time
from pathlib import Path
from random import Random
from typing import Final

from support.kafka import MockBroker, headers_of

from faults.faults import EVENTS_TOPIC, SCORES_TOPIC, SESSION_S
from faults.ledger import HTTP_OK, Attempt, Ledger, Sent
from faults.workload import Posting, SessionPlan

_DEAD: Final = f"{EVENTS_TOPIC}-dead-letters"
_PARTITIONS: Final = 6
# After the last fault: a rebalance, and what has piled up, on a busy machine.
_PATIENCE_S: Final = 120.0


def start_broker() -> MockBroker:
    """Start a broker that has the topics."""
    return MockBroker(EVENTS_TOPIC, SCORES_TOPIC, _DEAD, partitions=_PARTITIONS)


def consume_command(kafka: MockBroker, directory: Path) -> list[str]:
    """Return command and options of a consumer."""
    properties = directory / "consumer.properties"
    properties.write_text(f"session.timeout.ms={SESSION_S * 1000:.0f}\nheartbeat.interval.ms=300\n")
    options = {"brokers": kafka.brokers, "topic": EVENTS_TOPIC, "scores": SCORES_TOPIC, "properties": str(properties)}
    return ["consume", *(text for name, value in options.items() for text in (f"--{name}", value))]


class KafkaDriver:
    """Plays sessions, and files the answers in the ledger.

    Its times are no clock's: an event's number in its session. So the oracle takes every other order than the order in
    which a session's events were sent as a violation.

    Args:
        kafka: the broker.
        ledger: gets events and answers.
        seed: seed of think times.
        think_s: mean time between two steps of a session.
    """

    def __init__(self, kafka: MockBroker, ledger: Ledger, *, seed: int, think_s: float) -> None:
        self._topics = kafka.topics
        self._ledger = ledger
        self._random = Random(seed)
        self._think_s = think_s
        self._messages = 0

    async def play(self, plan: SessionPlan) -> None:
        """Send a session; repeated events are sent twice."""
        for step in plan.steps:
            await asyncio.sleep(self._random.expovariate(1 / self._think_s))
            for posting in step:
                self._note(plan.session_id, posting)
            messages = [(plan.session_id, posting.body) for posting in step for _ in range(posting.copies)]
            self._messages += len(messages)
            await asyncio.to_thread(self._topics.send, EVENTS_TOPIC, messages)

    def collect(self) -> None:
        """File every answer and dead letter once all messages are committed, or after a time in which they were not."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while self._topics.committed(EVENTS_TOPIC) < self._messages and time.monotonic() < deadline_s:
            time.sleep(0.2)
        by_id = {sent.posting.event_id: sent for sent in self._ledger}
        for message in self._topics.read(SCORES_TOPIC):
            sent = by_id[headers_of(message)["willbuy-event-id"]]
            sent.attempts.append(_attempt(sent, HTTP_OK, json.loads(message.value() or b"")))
        for message in self._topics.read(_DEAD):
            sent = by_id[json.loads(message.value() or b"")["event_id"]]
            code = headers_of(message)["willbuy-code"]
            sent.attempts.append(_attempt(sent, 422, {"code": code}))
        for sent in by_id.values():
            if not sent.attempts:
                sent.attempts.append(_attempt(sent, None, {}))

    def _note(self, session_id: str, posting: Posting) -> None:
        known = len(self._ledger.sessions.get(session_id, ()))
        sent = self._ledger.sent(session_id, posting)
        sent.wanted = True
        sent.first_sent_s = min(sent.first_sent_s, float(known))


def _attempt(sent: Sent, status: int | None, body: dict[str, object]) -> Attempt:
    return Attempt(0, sent.first_sent_s, sent.first_sent_s + 0.5, status, body)
