"""Groups of real servers: a cluster of primaries, and a primary with a replica and sentinels."""

import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

from redis import Redis
from redis.crc import key_slot

from support.redis_servers import RedisServer, free_port

_SLOTS = 16384


def until(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _port_with_bus() -> int:
    """Return a free port whose cluster bus port, ten thousand above, is free too."""
    while True:
        port = free_port()
        if port >= 22_000:
            continue  # the bus would be among the ports that connections get by themselves
        with socket.socket() as listener:
            if listener.connect_ex(("127.0.0.1", port + 10_000)) != 0:
                return port


class RedisCluster:
    """Primaries with equal shares of the slots; `replicas` of them have one replica each, listed last in `nodes`."""

    def __init__(self, binary: Path, directory: Path, *, primaries: int = 3, replicas: int = 0) -> None:
        options = (
            *("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-config-file", "nodes.conf"),
            *("--cluster-require-full-coverage", "no"),
        )
        self.nodes = [
            RedisServer(binary, directory / f"node-{number}", options=options) for number in range(primaries + replicas)
        ]
        for node in self.nodes:
            node.port = _port_with_bus()
        self.primaries, self.replicas = self.nodes[:primaries], self.nodes[primaries:]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        size = _SLOTS // len(self.primaries) + 1
        for number, node in enumerate(self.primaries):
            slots = range(number * size, min((number + 1) * size, _SLOTS))
            assert node.command("CLUSTER", "ADDSLOTS", *map(str, slots)) == b"+OK\r\n"
            assert node.command("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1)) == b"+OK\r\n"
        for node in self.nodes[1:]:
            assert node.command("CLUSTER", "MEET", "127.0.0.1", str(self.nodes[0].port)) == b"+OK\r\n"
        everybody = f"cluster_known_nodes:{len(self.nodes)}".encode()
        until(lambda: all(everybody in node.command("CLUSTER", "INFO") for node in self.nodes))
        for replica, primary in zip(self.replicas, self.primaries, strict=False):
            until(partial(self._replicates, replica, primary))
        until(lambda: all(b"cluster_state:ok" in node.command("CLUSTER", "INFO") for node in self.nodes))
        until(lambda: all(b"master_link_status:up" in node.command("INFO", "replication") for node in self.replicas))

    def announce(self, ports: Sequence[int]) -> None:
        """Have the nodes tell clients these ports, where something forwards to them. Call it before `start`."""
        for node, port in zip(self.nodes, ports, strict=True):
            bus = str(node.port + 10_000)
            node.options += ("--cluster-announce-port", str(port), "--cluster-announce-bus-port", bus)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def id_of(self, node: RedisServer) -> str:
        return node.command("CLUSTER", "MYID").split(b"\r\n")[1].decode()

    def _replicates(self, replica: RedisServer, primary: RedisServer) -> bool:
        return replica.command("CLUSTER", "REPLICATE", self.id_of(primary)) == b"+OK\r\n"

    def owner_of(self, session_id: str) -> RedisServer:
        """Return the primary that has the session's slot at the start."""
        size = _SLOTS // len(self.primaries) + 1
        return self.primaries[self.slot_of(session_id) // size]

    def slot_of(self, session_id: str) -> int:
        return key_slot(f"{{{crc32(session_id.encode()) % 256:02x}}}".encode())

    def begin_to_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        assert target.command("CLUSTER", "SETSLOT", str(slot), "IMPORTING", self.id_of(source)) == b"+OK\r\n"
        assert source.command("CLUSTER", "SETSLOT", str(slot), "MIGRATING", self.id_of(target)) == b"+OK\r\n"

    def move_keys(self, slot: int, source: RedisServer, target: RedisServer, *, most: int = 1000) -> None:
        for _ in range(most):
            if (reply := source.command("CLUSTER", "GETKEYSINSLOT", str(slot), "1")) == b"*0\r\n":
                return
            self.move_key(reply.split(b"\r\n")[2].decode(), source, target)

    def move_key(self, key: str, source: RedisServer, target: RedisServer) -> None:
        answer = source.command("MIGRATE", "127.0.0.1", str(target.port), key, "0", "5000")
        assert answer == b"+OK\r\n", answer

    def end_the_move(self, slot: int, target: RedisServer) -> None:
        for node in (target, *(node for node in self.primaries if node is not target)):
            assert node.command("CLUSTER", "SETSLOT", str(slot), "NODE", self.id_of(target)) == b"+OK\r\n"


class Sentinel(RedisServer):
    """Watches one primary under the name `shop`."""

    def __init__(self, binary: Path, directory: Path, primary: RedisServer, *, quorum: int, password: str = "") -> None:
        super().__init__(binary, directory)
        self._watched_port = primary.port
        self._quorum = quorum
        self._password = password

    def arguments(self) -> list[str | Path]:
        configuration = self.directory / "sentinel.conf"
        if not configuration.exists():
            lines = [
                f"port {self.port}",
                "bind 127.0.0.1",
                f"sentinel monitor shop 127.0.0.1 {self._watched_port} {self._quorum}",
                "sentinel down-after-milliseconds shop 500",
                "sentinel failover-timeout shop 2000",
                *([f"requirepass {self._password}"] if self._password else []),
            ]
            configuration.write_text("\n".join(lines) + "\n")
        return [configuration, "--sentinel"]

    def watch(self, port: int) -> None:
        """Watch, and tell clients, another port that leads to the primary. Call it before `start`."""
        self._watched_port = port

    def ask(self, *words: str) -> Any:
        """Run one command with the password."""
        with Redis(port=self.port, password=self._password or None) as client:
            return client.execute_command(*words)


class Sentinels:
    """A primary, a replica, and sentinels that promote the replica when the primary fails."""

    def __init__(self, binary: Path, directory: Path, *, sentinels: int = 3, password: str = "") -> None:
        self.primary = RedisServer(binary, directory / "primary")
        replicaof = ("--replicaof", "127.0.0.1", str(self.primary.port))
        self.replica = RedisServer(binary, directory / "replica", options=replicaof)
        self.sentinels = [
            Sentinel(
                binary, directory / f"sentinel-{number}", self.primary, quorum=sentinels // 2 + 1, password=password
            )
            for number in range(sentinels)
        ]

    @property
    def url(self) -> str:
        return "redis+sentinel://" + ",".join(f"127.0.0.1:{one.port}" for one in self.sentinels) + "/shop"

    def start(self) -> None:
        self.primary.start()
        self.replica.start()
        until(lambda: b"master_link_status:up" in self.replica.command("INFO", "replication"))
        for sentinel in self.sentinels:
            sentinel.start()
        until(lambda: all(self._is_settled(sentinel) for sentinel in self.sentinels))

    def stop(self) -> None:
        for server in (*self.sentinels, self.replica, self.primary):
            server.stop()

    def fail_over(self) -> None:
        """Swap the roles of primary and replica while both are alive."""
        self.sentinels[0].ask("SENTINEL FAILOVER", "shop")

    def named_port(self) -> int:
        return int(self.sentinels[0].ask("SENTINEL GET-MASTER-ADDR-BY-NAME", "shop")[1])

    def _is_settled(self, sentinel: Sentinel) -> bool:
        seen = sentinel.ask("SENTINEL MASTER", "shop")
        return bool(seen["num-slaves"] == 1 and seen["num-other-sentinels"] == len(self.sentinels) - 1)
