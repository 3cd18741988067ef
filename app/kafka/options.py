"""The options of `willbuy consume`, and what they are for librdkafka."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# The client commits by itself: never before Redis has the events and the brokers have the answers.
_OURS: Final[Mapping[str, str | bool]] = {"enable.auto.commit": False, "enable.auto.offset.store": False}
_CONSUMER: Final[Mapping[str, str | int]] = {
    # A message that came before its partition was known must not be skipped.
    "auto.offset.reset": "earliest",
    # A rebalance stops only the partitions that move.
    "partition.assignment.strategy": "cooperative-sticky",
    # Of each partition so much at a time, about 80 events; else a batch of a backlog is of one partition, so of few
    # sessions, and the model steps different sessions together.
    "fetch.message.max.bytes": 16384,
    # librdkafka's default is 64 MiB, and 100,000 messages.
    "queued.max.messages.kbytes": 16384,
    "queued.min.messages": 10_000,
}
_PRODUCER: Final[Mapping[str, str | bool]] = {
    # Answers of a session keep their order when one of them has to be sent again.
    "enable.idempotence": True,
    "delivery.report.only.error": True,
}
# Errors reach the log through callbacks; librdkafka's own lines on stderr would not have the log's form.
_BOTH: Final[Mapping[str, str | int]] = {"client.id": "willbuy", "log_level": 2}


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """What to read, and where to answer.

    Attributes:
        topic: the events.
        properties: librdkafka's configuration as given, `bootstrap.servers` and `group.id` among it.
        scores: topic of the answers; None: no answers.
        dead_letters: topic of the messages that are no events, or that cannot be folded.
    """

    topic: str
    properties: Mapping[str, str]
    scores: str | None
    dead_letters: str

    @property
    def of_consumer(self) -> dict[str, str | int | bool]:
        """Configuration of the consumer."""
        return {**_BOTH, **_CONSUMER, **self.properties, **_OURS}

    @property
    def of_producer(self) -> dict[str, str | int | bool]:
        """Configuration of the producer."""
        return {**_BOTH, **_PRODUCER, **self.properties}


def kafka_options(
    *, topic: str, brokers: str | None, group: str, scores: str | None, dead_letters: str | None, file: Path | None
) -> KafkaOptions:
    """Return the options of the command; its own come before those of the file.

    Raises:
        ValueError: the file cannot be used, or there are no brokers.
    """
    properties = {} if file is None else read_properties(file)
    if brokers is not None:
        properties["bootstrap.servers"] = brokers
    properties.setdefault("group.id", group)
    if not properties.get("bootstrap.servers"):
        raise ValueError("--brokers: expected HOST:PORT, or `bootstrap.servers` in --properties")
    return KafkaOptions(topic, properties, scores, dead_letters or f"{topic}-dead-letters")


def read_properties(file: Path) -> dict[str, str]:
    """Return the lines `name=value` of a properties file; `#` and `!` begin comments.

    Raises:
        ValueError: the file cannot be read, or a line has no value, or the name is one that this client sets itself.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ValueError(f"--properties: {file} cannot be read: {exc}") from exc
    found: dict[str, str] = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line[0] in "#!":
            continue
        name, equals, value = line.partition("=")
        name = name.strip()
        # Not the line itself, which may be a password.
        if not equals or not name:
            raise ValueError(f"--properties: {file}, line {number}: expected name=value")
        if name in _OURS:
            raise ValueError(f"--properties: {file}, line {number}: {name} is not yours to set")
        found[name] = value.strip()
    return found
