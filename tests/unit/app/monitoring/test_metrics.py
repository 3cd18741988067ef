"""The metrics themselves: their table, what workers share, and gauges that nothing counts."""

import asyncio
import io
import os
import re
import subprocess
import sys
import textwrap

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import paths

from app.errors import StoreUnavailableError
from app.monitoring.health import HealthMonitor, Readiness
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.monitoring.worker_metrics import metrics_of_workers, shared_directory
from app.store.board import Spread

ROOT = paths.ROOT
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@pytest.fixture(autouse=True)
def counting_for_oneself(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def untyped(value):
    """For what stands in for something, or has pipes for sure."""
    return value


def values(exposition):
    """Values by series as they are written."""
    return {
        sample.name + "".join(f"[{value}]" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
    }


# --- the table


def families():
    metrics = [metric for metric in vars(Metrics()).values() if hasattr(metric, "describe")]
    return {metric.describe()[0].name: metric for metric in metrics}


@pytest.mark.parametrize("name", families())
def test_the_table_says_the_kind_and_the_labels(name):
    metric = families()[name]
    kind = metric.describe()[0].type
    row = name + ("_total" if kind == "counter" else "")
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    (cells,) = re.findall(rf"^\| `{row}` \|(.*)\|$", text, flags=re.MULTILINE)
    shown_kind, shown_labels, meaning, what_to_do = cells.split(" | ")
    assert shown_kind.strip() == kind
    assert re.findall("`([^`]+)`", shown_labels) == list(metric._labelnames)  # noqa: SLF001 - prometheus_client shows them nowhere else
    assert meaning.strip()
    assert what_to_do.strip()


# --- workers


WORKER = """
    import sys
    from app.monitoring.metrics import Metrics
    metrics = Metrics()
    queued, sessions, model, other = map(int, sys.argv[1:])
    metrics.events_folded.inc(10 * queued)
    metrics.watch(metrics.queue_length, lambda: queued)
    metrics.live_sessions.set(sessions)
    metrics.ready.set(model)
    metrics.model_info.labels("first").set(1)
    if other:
        metrics.model_info.labels("second").set(1)
        metrics.retire(metrics.model_info, "first")
    metrics.batch_size.observe(3)
    metrics.sample()
    sys.stdout.buffer.write(b"counted\\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.buffer.write(metrics.exposition() + b"# EOF\\n")
        sys.stdout.flush()
"""


class Worker:
    """A process that counts and, asked, shows what it would answer."""

    def __init__(self, directory, *arguments):
        command = [sys.executable, "-c", textwrap.dedent(WORKER), *map(str, arguments)]
        environment = os.environ | {VARIABLE: str(directory)}
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.process = untyped(process)
        assert self.process.stdout.readline() == "counted\n"

    def ask(self):
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        lines = iter(self.process.stdout.readline, "# EOF\n")
        return values("".join(lines))

    def end(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture
def work(tmp_path):
    started = []

    def start(*arguments):
        worker = Worker(tmp_path, *arguments)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        if worker.process.returncode is None:
            worker.end()


def test_any_worker_answers_for_all_and_gauges_are_put_together_as_they_mean(work):
    # Given two workers, of which the second is not ready and has taken another model
    first, second = work(2, 100, 1, 0), work(3, 101, 0, 1)
    for worker in (first, second):
        # When either is asked
        found = worker.ask()
        # Then it counts both
        assert found["willbuy_events_folded_total"] == 50
        assert found["willbuy_batch_size_count"] == 2
        assert found["willbuy_batch_size_bucket[4.0]"] == 2
        assert found["willbuy_queue_length"] == 5
        assert found["willbuy_live_sessions"] == 101
        assert found["willbuy_ready"] == 0
        assert {name for name in found if "model_info" in name} == {
            "willbuy_model_info[first]",
            "willbuy_model_info[second]",
        }
    # When the first has ended, then what it counted stays and what it was goes
    first.end()
    found = second.ask()
    assert found["willbuy_events_folded_total"] == 50
    assert found["willbuy_queue_length"] == 3
    assert "willbuy_model_info[first]" not in found


def test_workers_get_a_directory_that_is_gone_at_the_end():
    with metrics_of_workers():
        directory = shared_directory()
        assert directory is not None
        assert not list(directory.iterdir())
    assert not directory.exists()
    assert shared_directory() is None


def test_a_directory_that_the_operator_chose_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with metrics_of_workers():
        assert shared_directory() == tmp_path
    assert tmp_path.exists()


@pytest.mark.slow
@pytest.mark.slow
def test_a_directory_that_is_not_there_stops_the_start_in_one_line(tmp_path, artifact):
    code = f"from app.main import create_app\nfrom app.settings import Settings\n\
create_app(Settings(artifact={str(artifact)!r}, open_access=True))"
    environment = os.environ | {VARIABLE: str(tmp_path / "nothing")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert VARIABLE in line
    assert "nothing" in line


def test_a_series_that_is_retired_is_gone_where_a_process_counts_for_itself():
    metrics = Metrics()
    metrics.model_info.labels("first").set(1)
    metrics.model_info.labels("second").set(1)
    metrics.retire(metrics.model_info, "first")
    assert "willbuy_model_info[first]" not in values(metrics.exposition().decode())
    assert "willbuy_model_info[second]" in values(metrics.exposition().decode())


# --- gauges that are looked at


class Store:
    """What is asked of a store here; away when it is told to be."""

    def __init__(self):
        self.away = False
        self.policy = "noeviction"
        self.board = self

    async def ping(self):
        if self.away:
            raise StoreUnavailableError("away")

    async def eviction_policy(self):
        return self.policy

    async def spread(self, edges):
        await self.ping()
        return Spread(live=42, open=40, counts=[40])


class Looked:
    def __init__(self):
        self.store = untyped(Store())
        self.metrics = Metrics()
        self.log = io.StringIO()
        self.takes_events = True
        self.draining = False
        readiness = Readiness(self.store, takes_events=lambda: self.takes_events, is_draining=lambda: self.draining)
        logger = build_logger(log_level="info", stream=self.log)

        async def live_sessions():
            return (await self.store.spread(())).live

        self.health = HealthMonitor(live_sessions, readiness, metrics=self.metrics, logger=logger)

    async def after_a_look(self, name):
        await self.health.update()
        return values(self.metrics.exposition().decode())[name]


@pytest.mark.anyio
async def test_readiness_shows_whatever_is_missing():
    looked = Looked()
    assert await looked.after_a_look("willbuy_ready") == 1
    looked.store.away = True
    assert await looked.after_a_look("willbuy_ready") == 0
    looked.store.away, looked.takes_events = False, False
    assert await looked.after_a_look("willbuy_ready") == 0
    looked.takes_events, looked.draining = True, True
    assert await looked.after_a_look("willbuy_ready") == 0
    looked.draining = False
    assert await looked.after_a_look("willbuy_ready") == 1
    await looked.health.close()
    assert values(looked.metrics.exposition().decode())["willbuy_ready"] == 0


@pytest.mark.anyio
async def test_live_sessions_stay_as_they_were_while_the_store_is_away():
    looked = Looked()
    looked.metrics.live_sessions.set(7)
    looked.store.away = True
    assert await looked.after_a_look("willbuy_live_sessions") == 7
    looked.store.away = False
    assert await looked.after_a_look("willbuy_live_sessions") == 42


@pytest.mark.anyio
async def test_a_defect_in_one_look_does_not_end_the_looking():
    looked = Looked()
    reads: list[int] = []

    def fails_once():
        reads.append(len(reads))
        if len(reads) == 1:
            raise RuntimeError("a defect")
        return len(reads)

    looked.metrics.watch(looked.metrics.queue_length, fails_once)
    looked.health.start()
    async with asyncio.timeout(30):
        while len(reads) < 2:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
    await looked.health.close()
    assert "vitals_failed" in looked.log.getvalue()
    assert values(looked.metrics.exposition().decode())["willbuy_loop_delay_seconds_count"] >= 1
