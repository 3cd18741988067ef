"""The bytes of a session's history are counted in its record, and bounded."""

from itertools import count

import pytest
from msgspec.structs import replace
from support.fakes import FakeModel
from support.memory_store import MemoryStore
from support.rebuilds import score_all

from app.errors import SessionTooLargeError
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.scoring.events import QueuedEvent
from app.scoring.rebuilder import Rebuilder
from app.scoring.scorer import Scorer
from app.scoring.session_update import LARGEST_ENTRY_BYTES
from app.store.history_codec import encode_event
from app.store.record_codec import Outcome, encode_record
from model.events import Event, identifier_code

pytestmark = pytest.mark.anyio

NOW_MS = 1_795_392_000_000
MANY = 2**22
_codes = count(1)


def queued(item_id="SKU", *, event_id=None, name="view_item", properties=None):
    return QueuedEvent(
        session_id="s",
        event=Event(name, NOW_MS, item_id, properties=properties or {}),
        code=next(_codes) if event_id is None else identifier_code(event_id),
        has_event_id=event_id is not None,
        received_ms=NOW_MS,
    )


@pytest.fixture
def store():
    return MemoryStore(session_idle_s=1800, now_ms=lambda: NOW_MS)


async def scored(store, *batch, most_bytes=MANY, model=None):
    metrics, logger = Metrics(), build_logger(log_level="error")
    rebuilder = Rebuilder(store, metrics=metrics, logger=logger)
    scorer = Scorer(
        store,
        model or FakeModel(),
        metrics=metrics,
        logger=logger,
        max_session_events=1000,
        max_session_bytes=most_bytes,
        dedupe_window=64,
        rebuilder=rebuilder,
    )
    return await score_all(scorer, rebuilder, batch)


async def counted(store):
    (record,) = await store.load(["s"])
    return record.history_bytes


def stored(store):
    return sum(map(len, store.sessions["s"].history))


ITEMS = ["SKU-1", "\N{SHOPPING TROLLEY}" * 200, "é" * 100, "SKU-1" * 40]


@pytest.mark.parametrize("together", [1, 2, 4], ids=["one by one", "in pairs", "in one batch"])
@pytest.mark.parametrize("properties", [{}, {"where": "\N{SHOPPING TROLLEY}" * 256}], ids=["bare", "with properties"])
async def test_the_record_counts_the_bytes_that_are_stored(store, together, properties):
    for first in range(0, len(ITEMS), together):
        batch = [queued(item_id, properties=properties) for item_id in ITEMS[first : first + together]]
        await scored(store, *batch)
        assert await counted(store) == stored(store) > 0


# Four of them are larger together than what is assumed of one, and each is smaller.
LARGE = {f"{number:02}": "\N{SHOPPING TROLLEY}" * 256 for number in range(32)}


@pytest.mark.parametrize("together", [True, False], ids=["in one batch", "one by one"])
@pytest.mark.parametrize("properties", [{}, LARGE], ids=["small", "large"])
async def test_a_session_may_have_exactly_the_bytes_of_the_bound(together, properties):
    def events():
        # Properties that a history does not repeat
        return [queued(one, properties={**properties, "n": number}) for number, one in enumerate(ITEMS)]

    # Given the size of a session of four events
    sized = MemoryStore(session_idle_s=1800, now_ms=lambda: NOW_MS)
    await scored(sized, *events())
    size = await counted(sized)
    assert (size > LARGEST_ENTRY_BYTES) == bool(properties)
    for most_bytes, accepted in ((size + 1, 4), (size, 4), (size - 1, 3)):
        store = MemoryStore(session_idle_s=1800, now_ms=lambda: NOW_MS)
        batch = events()
        if together:
            results = await scored(store, *batch, most_bytes=most_bytes)
        else:
            results = [(await scored(store, one, most_bytes=most_bytes))[0] for one in batch]
        assert [isinstance(result, SessionTooLargeError) for result in results] == [False] * accepted + [True] * (
            4 - accepted
        )
        assert await counted(store) == stored(store) <= most_bytes
        assert len(store.sessions["s"].history) == accepted


async def test_a_session_at_its_bound_takes_what_is_small_enough_a_repetition_and_the_purchase(store):
    (first,) = await scored(store, queued(event_id="e"))
    bound = await counted(store) + 20
    results = await scored(
        store,
        queued("x" * 200),
        queued(event_id="e"),
        queued("small"),
        queued("x" * 200),
        queued(name="purchase"),
        most_bytes=bound,
    )
    large, again, small, large_too, purchase = results
    assert isinstance(large, SessionTooLargeError)
    assert isinstance(large_too, SessionTooLargeError)
    assert f"may have {bound}" in large.detail
    assert again.duplicate
    assert again.answer == first.answer
    assert small.answer.events == 2
    assert purchase.answer.outcome is Outcome.PURCHASE
    assert await counted(store) == stored(store) <= bound


async def test_a_rebuild_for_another_model_keeps_the_size(store):
    await scored(store, *[queued(item_id) for item_id in ITEMS])
    size = await counted(store)
    (refused,) = await scored(store, queued("one more"), most_bytes=size, model=FakeModel("b"))
    assert isinstance(refused, SessionTooLargeError)
    assert await counted(store) == size == stored(store)
    (record,) = await store.load(["s"])
    assert record.model == FakeModel("b").fingerprint


async def test_a_session_whose_size_is_not_known_goes_on(store):
    # As of a release that did not count
    await scored(store, queued())
    session = store.sessions["s"]
    (record,) = await store.load(["s"])
    session.record = encode_record(replace(record, history_bytes=0))
    (score,) = await scored(store, queued())
    assert score.answer.events == 2
    assert 0 < await counted(store) < stored(store)


def test_the_largest_event_is_smaller_than_what_is_assumed_of_it():
    wide = "\N{SHOPPING TROLLEY}"
    properties = {f"{number:02}" + wide * 62: wide * 256 for number in range(32)}
    event = Event(wide * 128, -(2**53), wide * 256, wide * 256, 1 / 3, 1 / 3, properties)
    assert len(encode_event(event, 1 / 3, "ab" * 8)) < LARGEST_ENTRY_BYTES
