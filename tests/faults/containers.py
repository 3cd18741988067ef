"""`make compose-test`: the images and the compose file on a real Docker engine, under load, with an exact verdict.

Builds both images and starts the compose file as it is, with a project name and a port of its own. While sessions of
the synthetic shop are played at the gateway, a replica is killed, the service is scaled, Redis is restarted, a replica
is stopped, and all are rolled to another image. At the end every answer and all data in Redis are compared with the
offline model, as in `make faults`. Needs Linux, and Docker with compose and buildx; reads Redis at its container's
address.
"""

import asyncio
import http.client
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from app.store.redis.connection import ConnectionOptions
from app.store.sessions import RedisStore
from faults import report
from faults.campaign import board_of
from faults.client import HttpClient
from faults.driver import RETRIED, Driver
from faults.ledger import HTTP_OK, Ledger
from faults.oracle import Oracle
from faults.workload import session_plans
from model.predictor import load_predictor

_CONSOLE = Console()
_ROOT: Final = Path(__file__).parents[2]
_SECOND_IMAGE: Final = 'FROM willbuy:compose-test\nLABEL release="second"\n'
_PATIENCE_S: Final = 5.0
_START_S: Final = 600.0
# A replica that dies with a request, or a moment without any: the gateway's own answers, after which clients try again.
_OF_GATEWAY: Final = frozenset({502, 504})


class Engine:
    """The compose project of this test."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.release = "compose-test"
        self.project = f"willbuy-test-{secrets.token_hex(3)}"
        self._password = secrets.token_hex(16)
        self.scale = 3

    def run(self, *words: str, stdin: str = "") -> str:
        """Run `docker` and return its output.

        Raises:
            SystemExit: the command failed; its output is printed.
        """
        environment = {
            **os.environ,
            "WILLBUY_VERSION": self.release,
            "WILLBUY_PORT": str(self.port),
            "REDIS_PASSWORD": self._password,
        }
        done = subprocess.run(
            ["docker", *words], cwd=_ROOT, env=environment, input=stdin, capture_output=True, text=True, check=False
        )
        if done.returncode:
            _CONSOLE.print(f"docker {shlex.join(words)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}", markup=False)
            raise SystemExit(1)
        return done.stdout

    def compose(self, *words: str) -> str:
        """Run `docker compose` on the project, with the compose file as it is."""
        return self.run("compose", "--project-name", self.project, *words)

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's running containers."""
        return self.compose("ps", "--quiet", service).split()

    def start(self) -> None:
        """Bring everything up; return once the gateway has a ready replica.

        Raises:
            TimeoutError: none is ready in time.
        """
        # No `--wait`, for which a trainer that has ended is a failure.
        self.compose("up", "--detach", "--no-build")
        deadline_s = time.monotonic() + _START_S
        while not self._is_ready():
            if time.monotonic() > deadline_s:
                raise TimeoutError("the gateway has no ready replica")
            time.sleep(0.5)

    def _is_ready(self) -> bool:
        try:
            return http_get(self.port, "/readyz")[0] == HTTP_OK
        except (OSError, http.client.HTTPException):
            return False

    def apply(self) -> None:
        """Bring the service to the wanted scale, new ones of the current release; return once all are healthy."""
        # Without `--no-recreate`, `--no-deps` replaces the running ones, all at once.
        words = (
            "--detach",
            "--no-build",
            "--no-deps",
            "--wait",
            "--no-recreate",
            "--scale",
            f"serve={self.scale}",
            "serve",
        )
        self.compose("up", *words)

    def redis_url(self) -> str:
        """Return the URL of Redis by its container's address, which this machine alone can reach."""
        [container] = self.containers("redis")
        address = self.run(
            "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container
        ).strip()
        return f"redis://:{self._password}@{address}:6379/0"

    def images(self) -> set[str]:
        """Return the images that the replicas run."""
        return {self.run("inspect", "--format", "{{.Image}}", each).strip() for each in self.containers("serve")}


def http_get(port: int, path: str) -> tuple[int, bytes]:
    """Return status and body of an answer of the gateway."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def kill_replica(engine: Engine) -> None:
    """A replica is gone without notice."""
    engine.run("kill", engine.containers("serve")[0])


def scale_to_five(engine: Engine) -> None:
    """The killed one comes back, and two more come."""
    engine.scale = 5
    engine.apply()


def restart_redis(engine: Engine) -> None:
    """Redis ends and loads its append-only file."""
    engine.compose("restart", "redis")


def stop_replica(engine: Engine) -> None:
    """A replica drains."""
    container = engine.containers("serve")[0]
    # Not the engine's ten seconds, which are short on a busy machine.
    engine.run("stop", "--time", "60", container)
    status = engine.run("inspect", "--format", "{{.State.ExitCode}}", container).strip()
    if status != "0":
        raise SystemExit(f"a replica that was asked to stop ended with status {status}")
    # It would start again with the next change of the scale.
    engine.run("rm", container)


def roll_to_another_image(engine: Engine) -> None:
    """One after another: a replica of the other image starts, and then an old one drains (docs/deploy.md)."""
    before, old = engine.images(), engine.containers("serve")
    engine.release = "compose-test-second"
    engine.scale = len(old) + 1
    for container in old:
        engine.apply()
        engine.run("stop", "--time", "60", container)
        engine.run("rm", container)
    if len(engine.images()) != 1 or engine.images() & before:
        raise SystemExit(f"replicas run {engine.images()}, and ran {before} before")


STEPS: Final[Sequence[Callable[[Engine], None]]] = (
    kill_replica,
    scale_to_five,
    restart_redis,
    stop_replica,
    roll_to_another_image,
)


def main(
    build_options: Annotated[
        str, typer.Option(help="Further options of docker build, such as a mirror's secret.", envvar="BUILD_OPTIONS")
    ] = "",
    build: Annotated[bool, typer.Option(help="Build the images; without, those of the last run are used.")] = True,
    sessions: Annotated[int, typer.Option(help="Fewest sessions.")] = 300,
    shoppers: Annotated[int, typer.Option(help="Sessions at the same time.")] = 30,
    seed: Annotated[int, typer.Option(help="Of visitors and think times.")] = 1,
    out: Annotated[Path, typer.Option(help="Where the JSON goes.")] = Path("artifacts/compose-test.json"),
) -> None:
    """Build, start, load while replicas and Redis come and go, judge, and remove everything."""
    engine = Engine(_free_port())
    timed: list[tuple[str, float]] = []

    def step(name: str, do: Callable[[], object]) -> None:
        began_s = time.monotonic()
        do()
        timed.append((name, time.monotonic() - began_s))
        _CONSOLE.print(f"{name}: {timed[-1][1]:.0f} s", highlight=False)

    options = shlex.split(build_options)
    for target, name in (("train", "willbuy-train"), ("serve", "willbuy")) if build else ():
        words = ["buildx", "build", "--load", *options, "--target", target, "--tag", f"{name}:{engine.release}", "."]
        step(f"build {target}", lambda words=words: engine.run(*words))  # type: ignore[misc]  # bound at once
    engine.run("buildx", "build", "--load", "--tag", "willbuy:compose-test-second", "-", stdin=_SECOND_IMAGE)
    try:
        step("up", engine.start)
        found = asyncio.run(_judged(engine, step, timed, sessions=sessions, shoppers=shoppers, seed=seed))
    except BaseException:
        _CONSOLE.print(engine.compose("logs", "--tail", "20"), markup=False, highlight=False)
        raise
    finally:
        step("down", lambda: engine.compose("--profile", "*", "down", "--volumes", "--timeout", "20"))
    report.show(found, _CONSOLE)
    report.write([found], out)
    _CONSOLE.print(f"wrote {out}")
    sys.exit(not found.passed)


async def _judged(
    engine: Engine,
    step: Callable[[str, Callable[[], object]], None],
    timed: list[tuple[str, float]],
    *,
    sessions: int,
    shoppers: int,
    seed: int,
) -> report.Report:
    ledger = Ledger()
    client = HttpClient(engine.port, "open-access")
    driver = Driver(
        [client],
        ledger,
        seed=seed,
        patience_s=_PATIENCE_S,
        think_s=0.25,
        most_in_flight=2 * shoppers,
        retried=RETRIED | _OF_GATEWAY,
    )
    plans = session_plans(seed, int(time.time() * 1000) - 1000)
    played, over = 0, False

    async def shop() -> None:
        nonlocal played
        while played < sessions or not over:
            played += 1
            await driver.play(next(plans))

    async def break_and_mend() -> None:
        nonlocal over
        for do in STEPS:
            await asyncio.sleep(3)
            await asyncio.to_thread(step, do.__name__.replace("_", " "), lambda do=do: do(engine))  # type: ignore[misc]
        over = True

    began_s = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(shoppers):
            tasks.create_task(shop())
        tasks.create_task(break_and_mend())
    client.close()
    verdict, model = await _verdict(engine, ledger)
    counts = report.counts_of(ledger)
    # Without those that a client of the workload gave up on purpose.
    broken = sum(
        attempt.status in _OF_GATEWAY or (attempt.status is None and attempt.patience_s is None)
        for attempt in ledger.attempts()
    )
    facts = {
        "docker": engine.run("version", "--format", "{{.Server.Version}}").strip(),
        "compose": engine.run("compose", "version", "--short").strip(),
        "seed": seed,
        "state_dtype": model["state_dtype"],
        "seconds": round(time.monotonic() - began_s, 1),
    }
    return report.Report("compose", facts, {**counts, "broken_connections": broken}, timed, verdict.verdict)


async def _verdict(engine: Engine, ledger: Ledger) -> tuple[Oracle, dict[str, Any]]:
    model = json.loads(http_get(engine.port, "/v1/model")[1])
    with TemporaryDirectory(prefix="willbuy-compose-") as folder:
        artifact = Path(folder) / "model.pt"
        engine.run("cp", f"{engine.containers('serve')[0]}:/artifacts/model.pt", str(artifact))
        oracle = Oracle([load_predictor(artifact, state_dtype=model["state_dtype"])], model["state_dtype"])
    url = engine.redis_url()
    store = RedisStore(url, session_idle_s=1800, options=ConnectionOptions(timeout_s=60))
    ids = list(ledger.sessions)
    try:
        records = dict(zip(ids, await store.load(ids), strict=True))
        histories = dict(zip(ids, await store.load_histories(ids), strict=True))
    finally:
        await store.close()
    oracle.judge_sessions(ledger, records, histories)
    oracle.judge_board(records, await board_of(url))
    return oracle, model


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    typer.run(main)
