"""How many sessions wait for their states to be rebuilt."""

import io

import pytest
from support.fakes import FakeModel
from support.memory_store import MemoryStore

from app.errors import OverloadedError
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.scoring.rebuilder import Rebuilder
from app.store.record_codec import Answers, Outcome, Record

pytestmark = pytest.mark.anyio

MOST_WAITING = 10_000


def a_record() -> Record:
    return Record(
        version=bytes(8),
        model="00" * 8,
        probability=0.5,
        events=1,
        first_seen_ms=1,
        last_seen_ms=1,
        last_event_ms=1,
        outcome=Outcome.OPEN,
        outcome_ms=0,
        answers=Answers(),
        state=b"",
    )


async def test_a_bounded_number_of_sessions_waits_and_one_more_is_refused() -> None:
    # Given a rebuilder whose task has not had its turn
    store = MemoryStore(session_idle_s=1800, now_ms=lambda: 1)
    logger = build_logger(log_format="json", log_level="critical", stream=io.StringIO())
    rebuilder = Rebuilder(store, metrics=Metrics(), logger=logger)
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
