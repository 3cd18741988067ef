"""What operators see of a service that runs as they run it: `willbuy serve`, with several workers, on a real Valkey."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.service import ROOT, Service

pytestmark = pytest.mark.anyio

EVENTS = 60
SESSIONS = 12


class Served(Service):
    """`willbuy serve` instead of uvicorn itself."""

    def launch(self):
        command = [sys.executable, "-m", "app", "serve", "--port", str(self.port), "--workers", str(self.workers)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


@pytest.fixture
def serve(artifact, tmp_path):
    started: list[Served] = []

    def start(*, workers=1, **settings):
        log = tmp_path / f"served-{len(started)}.log"
        served = Served(log, {"artifact": artifact} | settings, workers=workers)
        started.append(served)
        served.start()
        return served

    yield start
    for served in started:
        served.stop()


@pytest.fixture(scope="module")
def two_workers(artifact, shared_valkey, tmp_path_factory):
    """One service for what leaves its workers alive: to start it takes three processes that import everything."""
    shared_valkey.flush()
    folder = tmp_path_factory.mktemp("two-workers")
    path = folder / "model.pt"
    path.write_bytes(artifact.read_bytes())
    settings = {"artifact": path, "redis_url": shared_valkey.url, "max_queue": 100, "watch_artifact_s": 0.1}
    served = Served(folder / "served.log", settings, workers=2)
    try:
        served.start()
        yield served
    finally:
        served.stop()


def samples(text):
    """Every sample of an exposition, by its name and labels as they are written."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scrape(base_url):
    # A connection of its own: which worker answers is up to the kernel.
    async with httpx.AsyncClient(base_url=base_url, timeout=30) as client:
        return samples((await client.get("/metrics")).text)


async def until(condition):
    # A worker starts cold here.
    deadline = time.monotonic() + 60
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def children_of(pid):
    return {
        int(stat.parent.name)
        for stat in Path("/proc").glob("[0-9]*/stat")
        if int(stat.read_text().rpartition(")")[2].split()[1]) == pid
    }


def workers_of(pid):
    return {child for child in children_of(pid) if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()}


async def post(base_url, number):
    body = {"session_id": f"s-{number % SESSIONS}", "event_name": "page_view", "event_id": f"e-{number}"}
    async with httpx.AsyncClient(base_url=base_url, timeout=30) as client:
        answer = await client.post("/v1/events", json=body)
        assert answer.status_code == 200, answer.text


def shared_directory(served):
    """The directory that the workers share, as the first of them has it in its environment."""
    variables = Path(f"/proc/{min(workers_of(served.pid))}/environ").read_bytes().split(b"\0")
    named = dict(variable.partition(b"=")[::2] for variable in variables)
    return Path(os.fsdecode(named[b"PROMETHEUS_MULTIPROC_DIR"]))


@pytest.mark.slow
async def test_whichever_worker_is_asked_answers_for_all(two_workers):
    # Given two workers, both of which answered events
    served = two_workers
    await asyncio.gather(*(post(served.base_url, number) for number in range(EVENTS)))
    posted = ("willbuy_requests_total", (("method", "POST"), ("route", "/v1/events"), ("status", "200")))

    async def all_are_counted():
        # A request is counted when its answer has been sent, which is a moment after its caller has it.
        return (await scrape(served.base_url)).get(posted) == EVENTS

    await until(all_are_counted)

    async def gauges_are_true():
        found = await scrape(served.base_url)
        return found["willbuy_ready", ()] == 1 and found["willbuy_queue_capacity", ()] == 200

    await until(gauges_are_true)
    # When they are asked ten times, then each answer has the exact totals
    for _ in range(10):
        found = await scrape(served.base_url)
        assert found[posted] == EVENTS
        assert found["willbuy_events_folded_total", ()] == EVENTS
        assert found["willbuy_sessions_started_total", ()] == SESSIONS
        assert found["willbuy_request_seconds_count", (("route", "/v1/events"),)] == EVENTS
        assert found["willbuy_queue_capacity", ()] == 200
        assert found["willbuy_queue_length", ()] == 0
        assert sum(name == "willbuy_model_info" for name, _ in found) == 1
        assert not any("pid" in dict(labels) for _, labels in found)
    files = list(shared_directory(served).glob("counter_*.db"))
    assert len(files) == 2


@pytest.mark.slow
async def test_a_worker_dies_and_its_counts_stay_its_gauges_go_and_each_line_of_the_log_is_json(serve, valkey):
    # Given two workers that have answered events
    served = serve(redis_url=valkey.url, workers=2, max_queue=100)
    await asyncio.gather(*(post(served.base_url, number) for number in range(EVENTS)))
    directory = shared_directory(served)

    async def both_have_reported():
        return (await scrape(served.base_url)).get(("willbuy_queue_capacity", ())) == 200

    await until(both_have_reported)
    # When one of them dies
    dead = max(workers_of(served.pid))
    os.kill(dead, signal.SIGKILL)

    async def another_has_taken_its_place():
        try:
            found = await scrape(served.base_url)
        except httpx.TransportError:  # the connection was the dead worker's
            return False
        running = workers_of(served.pid)
        return dead not in running and len(running) == 2 and found["willbuy_queue_capacity", ()] == 200

    await until(another_has_taken_its_place)
    # Then what it counted is still there, and what it was is not
    assert (await scrape(served.base_url))["willbuy_events_folded_total", ()] == EVENTS
    assert list(directory.glob(f"counter_{dead}.db"))
    assert not list(directory.glob(f"gauge_live*_{dead}.db"))
    # And a caller who speaks no HTTP is told of in the log
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"nonsense\r\n\r\n")
    assert b"400" in await reader.readline()
    writer.close()
    await writer.wait_closed()
    # And nothing is left when the service ends
    assert await asyncio.to_thread(served.stop) == 0
    assert not directory.exists()
    # And each line of its log is JSON, whoever wrote it
    lines = [json.loads(line) for line in served.output().splitlines()]
    assert all({"event", "level", "timestamp"} <= set(line) for line in lines)
    said = {line["event"] for line in lines}
    assert {"starting", "listening", "started", "draining", "stopped"} <= said
    assert f"Child process [{dead}] died" in said
    assert "Invalid HTTP request received." in said


@pytest.mark.slow
async def test_a_replaced_model_is_named_no_more_by_any_worker(two_workers):
    from support.artifacts import write_artifact  # noqa: PLC0415 - next to its one use

    served = two_workers
    async with httpx.AsyncClient(base_url=served.base_url) as client:
        first = (await client.get("/v1/model")).json()["fingerprint"]
    path = served.log.with_name("model.pt")
    write_artifact(path.with_name("other.pt"), seed=1).replace(path)

    async def only_the_new_one_is_named():
        found = await scrape(served.base_url)
        names = [dict(labels)["fingerprint"] for name, labels in found if name == "willbuy_model_info"]
        return len(names) == 1 and names != [first]

    await until(only_the_new_one_is_named)
