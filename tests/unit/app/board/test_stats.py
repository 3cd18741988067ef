"""`GET /v1/stats` over several replicas: each reports for itself, and any of them answers for all."""

import asyncio
import json
from typing import Any

import pytest
from support.fakes import FakeModel
from support.memory_store import MemoryStore

from app.board.carts import carts_of
from app.board.meter import Meter
from app.board.stake import AtStake
from app.board.stats import Stats
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.schemas.board import OutcomesOut

pytestmark = pytest.mark.anyio


class Replica:
    """One replica's statistics, on a clock that is moved by hand."""

    def __init__(self, store: MemoryStore, *, queued: int = 0) -> None:
        self._store = store
        self._now_s = 100.0
        self._metrics = Metrics()
        self.stats = Stats(
            store,
            Meter(self._metrics, queue_length=lambda: queued, queue_capacity=10, clock_s=lambda: self._now_s),
            model=lambda: "f" * 16,
            outcomes=self._outcomes,
            quality=self._quality,
            at_stake=AtStake(store.board, carts_of(FakeModel)),
            logger=build_logger(log_level="error"),
        )

    async def _outcomes(self) -> OutcomesOut:
        return OutcomesOut(purchase=0, none=0, window_s=1, pending=0, pending_s=1)

    async def _quality(self) -> Any:
        """Return nothing, as the answer allows."""

    def answers(self, events: int, latency_s: float) -> None:
        """Answer so many events within ten seconds."""
        self._now_s += 10.0
        for _ in range(events):
            self._metrics.events_folded.inc()
            self._metrics.request_seconds.labels("/v1/events").observe(latency_s)

    async def reports(self) -> None:
        """Report; the next one is due in a second."""
        before = len(await self._store.replicas.reports())
        self.stats.start()
        while len(await self._store.replicas.reports()) == before:  # noqa: ASYNC110 - the store has no event
            await asyncio.sleep(0)

    async def read(self) -> dict:
        return json.loads((await self.stats.read()).body)


@pytest.fixture
async def store():
    return MemoryStore(session_idle_s=60, now_ms=lambda: 0)


async def test_each_replica_counts_once_and_any_answers_for_all(store):
    quick, slow = Replica(store, queued=1), Replica(store, queued=3)
    quick.answers(30, 0.003)
    slow.answers(10, 1.5)
    await quick.reports()
    await slow.reports()
    for one in (quick, slow):
        found = await one.read()
        assert found["replicas"] == 2
        assert found["totals"]["events_folded"] == 40
        assert found["rates"]["events_per_s"] == 4.0
        assert found["queue"] == {"length": 4, "capacity": 20, "overloaded": False}
        assert found["latency_ms"]["p50"] < 10
        assert found["latency_ms"]["p95"] > 1000
    await slow.stats.close()
    assert (await quick.read())["replicas"] == 1
    await quick.stats.close()
    assert not await store.replicas.reports()


async def test_a_replica_with_a_full_queue_is_seen_from_the_others(store):
    free, full = Replica(store), Replica(store, queued=10)
    assert not (await free.read())["queue"]["overloaded"]
    await full.reports()
    assert (await free.read())["queue"]["overloaded"]
    await full.stats.close()


async def test_a_replica_of_another_release_counts_and_its_numbers_do_not(store):
    here = Replica(store)
    here.answers(20, 0.003)
    await store.replicas.report("another release", b"\x90")
    found = await here.read()
    assert (found["replicas"], found["totals"]["events_folded"]) == (2, 20)
