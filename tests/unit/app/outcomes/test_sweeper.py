"""One sweep: what it asks of the store, whole, and what it counts; two and more of everything."""

import asyncio
import io
import json

import pytest
from support.memory_store import NoOutcomes

from app.errors import StoreUnavailableError
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.outcomes.sweeper import SessionSweeper
from app.store.history_codec import Entry
from app.store.outcomes import ClosedCount, ClosedSession, Due, Unreadable
from model.events import Event

pytestmark = pytest.mark.anyio


def a_session(name, *, bought=False, closed_by="idle"):
    entries = [Entry(Event("page_view", 1), 0.5, "ab" * 8)]
    return ClosedSession(f"9000-{name}", name, bought, closed_by, 3 if bought else 0, 5, entries)


class Work(NoOutcomes):
    """The work of one sweep; keeps what the sweeper asks for."""

    def __init__(self, due, *, closed=0, lost=0, moved=None):
        self._due, self._count, self._moved = due, ClosedCount(closed, lost), moved
        self.asked = []
        self.begun = asyncio.Event()

    async def due(self, replica, *, lease_s, shards=range(256), one=False):
        if 0 in shards:
            self.asked.append(("due", replica, lease_s))
        if isinstance(self._due, Exception):
            self.begun.set()
            raise self._due
        return {shard: due for shard, due in self._due.items() if shard in shards}

    async def close_idle(self, idle):
        self.asked.append(("close_idle", dict(idle)))
        return self._count

    async def publish(self, sessions):
        self.asked.append(
            (
                "publish",
                {
                    shard: [(*one[:2], json.loads(one.json or "null")) for one in some]
                    for shard, some in sessions.items()
                },
            )
        )
        return {shard: [True] * len(some) for shard, some in sessions.items()} if self._moved is None else self._moved


class Sweeper:
    def __init__(self, work):
        self.metrics, self.log, self.counted = Metrics(), io.StringIO(), []
        logger = build_logger(log_level="debug", stream=self.log)
        self.sweeper = SessionSweeper(work, every_s=2.0, on_closed=self.on_closed, metrics=self.metrics, logger=logger)

    async def on_closed(self, sessions):
        self.counted.append([session.session_id for session in sessions])

    def total(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"willbuy_{name}_total", labels) or 0


async def test_a_sweep_closes_what_is_idle_and_publishes_what_is_closed():
    buyer, leaver = a_session("buyer", bought=True, closed_by="event"), a_session("leaver")
    by_call = a_session("caller", bought=True, closed_by="api")
    work = Work({1: Due(["a", "b"], [buyer, leaver]), 2: Due(["c"]), 3: Due((), [by_call])})
    it = Sweeper(work)
    assert not await it.sweeper.run_once()
    (_, replica, lease_s), closing, (_, published) = work.asked
    # A replica that misses three sweeps is dead
    assert lease_s == 6.0
    assert closing == ("close_idle", {1: ["a", "b"], 2: ["c"]})
    assert {shard: [(entry, name) for entry, name, _ in some] for shard, some in published.items()} == {
        1: [("9000-buyer", "buyer"), ("9000-leaver", "leaver")],
        3: [("9000-caller", "caller")],
    }
    assert [one["outcome"] for some in published.values() for *_, one in some] == ["purchase", "none", "purchase"]
    assert it.counted == [["buyer", "leaver", "caller"]]
    for outcome, closed_by in (("purchase", "event"), ("none", "idle"), ("purchase", "api")):
        assert it.total("outcomes", outcome=outcome, closed_by=closed_by) == 1
    assert it.total("outcomes_lost") == 0
    # And it is the same replica each time, of which there are no two
    await it.sweeper.run_once()
    assert work.asked[3][1] == replica
    other = Work({})
    await Sweeper(other).sweeper.run_once()
    assert other.asked[0][1] != replica


async def test_what_another_replica_moved_is_its_own_to_count():
    sessions = [a_session(name) for name in "abc"]
    # Of three shards one was not reached
    work = Work({1: Due((), sessions[:2]), 2: Due((), sessions[2:])}, moved={1: [False, True]})
    it = Sweeper(work)
    await it.sweeper.run_once()
    assert it.counted == [["b"]]
    assert it.total("outcomes", outcome="none", closed_by="idle") == 1
    nothing = Sweeper(Work({1: Due((), sessions[:1])}, moved={1: [False]}))
    await nothing.sweeper.run_once()
    assert nothing.counted == []


@pytest.mark.parametrize("lost", [1, 2, 5])
async def test_each_lost_session_counts(lost):
    it = Sweeper(Work({1: Due(["a"])}, lost=lost))
    await it.sweeper.run_once()
    assert it.total("outcomes_lost") == lost
    (line,) = it.log.getvalue().splitlines()
    assert (json.loads(line)["event"], json.loads(line)["sessions"]) == ("outcomes_lost", lost)


async def test_each_unreadable_session_is_removed_and_counts_as_lost():
    work = Work({1: Due((), [Unreadable("1-1", "x"), a_session("good"), Unreadable("1-2", "y")])})
    it = Sweeper(work)
    await it.sweeper.run_once()
    (_, published) = work.asked[-1]
    assert [(entry, name, text is None) for entry, name, text in published[1]] == [
        ("1-1", "x", True),
        ("9000-good", "good", False),
        ("1-2", "y", True),
    ]
    assert it.total("outcomes_lost") == 2
    assert it.counted == [["good"]]


@pytest.mark.parametrize(
    ("due", "closed", "goes_on"),
    [
        ({}, 0, False),
        ({1: Due(["a"])}, 0, False),
        ({1: Due(["a"])}, 1, True),
        ({1: Due(is_more=True), 2: Due()}, 0, True),
        ({1: Due(), 2: Due(is_more=True)}, 0, True),
    ],
)
async def test_a_sweep_goes_on_while_there_is_more(due, closed, goes_on):
    assert await Sweeper(Work(due, closed=closed)).sweeper.run_once() is goes_on


async def test_without_a_store_a_sweep_is_a_failure_as_a_defect_is():
    for failure in (StoreUnavailableError("away"), RuntimeError("a defect")):
        work = Work(failure)
        it = Sweeper(work)
        it.sweeper.start()
        await work.begun.wait()
        await it.sweeper.close()
        assert it.total("closer_failures") > 0
