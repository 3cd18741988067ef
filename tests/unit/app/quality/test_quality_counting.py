"""Counts of ended sessions and the figures of the window, with a memory store and a fake clock."""

import asyncio
import io
import math
from typing import cast

import pytest
from support.memory_counts import MemoryCounts

from app.errors import StoreUnavailableError
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.quality.model_quality import ModelQuality
from app.quality.window import BUCKETS, Window
from app.store.history_codec import Entry
from app.store.outcomes import ClosedSession, Counts
from model.events import Event
from model.interface import Model
from model.summary import DataSummary, InputCounts

ONE, OTHER = "9f86d081884c7d65", "0011223344556677"
HOUR_MS = 3_600_000
HALF_HOUR_MS = HOUR_MS // 2
DAY = 20_000
NOW_MS = DAY * 24 * HOUR_MS
# With an idle time of half an hour, sessions that began three quarters of an hour ago count.
IDLE_S = 1800
PENDING_MS = 45 * 60_000
BEGAN_MS = NOW_MS - 5 * HOUR_MS
BUCKET = BEGAN_MS // HALF_HOUR_MS
SUMMARY = DataSummary(1000, 5000, 0.01, ("steady",), ((0.0,),), ((0.5, 0.5),))

pytestmark = pytest.mark.anyio


class Inputs:
    """Says which sessions' inputs it was asked for."""

    def __init__(self, fingerprint=ONE, summary=SUMMARY):
        self.fingerprint, self.summary = fingerprint, summary
        self.counted = []

    def count_inputs(self, histories):
        if any(event.event_name == "poison" for history in histories for event in history):
            raise RuntimeError("poisoned")
        self.counted += histories
        events = sum(map(len, histories))
        return InputCounts(events, 0, ((events, 0),))


class Quality:
    """A `ModelQuality` with the parts that it is made of."""

    def __init__(self, model=None, **options):
        self.log = io.StringIO()
        self.store, self.model, self.metrics, self.now_ms = MemoryCounts(), model or Inputs(), Metrics(), NOW_MS
        self.quality = ModelQuality(
            self.store,
            lambda: cast("Model", self.model),
            window_s=24 * 3600,
            idle_s=IDLE_S,
            now_ms=lambda: self.now_ms,
            metrics=self.metrics,
            logger=build_logger(log_level="info", stream=self.log),
            **options,
        )

    def gauge(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"willbuy_{name}", labels)


def a_session(*probabilities, bought=False, began_ms=BEGAN_MS, model=ONE, name="page_view"):
    """A session whose events are of another clock than its last commit, and that was closed much later."""
    entries = [Entry(Event(name, place), probability, model) for place, probability in enumerate(probabilities)]
    seen_ms = began_ms + max(0, len(entries) - 1)
    return ClosedSession(f"{seen_ms + 7 * HOUR_MS}-0", "s", bought, "idle", 0, seen_ms, entries)


def test_a_session_began_as_long_before_its_last_commit_as_its_events_lasted():
    entries = [Entry(Event("page_view", at_ms), 0.1, ONE) for at_ms in (500, 9_500)]
    idle = ClosedSession("99-0", "s", False, "idle", 0, 1_000_000, entries)
    assert idle.began_ms == 1_000_000 - 9_000
    # The purchase is later than the last event of the history, and its commit is the last one
    assert ClosedSession("99-0", "s", True, "event", 20_500, 1_000_000, entries).began_ms == 1_000_000 - 20_000
    assert ClosedSession("99-0", "s", True, "event", 400, 1_000_000, entries[:1]).began_ms == 1_000_000
    assert ClosedSession("99-0", "s", True, "event", 20_500, 1_000_000, []).began_ms == 1_000_000


async def test_a_session_is_counted_when_it_began_for_its_first_model_and_for_all():
    it = Quality()
    other = a_session(0.9, bought=True, began_ms=BEGAN_MS - 1, model=OTHER)
    # When three sessions are counted, one of them of another model and a bucket before
    await it.quality.count([a_session(0.1, 0.2), a_session(0.3), other])
    # Then each is in the bucket of its begin, for its own model and for all
    assert it.store.keys == {("all", BUCKET), (ONE, BUCKET), ("all", BUCKET - 1), (OTHER, BUCKET - 1)}
    ones, everybodys, others = await it.store.counts([(ONE, BUCKET), ("all", BUCKET), (OTHER, BUCKET - 1)])
    assert (ones.answers["s"], ones.answers["b"]) == (2, 0)
    assert everybodys == Counts({"s": 2, "b": 0}, {})
    assert (others.answers["s"], others.answers["b"]) == (1, 1)
    # And the inputs of those that began with the model in use
    assert (ones.inputs["sessions"], ones.inputs["events"]) == (2, 3)
    assert others.inputs == {}


async def test_no_session_counts_earlier_than_an_idle_time_after_its_last_event():
    # Given a purchase whose events say that it took two hours; the service has seen them within moments
    it = Quality()
    entries = [Entry(Event("page_view", at_ms), 0.5, ONE) for at_ms in (0, 2 * HOUR_MS)]
    await it.quality.count([ClosedSession("1-0", "s", True, "event", 2 * HOUR_MS, NOW_MS, entries)])
    # When the page is looked at until an idle time has passed, and after the bucket's end
    shown = []
    for minutes in (0, 15, 29, 61):
        it.now_ms = NOW_MS + minutes * 60_000
        found = await ModelQuality(
            it.store,
            lambda: cast("Model", it.model),
            window_s=24 * 3600,
            idle_s=IDLE_S,
            now_ms=lambda: it.now_ms,
            metrics=Metrics(),
            logger=build_logger(log_level="info", stream=io.StringIO()),
        ).outcomes()
        shown.append((found.purchase, found.pending))
    # Then it counts only when a session without a purchase would have
    assert shown == [(0, 1), (0, 1), (0, 1), (1, 0)]


async def test_a_session_that_another_model_began_counts_for_that_model_alone():
    # Given a session that a release has overtaken
    it = Quality()
    events = [Entry(Event("page_view", at_ms), 0.5, model) for at_ms, model in enumerate((OTHER, OTHER, ONE))]
    # When it has bought
    await it.quality.count([ClosedSession("1-0", "s", True, "event", 2, BEGAN_MS, events)])
    # Then the new model's figures do not have it: of such sessions, first the buyers end
    assert {model for model, _ in it.store.keys} == {"all", OTHER}
    (of_other,) = await it.store.counts([(OTHER, (BEGAN_MS - 2) // HALF_HOUR_MS)])
    assert sum(number for name, number in of_other.answers.items() if name.startswith("n")) == 2
    assert it.model.counted == []


async def test_the_same_sessions_published_twice_count_twice_as_each_call_is_new():
    it = Quality()
    for _ in range(2):
        await it.quality.count([a_session(0.1)])
    assert (await it.quality.outcomes()).none == 2


async def test_outcomes_are_of_all_models_and_figures_of_the_one_in_use():
    it = Quality()
    sessions = [a_session(0.5, bought=number < 5) for number in range(30)]
    await it.quality.count([*sessions, a_session(0.9, bought=True, model=OTHER)])
    outcomes = await it.quality.outcomes()
    assert (outcomes.purchase, outcomes.none, outcomes.window_s) == (6, 25, 24 * 3600)
    found = await it.quality.summary()
    assert (found.sessions, found.buyers, found.predictions) == (30, 5, 30)
    assert found.overall.log_loss == pytest.approx(math.log(2))
    assert found.drift is not None
    assert found.drift.sessions == 30
    # When another model is loaded, the same second
    it.model = Inputs(OTHER, summary=None)
    # Then the figures are its own, and there is no drift without a summary
    found = await it.quality.summary()
    assert (found.sessions, found.buyers, found.drift) == (1, 1, None)


async def test_what_was_read_is_not_read_again_for_each_poller():
    it = Quality()
    await asyncio.gather(*(it.quality.summary() for _ in range(5)))
    await it.quality.summary()
    assert set(it.store.reads.values()) == {1}
    assert len(it.store.reads) == BUCKETS + 3


async def test_a_session_without_an_event_has_no_inputs():
    it = Quality()
    await it.quality.count([a_session(), a_session(0.1)])
    (found,) = await it.store.counts([(ONE, BUCKET)])
    assert found.inputs["sessions"] == 1
    assert it.model.counted == [[Event("page_view", 0)]]
    nothing = Quality(Inputs(summary=None))
    await nothing.quality.count([a_session()])
    assert nothing.store.keys == {("all", BUCKET)}


async def test_inputs_beyond_a_minutes_budget_are_left_out_and_nothing_else():
    # Four events at once, and then one in 15 seconds
    it = Quality(drift_events_per_s=4 / 60)
    await it.quality.count([a_session(*[0.1] * events) for events in (3, 3, 1)])
    assert (await it.quality.outcomes()).none == 3
    # A session that begins within the budget is counted whole, and takes what the next one would have had
    assert [len(history) for history in it.model.counted] == [3, 3]


async def test_a_model_that_fails_on_inputs_spoils_no_other_figure():
    it = Quality()
    poisoned = a_session(0.1, began_ms=BEGAN_MS - HOUR_MS, name="poison")
    await it.quality.count([poisoned, a_session(0.2)])
    assert it.gauge("drift_failures_total") == 1
    assert (await it.quality.outcomes()).none == 2
    found = await it.quality.summary()
    assert (found.sessions, found.drift and found.drift.sessions) == (2, 1)


async def test_gauges_show_the_figures_and_nan_where_there_is_none():
    it = Quality()
    await it.quality.count([a_session(0.25, bought=number < 5) for number in range(100)])
    await it.quality.show()
    assert it.gauge("trust_sessions", events="all") == it.gauge("trust_sessions", events="1-1") == 100
    assert it.gauge("trust_sessions", events="21-") == 0
    assert it.gauge("trust_figure", figure="mean_probability", events="all") == 0.25
    assert it.gauge("trust_figure", figure="base_rate", events="1-1") == 0.05
    assert math.isnan(it.gauge("trust_figure", figure="auc", events="2-2"))
    assert it.gauge("drift_sessions") == 100
    assert it.gauge("drift_max_psi") == pytest.approx(0.5 * math.log(2) + (0.5 - 1e-4) * math.log(5000), abs=1e-3)
    assert it.gauge("drift_unseen_name_share") == 0
    # A model without a summary has no drift
    it.model = Inputs(OTHER, summary=None)
    await it.quality.show()
    assert it.gauge("drift_sessions") == 0
    assert math.isnan(it.gauge("drift_max_psi"))
    assert math.isnan(it.gauge("drift_unseen_name_share"))


async def test_callers_are_told_that_redis_is_away():
    it = Quality()
    it.store.is_away = True
    for failing in (it.quality.summary(), it.quality.outcomes(), it.quality.count([a_session(0.1)])):
        with pytest.raises(StoreUnavailableError):
            await failing


@pytest.mark.parametrize(("failure", "is_logged"), [(StoreUnavailableError("away"), False), (ValueError("bad"), True)])
async def test_the_gauges_wait_while_redis_is_away_and_a_defect_is_logged(failure, is_logged, monkeypatch):
    it = Quality()
    begun = asyncio.Event()

    async def failing(keys):
        begun.set()
        raise failure

    monkeypatch.setattr(it.store, "counts", failing)
    it.quality.start()
    await begun.wait()
    # The failure goes through a reading's task to the loop's
    for _ in range(10):
        await asyncio.sleep(0)
    await it.quality.close()
    assert ("trust_failed" in it.log.getvalue()) is is_logged


async def test_a_reading_ends_with_the_service(monkeypatch):
    it = Quality()
    begun = asyncio.Event()

    async def never(keys):
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(it.store, "counts", never)
    waiting = asyncio.create_task(it.quality.summary())
    await begun.wait()
    await it.quality.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


# --- the window


def window_of_a_day(store):
    return Window(store, window_s=24 * 3600, pending_s=PENDING_MS / 1000)


async def test_the_window_has_48_buckets_that_are_old_enough_and_tells_how_many_sessions_are_not():
    # Given a session in each of sixty buckets, the current one and those before
    store = MemoryCounts()
    window = window_of_a_day(store)
    current = NOW_MS // HALF_HOUR_MS
    for number in range(60):
        await window.add(f"token-{number}", {(ONE, current - number): Counts({"s": 10**number}, {"events": 1})})
    # When the window is read at the first millisecond of a bucket
    found = await window.read(ONE, NOW_MS)
    # Then it begins three buckets before: the current one and two that are younger than 45 minutes do not count
    assert found.counts == Counts({"s": sum(10**number for number in range(3, 3 + BUCKETS))}, {"events": BUCKETS})
    assert found.pending == 111
    # And a quarter of an hour later one of those is old enough
    assert (await window_of_a_day(store).read(ONE, NOW_MS + HALF_HOUR_MS // 2 - 1)) == found
    later = await window_of_a_day(store).read(ONE, NOW_MS + HALF_HOUR_MS // 2)
    assert later.counts.answers["s"] == sum(10**number for number in range(2, 2 + BUCKETS))
    assert later.pending == 11
    assert await window.read(OTHER, NOW_MS) == (Counts({}, {}), 0)


async def test_a_token_counts_once_and_a_bucket_lives_as_long_as_the_window_needs_it():
    store = MemoryCounts()
    window = window_of_a_day(store)
    bucket = window.bucket_of(BEGAN_MS)
    for _ in range(2):
        await window.add("token", {(ONE, bucket): Counts({"s": 1})})
    assert (await window.read(ONE, NOW_MS)).counts.answers["s"] == 1
    # Added at the bucket's very end, it is read until the bucket leaves the window
    assert store.lifetimes_s[ONE, bucket] * 1000 >= 24 * HOUR_MS + PENDING_MS + HALF_HOUR_MS


@pytest.mark.parametrize(("after_ms", "read_again"), [(300_000, {-1, 0, 1, 2, 3}), (300_001, {0, 1, 2, 3})])
async def test_a_bucket_is_read_once_from_five_minutes_after_twice_the_pending_time_on(after_ms, read_again):
    store = MemoryCounts()
    window = window_of_a_day(store)
    # The bucket that ends now
    bucket = NOW_MS // HALF_HOUR_MS
    settled_ms = NOW_MS + 2 * PENDING_MS
    await window.read(ONE, settled_ms + after_ms)
    assert len(store.reads) == BUCKETS + 3
    store.reads.clear()
    await window.read(ONE, settled_ms + after_ms)
    assert {number - bucket for _, number in store.reads} == read_again
    # Another model's buckets are its own
    await window.read(OTHER, settled_ms + after_ms)
    assert len([key for key in store.reads if key[0] == OTHER]) == BUCKETS + 3


async def test_the_oldest_bucket_is_kept_until_it_leaves():
    store = MemoryCounts()
    window = window_of_a_day(store)
    await window.read(ONE, NOW_MS)
    store.reads.clear()
    await window.read(ONE, NOW_MS)
    await window.read(ONE, NOW_MS)
    current = NOW_MS // HALF_HOUR_MS
    assert store.reads == {(ONE, current - number): 2 for number in range(5)}
