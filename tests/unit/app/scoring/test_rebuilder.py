"""Rebuilds of states: how many sessions wait, and what becomes of those that cannot be rebuilt."""

import io
import math

import pytest
from msgspec.structs import replace
from support.fakes import FakeModel
from support.memory_store import MemoryStore
from support.records import a_record

from app.errors import OverloadedError, PredictionError
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.scoring.rebuilder import Rebuilder
from app.store.interface import Commit
from model.events import Event

pytestmark = pytest.mark.anyio

MOST_WAITING = 10_000
EVENT = Event("page_view", 1)


class Bench:
    """A rebuilder whose store has one session of another model."""

    def __init__(self) -> None:
        self.store = MemoryStore(session_idle_s=1800, now_ms=lambda: 1)
        self.metrics = Metrics()
        logger = build_logger(log_level="critical", stream=io.StringIO())
        self.rebuilder = Rebuilder(self.store, metrics=self.metrics, logger=logger)
        self.record = a_record()

    async def rebuild(self, model: FakeModel) -> None:
        assert await self.store.commit([Commit("s", None, self.record, [EVENT], [0.5], "00" * 8)]) == [True]
        self.rebuilder.start("s", self.record, model)
        pending = self.rebuilder.pending("s")
        assert pending is not None
        await pending
        await self.store.delete("s")


class NotANumber(FakeModel):
    def fold(self, histories, states):
        return [([math.nan] * len(history), bytes(16)) for history in histories]


async def test_a_state_with_a_probability_that_is_no_number_is_not_stored() -> None:
    bench = Bench()
    await bench.rebuild(NotANumber("new"))
    assert isinstance(bench.rebuilder.failure("s", bench.record), PredictionError)
    assert bench.metrics.registry.get_sample_value("willbuy_rebuild_failures_total") == 1
    # It is said once, so that the next event tries again
    assert bench.rebuilder.failure("s", bench.record) is None
    await bench.rebuilder.close()


async def test_a_failure_is_of_the_record_that_failed_and_of_no_later_one() -> None:
    bench = Bench()
    await bench.rebuild(NotANumber("new"))
    # Given that another replica has committed to the session since
    later = replace(bench.record, version=b"a later ")
    assert bench.rebuilder.failure("s", later) is None
    await bench.rebuilder.close()


async def test_a_bounded_number_of_sessions_waits_and_one_more_is_refused() -> None:
    # Given a rebuilder whose task has not had its turn
    rebuilder = Bench().rebuilder
    model = FakeModel("new")
    for number in range(MOST_WAITING):
        rebuilder.start(f"s-{number}", a_record(), model)
    # When one more session asks, and one that waits already asks again
    with pytest.raises(OverloadedError):
        rebuilder.start("one-more", a_record(), model)
    rebuilder.start("s-0", a_record(), model)
    # Then it is refused, and nothing of it stays
    assert rebuilder.pending("one-more") is None
    assert rebuilder.pending("s-0") is not None
    await rebuilder.close()
