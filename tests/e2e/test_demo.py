"""`willbuy demo` as a user runs it: it ends by itself, by Ctrl-C and by SIGTERM, and leaves no process behind."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from conftest import missing
from support.kafka import Tansu, find_tansu
from support.redis_acl import PASSWORD, documented_user, url_of
from support.warm_process import WarmProcess

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are counted in /proc"),
    pytest.mark.slow,
]


def parents() -> dict[int, int]:
    """Return each running process's parent."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it ended meanwhile
            continue
        if state != "Z":
            found[int(stat.parent.name)] = int(parent)
    return found


def descendants(pid: int) -> set[int]:
    parent_of = parents()
    found = {pid}
    while fresh := {child for child, parent in parent_of.items() if parent in found} - found:
        found |= fresh
    return found - {pid}


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def allow_ctrl_c() -> None:
    """Undo what a shell does to its background jobs: they, and so their children, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Demo:
    """A running demo, and every process that it ever had.

    With `artifact` it begins after training, forked from a warm process. `redis` is the URL of its Redis, if it is to
    start none.
    """

    def __init__(self, folder: Path, *options: object, artifact: Path | None = None, redis: str | None = None) -> None:
        self.folder = folder
        self.output = folder / "demo.log"
        self.seen: set[int] = set()
        folder.mkdir()
        arguments = ["demo", "--folder", str(folder / "shop"), *map(str, options)]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if redis is not None:
            environment["WILLBUY_REDIS_URL"] = redis
        self.process: WarmProcess | subprocess.Popen[bytes]
        if artifact is not None:
            environment["DEMO_ARTIFACT"] = str(artifact)
            self.process = WarmProcess("demo", arguments, cwd=ROOT, env=environment, log=self.output)
            self.output.touch()
            return
        with self.output.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app", *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=allow_ctrl_c,  # noqa: PLW1509  # sets a signal and touches no lock
            )

    def text(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def wait_until(self, ready: Callable[[], bool], timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            self.seen |= descendants(self.process.pid)
            if ready():
                return
            assert self.process.poll() is None, self.text()[-3000:]
            assert time.monotonic() < deadline, self.text()[-3000:]
            # Looking at all processes takes longer than a demo's own work.
            time.sleep(0.1)

    def playing(self) -> bool:
        return "Ctrl-C stops everything." in self.text()

    def shopping(self) -> bool:
        """Tell whether shoppers' events have been answered."""
        base = re.search(r"the dashboard +(http\S+)dashboard/", self.text())
        return base is not None and httpx.get(f"{base[1]}v1/stats").json()["live_sessions"] > 0

    def serving(self) -> bool:
        return any(" serve " in command_of(pid) for pid in self.seen)

    def end(self, timeout_s: float = 60) -> int:
        """Wait for its end while noting its processes, and return its exit status."""
        deadline = time.monotonic() + timeout_s
        while (code := self.process.poll()) is None:
            assert time.monotonic() < deadline, self.text()[-3000:]
            self.seen |= descendants(self.process.pid)
            time.sleep(0.1)
        return code

    def left(self) -> set[str]:
        """Return the commands of its processes that still run, after a moment in which a server may end."""
        deadline = time.monotonic() + 3
        while (alive := self.seen & parents().keys()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return {command_of(pid) for pid in alive}

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.seen & parents().keys():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    demos: list[Demo] = []

    def start(*options: object, **kind: Any) -> Demo:
        demos.append(Demo(tmp_path / f"demo-{len(demos)}", *options, **kind))
        return demos[-1]

    yield start
    for started in demos:
        started.clean_up()


def test_a_demo_through_kafka_answers_its_shoppers_from_the_topic(demo, artifact, tmp_path) -> None:
    binary = find_tansu()
    if binary is None:
        raise missing("tansu")
    tansu = Tansu(binary, tmp_path / "tansu.log")
    try:
        running = demo("--kafka", tansu.brokers, "--speed", 100, "--seconds", 10, artifact=artifact)
        running.wait_until(running.playing)
        began = {command_of(pid) for pid in descendants(running.process.pid)}
        assert running.end() == 0, running.text()[-3000:]
        assert any(" consume " in command for command in began)
        # The last screen: every event of it was answered by the topic.
        answered = re.search(r"(\d[\d,]*) events, ", running.text())
        assert answered is not None, running.text()[-3000:]
        assert int(answered[1].replace(",", "")) > 0
        assert running.left() == set()
        assert "Traceback" not in running.text()
    finally:
        tansu.stop()


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_demo_of_five_seconds_ends_by_itself_and_leaves_no_process(demo) -> None:
    # When it begins with its training, which takes minutes on a busy machine
    running = demo("--seconds", 5, "--sessions", 600)
    running.wait_until(running.playing, timeout_s=240)
    began = {command_of(pid) for pid in descendants(running.process.pid)}
    code = running.end()
    # Then
    assert code == 0, running.text()[-3000:]
    assert "Traceback" not in running.text()
    assert "Stopped the service and its Redis." in running.text()
    # A service and its server were there: nothing left means that they were stopped, not that none was started.
    assert any(" serve " in command for command in began)
    assert any("valkey-server" in command or "redis-server" in command for command in began)
    assert running.left() == set()
    # Shoppers came, and what they leave to look at is there
    assert "events," in running.text()
    assert " 0 events" not in running.text().splitlines()[-6]
    files = {path.name for path in (running.folder / "shop").iterdir()}
    assert {"model.pt", "model.report.html", "shop.parquet", "service.log"} <= files


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_among_the_shoppers_stops_everything_in_order(demo, artifact, number) -> None:
    running = demo(artifact=artifact)
    running.wait_until(running.shopping)
    os.kill(running.process.pid, number)
    assert running.end() == 0, running.text()[-3000:]
    assert "Traceback" not in running.text()
    assert "Stopped the service and its Redis." in running.text()
    assert len(running.seen) >= 2
    assert running.left() == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_service_starts_leaves_no_process(demo, artifact, number) -> None:
    running = demo(artifact=artifact)
    running.wait_until(running.serving)
    os.kill(running.process.pid, number)
    running.end()
    assert "Traceback" not in running.text()
    assert running.left() == set()


def test_a_demo_needs_no_more_than_the_documented_redis_user(demo, artifact, start_redis) -> None:
    server = start_redis()
    with redis.Redis(port=server.port) as admin:
        admin.execute_command(*documented_user())
        running = demo("--seconds", 3, artifact=artifact, redis=url_of(server))
        assert running.end() == 0, running.text()[-3000:]
        assert admin.acl_log() == []
        assert any(key.startswith(b"wb:") for key in admin.scan_iter())
    log = (running.folder / "shop/service.log").read_text()
    assert "embedded" not in log
    assert PASSWORD not in running.text() + log


def test_a_port_that_is_taken_is_told_and_nothing_is_left(demo, artifact) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        running = demo("--port", taken.getsockname()[1], artifact=artifact)
        assert running.end(90) == 1
    assert "error: the service did not start" in running.text()
    assert "address already in use" in running.text().lower()
    assert "Traceback" not in running.text()
    assert running.left() == set()
