"""What a scorer stores and counts, whole, on a store whose clock is not the events' and not the server's."""

import io
import math

import pytest
from msgspec.structs import replace
from support.fakes import FakeModel
from support.memory_store import MemoryStore
from support.rebuilds import score_all

from app.errors import PredictionError, SessionFullError, StoreUnavailableError
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.scoring.events import QueuedEvent
from app.scoring.rebuilder import Rebuilder
from app.scoring.scorer import Scorer
from app.scoring.session_update import LATE
from app.store.interface import Commit
from app.store.record_codec import Outcome
from model.events import Event

pytestmark = pytest.mark.anyio

SERVER_MS = 1_795_392_000_000
# Visitors' clocks are days behind, and Redis' is hours ahead.
EVENT_MS = SERVER_MS - 3 * 86_400_000
STORE_MS = SERVER_MS + 5 * 3_600_000


class WatchedStore(MemoryStore):
    """A store in memory that keeps the commits it was given, and may refuse some."""

    def __init__(self):
        super().__init__(session_idle_s=1800, now_ms=lambda: STORE_MS)
        self.commits: list[Commit] = []
        self.before_commit = None

    async def commit(self, commits):
        if self.before_commit is not None:
            act, self.before_commit = self.before_commit, None
            await act()
        self.commits += commits
        return await super().commit(commits)


class Bench:
    def __init__(self, store, model=None, **limits):
        self.store, self.model, self.metrics = store, model or FakeModel(), Metrics()
        logger = build_logger(log_level="info", stream=io.StringIO())
        limits = {
            "max_session_events": 100,
            "max_session_bytes": 2**22,
            "dedupe_window": 8,
            "commit_attempts": 3,
        } | limits
        self.rebuilder = Rebuilder(store, metrics=self.metrics, logger=logger)
        self.scorer = Scorer(store, self.model, metrics=self.metrics, logger=logger, rebuilder=self.rebuilder, **limits)
        self._codes = 0

    def event(self, name="page_view", *, after_ms=0, session_id="s", item_id=None, code=None):
        self._codes += 1
        event = Event(name, EVENT_MS + after_ms, item_id)
        at_ms = SERVER_MS + 10_000 * self._codes
        return QueuedEvent(session_id, event, code=code or self._codes, has_event_id=True, received_ms=at_ms)

    async def score(self, *batch):
        return await score_all(self.scorer, self.rebuilder, batch)

    async def record(self):
        ((record,),) = [await self.store.load(["s"])]
        return record

    def counts(self):
        """The counters that are not zero."""
        names = [
            *("sessions_started", "events_folded", "late_events", "purchases", "closed_session_events"),
            *("duplicates", "conflicts", "rebuilds", "rebuilt_events"),
        ]
        found = {name: self.metrics.registry.get_sample_value(f"willbuy_{name}_total") for name in names}
        return {name: int(count) for name, count in found.items() if count}


@pytest.fixture
def bench():
    return Bench(WatchedStore())


async def test_a_session_is_dated_by_the_servers_clock_and_its_history_by_the_events(bench):
    first, second = bench.event(after_ms=50), bench.event(after_ms=20)
    purchase, after = bench.event("purchase", after_ms=30), bench.event(after_ms=90)
    for one in (first, second, purchase, after):
        await bench.score(one)
    record = await bench.record()
    assert (record.first_seen_ms, record.last_seen_ms) == (first.received_ms, after.received_ms)
    assert (record.last_event_ms, record.outcome_ms) == (EVENT_MS + 50, EVENT_MS + 30)


async def test_an_event_is_late_after_a_later_one_by_its_own_clock(bench):
    # Received in this order, an event of the same time is not late, and one of a millisecond before is
    events = [bench.event(after_ms=after_ms) for after_ms in (100, 100, 99, 101)]
    scores = [(await bench.score(one))[0] for one in events]
    assert [score.warnings for score in scores] == [(), (), (LATE,), ()]
    assert bench.counts() == {"sessions_started": 1, "events_folded": 4, "late_events": 1}


async def test_what_is_committed_is_what_the_session_was_and_what_came(bench):
    first, second = bench.event(), bench.event(after_ms=1)
    (one,) = await bench.score(first)
    before = await bench.record()
    (two,) = await bench.score(second)
    now = await bench.record()
    of_one, of_two = (score.answer.probability for score in (one, two))
    assert [replace(commit, encoded=None) for commit in bench.store.commits] == [
        Commit("s", None, before, [first.event], [of_one], model=bench.model.fingerprint),
        Commit(
            "s",
            before.version,
            now,
            [second.event],
            [of_two],
            previous=before,
        ),
    ]


async def test_a_session_is_closed_by_its_purchase_and_by_no_later_commit(bench):
    for name in ("page_view", "purchase", "page_view", "purchase"):
        await bench.score(bench.event(name))
    assert [(commit.closed_by, len(commit.appended)) for commit in bench.store.commits] == [
        *[(None, 1), ("event", 0)],
        *[(None, 0)] * 2,
    ]
    assert bench.counts() == {"sessions_started": 1, "events_folded": 1, "purchases": 1, "closed_session_events": 2}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, (None, None)),
        ({"value": 59.9, "currency": "EUR"}, (59.9, "EUR")),
        ({"price": 10.0, "quantity": 3.0}, (30.0, None)),
        ({"price": 10.0, "quantity": 3.0, "value": 25.0, "currency": "CHF"}, (25.0, "CHF")),
    ],
)
async def test_a_purchase_is_closed_with_what_it_is_worth(bench, facts, expected):
    purchase = bench.event("purchase")
    # What comes after it in the batch has no value for it
    later = bench.event("purchase")
    await bench.score(
        replace(purchase, event=replace(purchase.event, **facts)),
        replace(later, event=replace(later.event, value=1.0, currency="JPY")),
    )
    (commit,) = bench.store.commits
    assert (commit.value, commit.currency) == expected


async def test_a_purchase_within_a_batch_closes_once_whatever_follows(bench):
    await bench.score(*(bench.event(name) for name in ("page_view", "purchase", "page_view", "purchase")))
    (commit,) = bench.store.commits
    assert (commit.closed_by, len(commit.appended), len(commit.probabilities)) == ("event", 1, 1)


async def test_the_model_stands_in_the_history_where_it_changes(bench):
    other = Bench(bench.store, FakeModel("b"))
    for each in (bench, bench, other, other, bench):
        await each.score(each.event(code=len(bench.store.commits) + 100))
    a, b = bench.model.fingerprint, other.model.fingerprint
    rebuilds = [commit for commit in bench.store.commits if not commit.appended]
    assert [(commit.record.model, commit.record.events) for commit in rebuilds] == [(b, 2), (a, 4)]
    events = [commit for commit in bench.store.commits if commit.appended]
    assert [commit.model for commit in events] == [a, None, b, None, a]
    assert other.counts() == {"events_folded": 2, "rebuilds": 1, "rebuilt_events": 2}
    assert bench.counts()["rebuilt_events"] == 4


async def test_a_purchase_after_a_reload_is_answered_by_the_model_that_scored_and_rebuilds_nothing(bench):
    (viewed,) = await bench.score(bench.event())
    other = Bench(bench.store, FakeModel("b"))
    (bought,) = await other.score(other.event("purchase", code=50))
    assert (bought.answer.model, bought.answer.probability) == (bench.model.fingerprint, viewed.answer.probability)
    assert other.counts() == {"purchases": 1}
    (alone,) = await other.score(other.event("purchase", session_id="t"))
    assert alone.answer.model == other.model.fingerprint


@pytest.mark.parametrize("probability", [math.nan, math.inf, -math.inf])
async def test_no_answer_is_a_number_that_is_none(probability):
    class BrokenModel(FakeModel):
        def advance(self, events, states):
            return [probability] * len(events), [bytes(16)] * len(events)

    bench = Bench(WatchedStore(), BrokenModel())
    (error,) = await bench.score(bench.event())
    assert isinstance(error, PredictionError)
    assert (bench.store.commits, bench.counts()) == ([], {})


async def test_an_attempt_that_conflicted_is_not_counted_for_what_it_would_have_done(bench):
    # Given a session with room for one more event, which another replica takes first
    full = Bench(bench.store, max_session_events=2)
    await full.score(full.event())

    async def another():
        await bench.score(bench.event(code=77))

    bench.store.before_commit = another
    (error,) = await full.score(full.event())
    assert isinstance(error, SessionFullError)
    assert full.counts() == {"sessions_started": 1, "events_folded": 1, "conflicts": 1}
    assert (await bench.record()).events == 2


async def test_an_event_that_is_found_after_a_conflict_is_a_duplicate_and_no_fold(bench):
    mine = bench.event()

    async def the_same_at_another_replica():
        other = Bench(bench.store)
        await other.score(mine)

    bench.store.before_commit = the_same_at_another_replica
    (score,) = await bench.score(mine)
    assert score.duplicate
    assert bench.counts() == {"duplicates": 1, "conflicts": 1}
    assert len((await bench.store.load_histories(["s"]))[0]) == 1


async def test_an_attempts_failed_rebuild_is_forgotten_by_the_next(bench):
    # Given a session of another model, whose history cannot be read once while another replica commits
    await bench.score(bench.event(), bench.event())
    other = Bench(bench.store, FakeModel("b"))
    load = bench.store.load_sessions
    tries = 0

    async def fails_once(session_ids):
        nonlocal tries
        tries += 1
        return [StoreUnavailableError("gone")] if tries == 1 else await load(session_ids)

    async def meanwhile():
        await bench.score(bench.event(code=88))

    bench.store.load_sessions = fails_once
    bench.store.before_commit = meanwhile
    # The purchase is committed whatever becomes of the fold before it, so the attempt conflicts
    view, purchase = other.event(code=91), other.event("purchase", code=92)
    viewed, bought = await other.score(view, purchase)
    assert viewed.answer.events == 4
    assert bought.answer.outcome is Outcome.PURCHASE
    assert other.counts()["conflicts"] == 1


async def test_a_history_that_cannot_be_read_is_asked_for_once_in_a_batch(bench):
    await bench.score(bench.event())
    other = Bench(bench.store, FakeModel("b"))
    tries = []

    async def fails(session_ids):
        tries.append(session_ids)
        return [StoreUnavailableError("gone")]

    bench.store.load_sessions = fails
    results = await other.score(other.event(code=91), other.event(code=92))
    assert [type(result) for result in results] == [StoreUnavailableError] * 2
    assert tries == [["s"]]


async def test_a_purchase_after_an_event_that_failed_is_answered_by_the_rebuilt_state(bench):
    # Given a session of another model, and a batch whose first event fails once its state is made anew
    view = bench.event()
    await bench.score(view)
    other = Bench(bench.store, FakeModel("b"))
    failed, bought = await other.score(other.event(item_id="poison", code=50), other.event("purchase", code=51))
    assert isinstance(failed, PredictionError)
    assert bought.answer.probability == other.model.expected([view.event])
    assert bought.answer.model == other.model.fingerprint
    assert bench.store.commits[-1].model == other.model.fingerprint


async def test_as_many_answers_are_kept_as_the_window_says(bench):
    few = Bench(bench.store, dedupe_window=2)
    for code in (1, 2, 3):
        await few.score(few.event(code=code))
    await few.score(few.event("purchase", code=4))
    answers = (await few.record()).answers
    assert [code for code in (1, 2, 3, 4) if answers.find(code)] == [3, 4]


async def test_batches_are_measured_by_their_sessions(bench):
    await bench.score(bench.event(), bench.event(), bench.event(session_id="t"))
    sample = bench.metrics.registry.get_sample_value
    assert (sample("willbuy_batch_size_sum"), sample("willbuy_batch_size_count")) == (2, 1)
    assert sample("willbuy_batch_seconds_count") == 1
    assert sample("willbuy_step_seconds_count") == 2
