"""What is loaded: willbuy as `willbuy serve` runs it, and each peer; started, asked until ready, and ended."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import httpx

from benchmarks.hotpath.processes import (
    CORES,
    BenchmarkError,
    cpu_s,
    fine_cpu_s,
    free_port,
    pinned,
    resident_bytes,
    start,
    stop,
    tree,
)
from benchmarks.hotpath.redis_server import RedisServer

ROOT: Final = Path(__file__).parents[2]
SINGLE_PATH: Final = "/v1/events"
BATCH_PATH: Final = "/v1/events/batch"
READY_PATH: Final = "/readyz"
BEFORE: Final = "-before"
"""Ends the name of willbuy in another state of the code."""
_OK: Final = 200
_ANSWER_TIMEOUT_S: Final = 5.0
# Of 200 events a request; with many more, more events would wait than `max_queue` allows.
_BATCH_CONNECTIONS: Final = 8
_KEYS_FILE: Final = "keys.toml"


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        port: where it listens.
        process: its first process.
        headers: what a request needs beside its body.
    """

    port: int
    process: "subprocess.Popen[bytes]"
    headers: dict[str, str]

    def cpu_s(self) -> float:
        """Return the processor's seconds of all its processes."""
        return cpu_s(self.process.pid)

    def fine_cpu_s(self) -> float:
        """Return the same for short spans, where /proc's hundredths of a second are too coarse."""
        return fine_cpu_s(self.process.pid)

    def resident_bytes(self) -> int:
        """Return the resident memory of all its processes."""
        return resident_bytes(self.process.pid)

    def processes(self) -> int:
        """Return how many processes it has."""
        return len(tree(self.process.pid))

    def pause(self) -> None:
        """Stop all its processes."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        os.killpg(self.process.pid, signal.SIGCONT)


@dataclass(frozen=True, slots=True)
class Contestant:
    """A server to compare.

    Attributes:
        name: what it is called on the command line.
        title: what it is, for tables.
        command: what starts it on a port.
        environment: environment variables by port.
        on_cluster: whether its Redis is a cluster, of one node: a call of a script then has the sessions of one shard.
        with_key: whether it is willbuy, which lets in who has an API key.
        batch: events a request; 0: one.
        connections: at a time; None as many as the run says.
        workers: that serve requests; it runs on as many cores.
        busy_when_idle: whether it takes much of a core without requests, so that it must stand still between its turns.
    """

    name: str
    title: str
    command: Callable[[int], list[str]]
    environment: Callable[[int], dict[str, str]] = field(default=lambda _port: {})
    with_key: bool = False
    on_cluster: bool = False
    batch: int = 0
    connections: int | None = None
    workers: int = 1
    busy_when_idle: bool = False

    @property
    def path(self) -> str:
        """Where it takes events."""
        return BATCH_PATH if self.batch else SINGLE_PATH

    @property
    def events_per_request(self) -> int:
        """How many events a request carries."""
        return self.batch or 1


@contextmanager
def running(contestant: Contestant, redis: RedisServer, *, with_event: bool = True) -> Iterator[Server]:
    """Run a server; it has answered an event when this returns, or only says that it is ready."""
    port = free_port()
    event = {"session_id": "first", "event_name": "page_view"}

    def answers() -> bool:
        url = f"http://127.0.0.1:{port}"
        try:
            if with_event:
                given = httpx.post(f"{url}{SINGLE_PATH}", json=event, headers=headers, timeout=_ANSWER_TIMEOUT_S)
            else:
                given = httpx.get(f"{url}{READY_PATH}", timeout=_ANSWER_TIMEOUT_S)
        except httpx.TransportError:
            return False
        return given.status_code == _OK

    with tempfile.TemporaryDirectory(prefix="willbuy-") as folder:
        environment = {"HOTPATH_REDIS_URL": redis.url, "WILLBUY_REDIS_URL": redis.url, "PYTHONPATH": str(ROOT)}
        environment |= contestant.environment(port)
        headers: dict[str, str] = {}
        if contestant.with_key:
            keys = Path(folder) / _KEYS_FILE
            headers["Authorization"] = f"Bearer {_new_key(keys)}"
            environment["WILLBUY_API_KEYS_FILE"] = str(keys)
        command = [*pinned(CORES.server(contestant.workers)), *contestant.command(port)]
        process = start(command, environment, Path(folder) / "log", answers)
        try:
            yield Server(port, process, headers)
        finally:
            stop(process)


def willbuy(
    artifact: Path, *, workers: int = 1, batch: int = 0, on_cluster: bool = False, checkout: Path | None = None
) -> Contestant:
    """Return the service with everything on, on its single or on its batch route.

    Args:
        artifact: the model.
        workers: processes.
        batch: events a request; 0: one.
        on_cluster: whether its Redis is a cluster.
        checkout: folder of another state of the code, which runs instead of this one.
    """

    def command(port: int) -> list[str]:
        started = [sys.executable, "-m", "app", "serve", "--artifact", str(artifact), "--port", str(port)]
        return [*started, "--workers", str(workers)]

    name = "willbuy" + (f"-{workers}" if workers > 1 else "") + ("-batch" if batch else "")
    name += "-cluster" if on_cluster else ""
    title = "willbuy" + (f", {workers} workers" if workers > 1 else "")
    title += f", {batch} events a request" if batch else ""
    title += ", Redis Cluster of one node" if on_cluster else ""
    environment = {"WILLBUY_LOG_LEVEL": "warning"} | _code_of(checkout)
    if checkout is not None:
        name, title = f"{name}{BEFORE}", f"{title}, before"
    connections = _BATCH_CONNECTIONS if batch else None
    return Contestant(
        name,
        title,
        command,
        lambda _port: environment,
        with_key=True,
        on_cluster=on_cluster,
        batch=batch,
        connections=connections,
        workers=workers,
    )


def front(artifact: Path, checkout: Path | None = None) -> Contestant:
    """Return the service with a scorer that answers at once, so that nearly all of its time is the front's.

    Args:
        artifact: the model.
        checkout: folder of another state of the code, as for `willbuy`.
    """
    protocol = "app.runtime.http_protocol:BoundedHttp"
    if checkout is not None and (checkout / "app" / "api" / "events_http.py").exists():
        protocol = "app.api.events_http:EventsHttp"

    def command(port: int) -> list[str]:
        program = Path(__file__).with_name("peers") / "front.py"
        return [sys.executable, str(program), "--port", str(port), "--http", protocol]

    environment = {"WILLBUY_LOG_LEVEL": "warning", "WILLBUY_ARTIFACT": str(artifact)} | _code_of(checkout)
    name, title = ("front", "willbuy's front") if checkout is None else (f"front{BEFORE}", "willbuy's front, before")
    return Contestant(name, title, command, lambda _port: environment, with_key=True)


def _code_of(checkout: Path | None) -> dict[str, str]:
    """Return the environment in which Python finds another checkout's packages, and does not look where it starts."""
    return {} if checkout is None else {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}


def peers(artifact: Path) -> list[Contestant]:
    """Return the peers; the artifact is for the one that serves willbuy's own model."""

    def fastapi(module: str) -> Callable[[int], list[str]]:
        def command(port: int) -> list[str]:
            app = f"benchmarks.hotpath.peers.{module}:create_app"
            started = [sys.executable, "-m", "uvicorn", "--factory", app, "--http", "httptools", "--loop", "uvloop"]
            return [*started, "--no-access-log", "--log-level", "warning", "--port", str(port)]

        return command

    def module(name: str) -> Callable[[int], list[str]]:
        return lambda _port: [sys.executable, "-m", f"benchmarks.hotpath.peers.{name}"]

    def mosec(port: int) -> dict[str, str]:
        return {"MOSEC_PORT": str(port), "MOSEC_ADDRESS": "127.0.0.1", "MOSEC_LOG_LEVEL": "warning"}

    return [
        Contestant("empty", "FastAPI, endpoint that does nothing", fastapi("empty")),
        Contestant("nothing", "ASGI callable that does nothing", fastapi("nothing")),
        Contestant("newcomer", "FastAPI, Redis GET, LSTM, Redis SET", fastapi("newcomer")),
        Contestant("mosec", "mosec, 1 worker, batching, Redis", module("mosec_peer"), mosec),
        Contestant(
            "mosec-own",
            "mosec, 1 worker, batching, Redis, willbuy's model",
            module("mosec_peer"),
            lambda port: mosec(port) | {"HOTPATH_ARTIFACT": str(artifact)},
        ),
        Contestant("bare", "ASGI callable, batching, Redis", fastapi("bare")),
        Contestant(
            "litserve",
            "LitServe, batching, Redis",
            module("litserve_peer"),
            lambda port: {"HOTPATH_PORT": str(port)},
            busy_when_idle=True,
        ),
    ]


def _new_key(file: Path) -> str:
    """Return a new API key that may post and read, with its entry in a file."""
    command = [sys.executable, "-m", "app", "key", "new", "--name", "benchmark", "--file", str(file)]
    command += ["--scope", "events:write", "--scope", "sessions:read"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603  # all ours
    if told.returncode:
        raise BenchmarkError(f"willbuy key failed: {told.stderr[-2000:]}")
    return told.stdout.strip()
