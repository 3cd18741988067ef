"""The processes under test: replicas of the service, one Redis, and the proxy between them."""

import asyncio
import http.client
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.kafka import MockBroker
from support.keys import make_key, write_keys
from support.redis_servers import RedisServer
from support.redis_topologies import RedisCluster
from support.service import ROOT, Service
from support.warm_process import WarmProcess

from app.auth.scopes import Scope
from faults.client import HttpClient
from faults.proxy import Proxy

GRACE_S = 20


@dataclass(frozen=True, slots=True)
class Pause:
    """A period in which a replica was stopped and could not answer."""

    replica: int
    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Termination:
    """The end of a replica after SIGTERM.

    Attributes:
        status: exit status; None if it had to be killed.
    """

    replica: int
    signalled_s: float
    ended_s: float
    status: int | None


class Replica(Service):
    """One `willbuy` process of a command, optionally without one of its guarantees (`broken`)."""

    def __init__(
        self,
        log: Path,
        settings: Mapping[str, object],
        breakage: str | None = None,
        command: Sequence[str] = ("serve",),
    ) -> None:
        super().__init__(log, dict(settings))
        self._command = command
        self._program, *self._breakage = ["willbuy"] if breakage is None else ["broken", breakage]
        self._environment["PYTHONPATH"] = str(ROOT / "tests")

    def launch(self) -> None:
        """Start the process without waiting."""
        arguments = [*self._breakage, *self._command, "--host", "127.0.0.1", "--port", str(self.port)]
        self._process = WarmProcess(self._program, arguments, cwd=ROOT, env=self._environment, log=self.log)

    def _answers(self) -> bool:
        # Cheap, because it is called many times a second while a fleet starts on few cores.
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()

    def crash(self) -> None:
        """SIGKILL the process, like the kernel's OOM killer; do nothing if it has ended."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Fleet:
    """Replicas behind a list of ports, like a balancer without health checks.

    Attributes:
        artifacts: the models of the run; replicas start with the first.
        clients: one for each replica, in order.
        standby: a Redis that replicates the primary over `link`, or None.
        cluster: a cluster that replicas use in place of `redis`, without a proxy, or None.
        kafka: the broker of the replicas' events, or None.
        pauses, terminations: what the oracle must know to judge requests that were not answered.
    """

    def __init__(
        self,
        redis: RedisServer,
        directory: Path,
        *,
        artifacts: Sequence[Path],
        replicas: int,
        settings: Mapping[str, object],
        standby: RedisServer | None = None,
        cluster: RedisCluster | None = None,
        breakage: str | None = None,
        kafka: MockBroker | None = None,
        command: Sequence[str] = ("serve",),
    ) -> None:
        self.redis = redis
        self.kafka = kafka
        self._command = command
        self.standby = standby
        self.cluster = cluster
        self.proxy = Proxy(redis.port)
        self.link = Proxy(redis.port)
        self.artifacts = artifacts
        self.clients: list[HttpClient] = []
        self.replicas: list[Replica] = []
        self.pauses: list[Pause] = []
        self.terminations: list[Termination] = []
        self._directory = directory
        self._count = replicas
        self._settings = dict(settings)
        self._breakage = breakage

    async def start(self) -> None:
        """Start all processes and return once they answer."""
        await asyncio.to_thread(self.redis.start if self.cluster is None else self.cluster.start)
        await self.proxy.start()
        if self.standby is not None:
            await self.link.start()
            self.standby.options = ("--replicaof", "127.0.0.1", str(self.link.port))
            await asyncio.to_thread(self.standby.start)
        # A reload needs a key.
        key = make_key(*Scope)
        keys = write_keys(self._directory / "keys.toml", key)
        for number in range(self._count):
            settings = {
                "artifact": self._model_path(number),
                "redis_url": self.cluster.url if self.cluster else f"redis://127.0.0.1:{self.proxy.port}/0",
                "api_keys_file": keys,
                **self._settings,
            }
            replica = Replica(self._directory / f"replica-{number}.log", settings, self._breakage, self._command)
            self.replicas.append(replica)
            self.clients.append(HttpClient(replica.port, key.key))
            self.put_model(number, self.artifacts[0])
        await asyncio.gather(*(asyncio.to_thread(replica.start) for replica in self.replicas))

    async def close(self) -> None:
        """End every process."""
        for client in self.clients:
            client.close()
        for replica in self.replicas:
            replica.crash()
        await self.proxy.close()
        await self.link.close()
        for server in (self.redis, self.standby):
            if server is not None:
                await asyncio.to_thread(server.stop)
        if self.cluster is not None:
            await asyncio.to_thread(self.cluster.stop)
        if self.kafka is not None:
            await asyncio.to_thread(self.kafka.stop)

    @property
    def store_url(self) -> str:
        """The address of the sessions, without the proxy."""
        return self.redis.url if self.cluster is None else self.cluster.url

    def put_model(self, number: int, artifact: Path) -> None:
        """Install an artifact for a replica, as a release does: write a new file and rename it."""
        path = self._model_path(number)
        shutil.copy(artifact, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def _model_path(self, number: int) -> Path:
        return self._directory / f"live-{number}.pt"

    async def restart(self, number: int) -> None:
        """Start a replica that has ended."""
        self.clients[number].close()
        await asyncio.to_thread(self.replicas[number].start)

    async def pause(self, number: int, seconds: float) -> None:
        """SIGSTOP a replica, like a starved or migrated container, and SIGCONT it."""
        began_s = time.monotonic()
        os.kill(self.replicas[number].pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        os.kill(self.replicas[number].pid, signal.SIGCONT)
        self.pauses.append(Pause(number, began_s, time.monotonic()))

    def fail_over(self) -> None:
        """Kill Redis, make the standby the primary in its current state, and restart the killed one as its standby.

        What sentinels do, at the moment that the harness chooses.
        """
        if self.standby is None:
            raise ValueError("there is no standby")
        self.redis.kill()
        self.link.cut()
        self.redis, self.standby = self.standby, self.redis
        self.redis.command("REPLICAOF", "NO", "ONE")
        self.proxy.target_port = self.link.target_port = self.redis.port
        self.proxy.cut()
        self.link.delay_s = 0.0
        self.standby.options = ("--replicaof", "127.0.0.1", str(self.link.port))
        self.standby.start()

    async def terminate(self, number: int) -> None:
        """SIGTERM a replica, and wait for its end."""
        signalled_s = time.monotonic()
        self.replicas[number].terminate()
        try:
            status: int | None = await asyncio.to_thread(self.replicas[number].wait, GRACE_S)
        except subprocess.TimeoutExpired:
            self.replicas[number].crash()
            status = None
        self.terminations.append(Termination(number, signalled_s, time.monotonic(), status))
