import asyncio
import io
import math

import pytest
from support.fakes import FakeModel
from support.memory_store import MemoryStore

from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.scoring.events import QueuedEvent
from app.scoring.scorer import Scorer
from app.scoring.shadow import Shadow
from model.events import PURCHASE, Event

pytestmark = pytest.mark.anyio

IDLE_S = 60


class Shop:
    """A live model, a store in memory, a clock, and a candidate beside them."""

    def __init__(self, *, share=1.0, candidate=None, restarts=False):
        self.now_ms = 1_000_000
        self.metrics = Metrics()
        self.live = FakeModel("live")
        self.candidate = candidate or FakeModel("candidate")
        self.store = MemoryStore(session_idle_s=IDLE_S, now_ms=lambda: self.now_ms)
        logger = build_logger(log_level="critical", stream=io.StringIO())
        self.scorer = Scorer(
            self.store,
            self.live,
            metrics=self.metrics,
            logger=logger,
            max_session_events=100,
            max_session_bytes=2**20,
            dedupe_window=8,
            commit_attempts=3,
            restarts=restarts,
        )
        self.shadow = Shadow(
            self.store,
            self.candidate,
            live=lambda: self.live.fingerprint,
            share=share,
            session_idle_s=IDLE_S,
            now_ms=lambda: self.now_ms,
            metrics=self.metrics,
            logger=logger,
        )
        self._codes = 0

    async def post(self, session_id, *events, code=None):
        """The events of a session, one batch each, seen by the shadow."""
        for event in events:
            self._codes += 1
            queued = QueuedEvent(session_id, event, code or self._codes, has_event_id=True, received_ms=self.now_ms)
            results = await self.scorer.score([queued])
            self.shadow.observe([queued], results)

    def value(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"willbuy_shadow_{name}", labels) or 0.0

    async def compare(self, session_id, *, bought=False):
        """Compare a session now."""
        await self.shadow._compare({session_id: bought})  # noqa: SLF001 - a shadow that runs does it at any moment

    async def until(self, name, value, **labels):
        async with asyncio.timeout(20):
            while self.value(name, **labels) < value:  # noqa: ASYNC110 - what is waited for raises no event
                await asyncio.sleep(0.001)


@pytest.fixture
async def shop():
    shop = Shop()
    shop.shadow.start()
    yield shop
    await shop.shadow.close()


EVENTS = [Event("page_view", 1), Event("view_item", 2), Event("add_to_cart", 3)]


async def test_both_models_probabilities_of_a_session_are_set_side_by_side(shop):
    await shop.post("s-1", *EVENTS)
    await shop.until("difference_count", 1)
    live, candidate = shop.live.expected(EVENTS), shop.candidate.expected(EVENTS)
    # Three events that came quickly are one comparison, of the last
    assert shop.value("difference_count") == 1
    assert shop.value("difference_sum") == pytest.approx(abs(live - candidate))
    assert shop.value("probability_sum", model="live") == pytest.approx(live)
    assert shop.value("probability_sum", model="candidate") == pytest.approx(candidate)


async def test_a_purchase_and_the_end_of_a_session_without_one_give_each_models_loss(shop):
    await shop.post("buys", *EVENTS)
    await shop.post("leaves", *EVENTS[:2])
    await shop.until("difference_count", 2)
    await shop.post("buys", Event(PURCHASE, 4))
    # The purchase is known at once, and counts when the session of the same time without one does
    await shop.until("difference_count", 3)
    await shop.shadow.count_ended()
    assert shop.value("outcomes_total", outcome="purchase") == 0
    shop.now_ms += 2 * IDLE_S * 1000
    await shop.until("outcomes_total", 1, outcome="none")
    assert shop.value("outcomes_total", outcome="purchase") == 1
    for name, model in (("live", shop.live), ("candidate", shop.candidate)):
        expected = -math.log(model.expected(EVENTS)) - math.log(1 - model.expected(EVENTS[:2]))
        assert shop.value("log_loss_sum", model=name) == pytest.approx(expected)
        assert shop.value("log_loss_count", model=name) == 2


async def test_a_session_that_went_on_elsewhere_is_left_to_the_replica_it_went_to(shop):
    await shop.post("s-1", *EVENTS)
    await shop.until("difference_count", 1)
    # Given a later event that another replica took, so that the record exists longer than this replica expects
    shop.now_ms += (IDLE_S - 1) * 1000
    await shop.scorer.score([QueuedEvent("s-1", Event("view_item", 9), 99, has_event_id=True, received_ms=shop.now_ms)])
    shop.now_ms += 10_000
    await shop.shadow.count_ended()
    shop.now_ms += 10 * IDLE_S * 1000
    await shop.shadow.count_ended()
    assert shop.value("outcomes_total", outcome="none") == 0


async def test_what_another_event_or_another_model_changed_meanwhile_is_not_compared(monkeypatch):
    shop = Shop()
    load_histories = shop.store.load_histories

    async def with_one_more(session_ids):
        later = QueuedEvent("s-1", Event("view_item", 9), 99, has_event_id=True, received_ms=shop.now_ms)
        await shop.scorer.score([later])
        return await load_histories(session_ids)

    await shop.post("s-1", *EVENTS)
    with monkeypatch.context() as patch:
        patch.setattr(shop.store, "load_histories", with_one_more)
        await shop.compare("s-1")
    assert shop.value("difference_count") == 0
    served, shop.live = shop.live, FakeModel("swapped")
    await shop.compare("s-1")
    assert shop.value("difference_count") == 0
    shop.live = served
    await shop.compare("s-1")
    assert shop.value("difference_count") == 1


async def test_sessions_end_an_idle_time_and_a_margin_after_their_last_event_in_whatever_order():
    shop = Shop()
    began_ms = shop.now_ms
    for at_s, session_id in ((0, "goes on"), (1, "leaves"), (50, "goes on")):
        shop.now_ms = began_ms + at_s * 1000
        await shop.post(session_id, EVENTS[0])
        await shop.compare(session_id)
    for at_s, ended in ((IDLE_S + 2, 0), (IDLE_S + 3, 1), (IDLE_S + 51, 1), (IDLE_S + 52, 2)):
        shop.now_ms = began_ms + at_s * 1000
        await shop.shadow.count_ended()
        assert shop.value("outcomes_total", outcome="none") == ended


async def test_a_buyer_who_looks_around_afterwards_is_counted_as_one():
    shop = Shop()
    await shop.post("s-1", *EVENTS, Event(PURCHASE, 4))
    await shop.compare("s-1", bought=True)
    shop.now_ms += (IDLE_S - 1) * 1000
    await shop.post("s-1", Event("view_item", 5))
    shop.now_ms += 10_000
    assert (await shop.store.load(["s-1"]))[0] is not None
    await shop.shadow.count_ended()
    assert shop.value("outcomes_total", outcome="purchase") == 1


async def test_a_visit_that_begins_after_a_purchase_is_no_buyers():
    shop = Shop(restarts=True)
    await shop.post("s-1", *EVENTS, Event(PURCHASE, 4), Event("view_item", 5))
    assert dict(waiting(shop)) == {"s-1": False}


class Certain(FakeModel):
    """A model that is certain of every purchase."""

    def refold(self, histories):
        return [(1.0, *others) for _, *others in super().refold(histories)]


async def test_a_certain_error_has_a_finite_loss():
    shop = Shop(candidate=Certain("candidate"))
    await shop.post("s-1", *EVENTS)
    await shop.compare("s-1")
    shop.now_ms += 2 * IDLE_S * 1000
    await shop.shadow.count_ended()
    assert shop.value("log_loss_sum", model="candidate") == pytest.approx(-math.log(1e-6))


def waiting(shop):
    """The sessions that a shadow which has not started would look at, in order."""
    return shop.shadow._queue  # noqa: SLF001 - a shadow that runs empties it at any moment


async def test_duplicates_and_sessions_outside_the_share_are_not_looked_at():
    shop = Shop(share=0.25)
    for number in range(400):
        await shop.post(f"s-{number}", EVENTS[0], code=1)
    chosen = len(waiting(shop))
    assert 60 < chosen < 140
    waiting(shop).clear()
    for number in range(400):
        await shop.post(f"s-{number}", EVENTS[0], code=1)
    assert not waiting(shop)
    # Every replica chooses the same ones
    other = Shop(share=0.25)
    for number in range(400):
        await other.post(f"s-{number}", EVENTS[0])
    assert len(waiting(other)) == chosen


async def test_what_finds_no_place_in_line_is_dropped_and_counted(monkeypatch):
    monkeypatch.setattr("app.scoring.shadow._MAX_QUEUE", 2)  # private: full after two
    shop = Shop()
    for session_id in ("a", "b", "c", "a"):
        await shop.post(session_id, EVENTS[0])
    assert list(waiting(shop)) == ["a", "b"]
    assert shop.value("dropped_total") == 1


async def test_a_candidate_that_crashes_is_counted_and_goes_on_with_other_sessions():
    shop = Shop(candidate=FakeModel("candidate", poison="SKU-9"))
    shop.shadow.start()
    await shop.post("bad", Event("view_item", 1, "SKU-9"))
    await shop.post("good", Event("view_item", 1, "SKU-1"))
    await shop.until("difference_count", 1)
    await shop.until("failures_total", 1)
    await shop.shadow.close()


async def test_a_store_that_crashes_is_counted_and_the_shadow_goes_on(shop):
    load = shop.store.load

    async def failing(session_ids):
        raise KeyError

    await shop.scorer.score([QueuedEvent("s-1", EVENTS[0], 1, has_event_id=True, received_ms=shop.now_ms)])
    shop.store.load = failing
    shop.shadow._enqueue("s-1", bought=False)  # noqa: SLF001 - the scorer would load from the failing store first
    await shop.until("failures_total", 1)
    shop.store.load = load
    shop.shadow._enqueue("s-1", bought=False)  # noqa: SLF001 - the scorer would load from the failing store first
    await shop.until("difference_count", 1)
