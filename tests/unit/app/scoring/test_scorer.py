import asyncio
import io
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from support.fakes import FakeModel
from support.memory_store import MemoryStore
from support.rebuilds import score_all

from app.errors import (
    ConflictError,
    CorruptRecordError,
    DeadlineExceededError,
    EventIdReusedError,
    PredictionError,
    SessionFullError,
    StoreUnavailableError,
)
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.outcomes.record_outcome import record_outcome
from app.scoring import rebuilder
from app.scoring.batcher import REQUEUE
from app.scoring.events import QueuedEvent
from app.scoring.rebuilder import Rebuilder
from app.scoring.scorer import Scorer, max_events_per_session
from app.scoring.session_update import AFTER_OUTCOME, LATE, Score
from app.store.history_codec import decode_history
from app.store.record_codec import Outcome
from model.events import Event, identifier_code

pytestmark = pytest.mark.anyio

NOW_MS = 1_795_392_000_000
_codes = count(1)


def queued(session_id="s", event_name="page_view", *, event_id=None, at_ms=NOW_MS, item_id=None):
    return QueuedEvent(
        session_id=session_id,
        event=Event(event_name, at_ms, item_id),
        code=next(_codes) if event_id is None else identifier_code(event_id),
        has_event_id=event_id is not None,
        received_ms=NOW_MS,
    )


@pytest.fixture
def store():
    return MemoryStore(session_idle_s=1800, now_ms=lambda: NOW_MS)


class Callers:
    """The callers of a batch, and the results they got."""

    def __init__(self, abandoned=()):
        self._abandoned = abandoned
        self.resolved = {}

    def abandoned(self):
        return self._abandoned

    def resolve(self, index, result):
        assert index not in self.resolved
        self.resolved[index] = result


class Bench:
    """A scorer and what it is made of."""

    def __init__(self, store, model=None, **limits):
        self.store = store
        self.model = model or FakeModel()
        self.metrics = Metrics()
        self.log = io.StringIO()
        logger = build_logger(log_level="info", stream=self.log)
        limits = {
            "max_session_events": 100,
            "max_session_bytes": 2**22,
            "dedupe_window": 8,
            "commit_attempts": 4,
        } | limits
        self.rebuilder = Rebuilder(store, metrics=self.metrics, logger=logger)
        self.scorer = Scorer(store, self.model, metrics=self.metrics, logger=logger, rebuilder=self.rebuilder, **limits)

    async def score(self, *batch):
        return await score_all(self.scorer, self.rebuilder, batch)

    async def rebuilt(self, session_id):
        """Wait for the session's rebuild."""
        pending = self.rebuilder.pending(session_id)
        assert pending is not None
        await pending

    async def score_in_turn(self, *batch):
        return [(await self.score(one))[0] for one in batch]

    def counted(self, name):
        return self.metrics.registry.get_sample_value(f"willbuy_{name}_total")


@pytest.fixture
def bench(store):
    return Bench(store)


async def test_each_answer_is_the_fold_of_the_events_so_far(bench):
    batch = [queued(at_ms=NOW_MS + i, item_id=str(i)) for i in range(10)]
    scores = await bench.score_in_turn(*batch)
    for index, score in enumerate(scores):
        assert score.answer.events == index + 1
        assert score.answer.probability == bench.model.expected([one.event for one in batch[: index + 1]])
        assert score.answer.model == bench.model.fingerprint


async def test_sessions_of_a_batch_are_stepped_together_and_get_their_own_answers(bench):
    batch = [queued(str(i), item_id=str(i)) for i in range(20)]
    scores = await bench.score(*batch)
    assert bench.model.batches == [20]
    assert [score.session_id for score in scores] == [str(i) for i in range(20)]
    assert [score.answer.probability for score in scores] == [bench.model.expected([one.event]) for one in batch]


async def test_an_event_that_comes_again_gets_the_same_answer_and_changes_nothing(bench):
    first, second = queued(event_id="e"), queued()
    original, later = await bench.score_in_turn(first, second)
    (again,) = await bench.score(queued(event_id="e"))
    assert again.duplicate
    assert again.answer == original.answer
    assert (await bench.store.load(["s"]))[0].probability == later.answer.probability
    assert bench.counted("duplicates") == 1


async def test_an_event_id_past_the_window_is_folded_again(store):
    bench = Bench(store, dedupe_window=2)
    await bench.score_in_turn(queued(event_id="e"), queued(), queued())
    (again,) = await bench.score(queued(event_id="e"))
    assert not again.duplicate
    assert again.answer.events == 4


async def test_a_purchase_closes_the_session_and_is_no_input(bench):
    view, purchase, after = queued(), queued(event_name="purchase"), queued()
    viewed, bought, later = await bench.score_in_turn(view, purchase, after)
    for score in (bought, later):
        assert score.answer.outcome is Outcome.PURCHASE
        assert not score.answer.folded
        assert score.answer.probability == viewed.answer.probability
        assert score.answer.events == 1
    assert await bench.store.load_histories(["s"]) == [[view.event]]
    assert bench.counted("purchases") == bench.counted("closed_session_events") == 1


def visits():
    """Two visits under one id: each ends in a purchase that is sent twice; the second has another model's answer."""
    return [
        queued(item_id="1", event_id="a"),
        queued(event_name="purchase", event_id="p"),
        queued(event_name="purchase", event_id="thanks"),
        queued(item_id="2", event_id="b"),
        queued(event_name="purchase", event_id="p"),
        queued(item_id="3", event_id="c"),
        queued(event_name="purchase", event_id="q"),
        queued(item_id="4", event_id="d"),
        queued(item_id="2", event_id="b"),
    ]


@pytest.mark.parametrize("together", [False, True])
async def test_after_a_purchase_a_new_visit_can_begin(store, together):
    bench = Bench(store, restarts=True)
    events = visits()
    scores = await bench.score(*events) if together else await bench.score_in_turn(*events)
    fold = bench.model.expected
    of = [one.event for one in events]
    bought = Outcome.PURCHASE
    assert [(score.answer.events, score.answer.outcome, score.answer.folded, score.duplicate) for score in scores] == [
        (1, Outcome.OPEN, True, False),
        (1, bought, False, False),
        (1, bought, False, False),
        (1, Outcome.OPEN, True, False),
        (1, bought, False, True),
        (2, Outcome.OPEN, True, False),
        (2, bought, False, False),
        (1, Outcome.OPEN, True, False),
        (1, Outcome.OPEN, True, True),
    ]
    assert [scores[at].answer.probability for at in (0, 3, 5, 7)] == [
        fold([of[0]]),
        fold([of[3]]),
        fold([of[3], of[5]]),
        fold([of[7]]),
    ]
    assert [score.warnings for score in scores] == [(AFTER_OUTCOME,) if at == 2 else () for at in range(9)]
    assert await store.load_histories(["s"]) == [[of[7]]]
    assert bench.counted("sessions_started") == 3
    assert bench.counted("purchases") == 2


@pytest.mark.parametrize("together", [False, True])
async def test_an_event_of_the_former_visit_that_comes_again_begins_no_visit(store, together):
    bench = Bench(store, restarts=True)
    await bench.score_in_turn(queued(event_id="view"), queued(event_name="purchase"))
    batch = [queued(event_id="view"), queued(event_name="purchase")]
    again, after = await bench.score(*batch) if together else await bench.score_in_turn(*batch)
    assert (again.duplicate, again.answer.events, again.answer.outcome) == (True, 1, Outcome.OPEN)
    assert after.warnings == (AFTER_OUTCOME,)
    assert (bench.counted("purchases"), bench.counted("sessions_started")) == (1, 1)


async def test_without_that_setting_nothing_after_a_purchase_counts(bench):
    scores = await bench.score_in_turn(*visits())
    assert [score.answer.events for score in scores] == [1] * 9
    assert [AFTER_OUTCOME in score.warnings for score in scores] == [at in (2, 3, 5, 6, 7) for at in range(9)]
    assert bench.counted("sessions_started") == 1


async def test_an_outcome_that_is_no_purchase_begins_no_visit(store):
    bench = Bench(store, restarts=True)
    await bench.score(queued())
    await record_outcome(store, "s", Outcome.NONE, outcome_ms=NOW_MS, metrics=bench.metrics)
    (score,) = await bench.score(queued())
    assert (score.answer.events, score.answer.outcome) == (1, Outcome.NONE)


async def test_a_purchase_as_first_event_makes_a_closed_session_without_probability(bench):
    bought, later = await bench.score_in_turn(queued(event_name="purchase"), queued())
    assert bought.answer.probability is later.answer.probability is None
    assert bought.answer.events == later.answer.events == 0
    assert later.answer.outcome is Outcome.PURCHASE


async def test_a_purchase_that_comes_again_is_a_duplicate(bench):
    purchase = queued(event_name="purchase", event_id="p")
    first, again = await bench.score_in_turn(purchase, purchase)
    assert again.duplicate
    assert again.answer == first.answer
    assert bench.counted("purchases") == 1


async def test_an_answer_that_an_earlier_release_stored_is_given_again(bench):
    """Its code had eight bytes of the id, and none of a body."""
    (before,) = await bench.score(queued(event_id="e"))
    id_code = identifier_code("e")
    now = replace(queued(event_id="e"), code=id_code ^ (1 << 50), id_code=id_code)
    (again,) = await bench.score(now)
    assert again.duplicate
    assert again.answer == before.answer
    (refused,) = await bench.score(replace(now, id_code=id_code ^ (1 << 51)))
    assert isinstance(refused, EventIdReusedError)


async def test_a_full_session_refuses_events_but_not_duplicates_nor_the_purchase(store):
    bench = Bench(store, max_session_events=2)
    await bench.score_in_turn(queued(event_id="e"), queued())
    full, duplicate, purchase = await bench.score_in_turn(queued(), queued(event_id="e"), queued(event_name="purchase"))
    assert isinstance(full, SessionFullError)
    assert "may have 2" in full.detail
    assert duplicate.duplicate
    assert purchase.answer.outcome is Outcome.PURCHASE


async def test_a_late_event_is_folded_in_order_of_arrival_with_a_warning(bench):
    on_time, late = queued(at_ms=NOW_MS), queued(at_ms=NOW_MS - 1)
    first, second = await bench.score_in_turn(on_time, late)
    assert first.warnings == ()
    assert second.warnings == (LATE,)
    assert second.answer.probability == bench.model.expected([on_time.event, late.event])
    assert bench.counted("late_events") == 1
    # And the largest time stays what later events are compared with
    assert (await bench.store.load(["s"]))[0].last_event_ms == NOW_MS


@pytest.mark.parametrize("successor", [FakeModel("b"), FakeModel("a", state_size=32)], ids=["model", "state size"])
async def test_another_models_record_is_rebuilt_from_history(store, successor):
    before = [queued(at_ms=NOW_MS + i) for i in range(5)]
    await Bench(store).score_in_turn(*before)
    bench = Bench(store, successor)
    step, next_step = queued(at_ms=NOW_MS + 5), queued(at_ms=NOW_MS + 6)
    first, second = await bench.score_in_turn(step, next_step)
    events = [one.event for one in [*before, step]]
    assert first.answer.probability == successor.expected(events)
    assert second.answer.probability == successor.expected([*events, next_step.event])
    assert bench.counted("rebuilds") == 1


async def test_two_models_in_turn_stay_exact(store):
    replicas = [Bench(store, FakeModel("a")), Bench(store, FakeModel("b"))]
    events = []
    for turn in range(6):
        replica = replicas[turn % 2]
        one = queued(event_id=f"e{turn}", at_ms=NOW_MS + turn)
        events.append(one.event)
        (score,) = await replica.score(one)
        assert score.answer.probability == replica.model.expected(events)
        assert score.answer.model == replica.model.fingerprint
    # And an old duplicate names the model that answered it
    (again,) = await replicas[1].score(queued(event_id="e0"))
    assert again.answer.model == replicas[0].model.fingerprint


async def test_a_session_that_another_replica_continues_during_its_rebuild_is_rebuilt_again(store):
    old, current = Bench(store, FakeModel("a")), Bench(store, FakeModel("b"))
    first, raced, last = (queued(at_ms=NOW_MS + i) for i in range(3))
    await old.score(first)
    # Given a replica that commits after the history was read and before the rebuilt state is stored
    load_sessions = store.load_sessions

    async def load_before_another_commit(session_ids):
        store.load_sessions = load_sessions
        found = await load_sessions(session_ids)
        await old.score(raced)
        return found

    store.load_sessions = load_before_another_commit
    (score,) = await current.score(last)
    assert score.answer.probability == current.model.expected([first.event, raced.event, last.event])
    assert current.counted("conflicts") == 1


async def test_a_history_that_the_server_evicted_is_an_error_and_nothing_is_folded(store):
    await Bench(store, FakeModel("a")).score_in_turn(queued("good"), queued("bad"), queued("bad"))
    store.sessions["bad"].history.pop()
    good, bad = await Bench(store, FakeModel("b")).score(queued("good"), queued("bad"))
    assert good.answer.events == 2
    assert isinstance(bad, CorruptRecordError)
    assert "2 events and the history has 1" in bad.detail
    assert (await store.load(["bad"]))[0].events == 2


async def test_a_bad_event_fails_alone(bench):
    good, bad = [queued(str(i)) for i in range(3)], queued("bad", item_id="poison")
    *scores, error = await bench.score(*good, bad)
    assert isinstance(error, PredictionError)
    assert [score.answer.probability for score in scores] == [bench.model.expected([one.event]) for one in good]
    assert await bench.store.load(["bad"]) == [None]
    assert "poisoned" in bench.log.getvalue()


async def test_a_bad_history_fails_alone(store):
    # Given sessions of another model, one with an event on which the current model crashes
    await Bench(store, FakeModel("a", poison="")).score(queued("good"), queued("bad", item_id="poison"))
    good, bad = await Bench(store, FakeModel("b")).score(queued("good"), queued("bad"))
    assert good.answer.events == 2
    assert isinstance(bad, PredictionError)


async def test_a_probability_that_is_no_number_is_an_error(store):
    class BrokenModel(FakeModel):
        def advance(self, events, states):
            return [float("nan")] * len(events), [bytes(16)] * len(events)

    bench = Bench(store, BrokenModel())
    (error,) = await bench.score(queued())
    assert isinstance(error, PredictionError)
    assert await store.load(["s"]) == [None]


async def test_a_corrupt_record_fails_alone_and_is_logged(bench):
    await bench.score(queued("good"), queued("bad"))
    bench.store.sessions["bad"].record = b"\x01garbage"
    good, bad = await bench.score(queued("good"), queued("bad"))
    assert good.answer.events == 2
    assert isinstance(bad, CorruptRecordError)
    assert "record_corrupt" in bench.log.getvalue()


async def test_a_store_that_is_gone_fails_every_event(bench):
    async def load(session_ids):
        return [StoreUnavailableError("gone")] * len(session_ids)

    bench.store.load = load
    assert all(isinstance(result, StoreUnavailableError) for result in await bench.score(queued(), queued("t")))


async def test_racing_replicas_lose_nothing_and_answer_in_commit_order(store):
    class YieldingStore:
        confirms_by_writing = False

        """Gives way between read and commit, so that others come in between."""

        async def load(self, session_ids):
            await asyncio.sleep(0)
            return await store.load(session_ids)

        async def commit(self, commits):
            await asyncio.sleep(0)
            return await store.commit(commits)

    replicas = [Bench(YieldingStore(), commit_attempts=100) for _ in range(5)]
    scores = await asyncio.gather(*(replicas[i % 5].score(queued(item_id=str(i))) for i in range(30)))
    assert sorted(score.answer.events for (score,) in scores) == list(range(1, 31))
    (history,) = await store.load_histories(["s"])
    model = replicas[0].model
    for (score,) in scores:
        assert score.answer.probability == model.expected(history[: score.answer.events])
    assert sum(replica.counted("conflicts") for replica in replicas) > 0


async def test_conflicts_without_end_become_an_error(bench):
    async def commit(commits):
        return [False] * len(commits)

    bench.store.commit = commit
    (error,) = await bench.score(queued())
    assert isinstance(error, ConflictError)
    assert bench.counted("conflicts") == 4


async def test_a_commit_whose_reply_was_lost_is_recognised_also_without_an_event_id(bench):
    # The attempt is stored, then another event on top of it, and only then is the attempt reported as failed.
    commit = bench.store.commit
    mine, other = queued(), queued()

    async def commit_but_lose_the_reply(commits):
        bench.store.commit = commit
        await commit(commits)
        await bench.score(other)
        return [False]

    bench.store.commit = commit_but_lose_the_reply
    (score,) = await bench.score(mine)
    assert score.answer.probability == bench.model.expected([mine.event])
    assert not score.duplicate
    assert await bench.store.load_histories(["s"]) == [[mine.event, other.event]]


async def test_events_of_one_session_in_a_batch_are_folded_in_order_and_stored_at_once(bench):
    commits = []
    commit = bench.store.commit

    async def watched(some):
        commits.append(len(some))
        return await commit(some)

    bench.store.commit = watched
    mine = [queued("s", at_ms=NOW_MS + i, item_id=str(i)) for i in range(3)]
    other = queued("t")
    scores = await bench.score(mine[0], other, mine[1], mine[2])
    events = [one.event for one in mine]
    mine_scores = [scores[0], scores[2], scores[3]]
    assert [score.answer.probability for score in mine_scores] == [
        bench.model.expected(events[: i + 1]) for i in range(3)
    ]
    assert [score.answer.events for score in mine_scores] == [1, 2, 3]
    assert bench.model.batches == [2, 1, 1]
    assert commits == [2]
    assert await bench.store.load_histories(["s"]) == [events]
    assert bench.counted("sessions_started") == 2
    assert bench.counted("events_folded") == 4


async def test_within_a_batch_a_duplicate_a_purchase_and_a_limit_are_what_they_are_across_batches(store):
    def events():
        return [
            queued(event_id="a", item_id="1"),
            queued(event_id="a", item_id="2"),
            queued(event_id="b", at_ms=NOW_MS - 5),
            queued(event_id="c"),
            queued(event_id="d", event_name="purchase"),
            queued(event_id="e"),
            queued(event_id="b"),
        ]

    together = await Bench(store, max_session_events=2).score(*events())
    alone_store = MemoryStore(session_idle_s=1800, now_ms=lambda: NOW_MS)
    alone = await Bench(alone_store, max_session_events=2).score_in_turn(*events())
    assert isinstance(together[3], SessionFullError)
    assert isinstance(alone[3], SessionFullError)
    assert [result for result in together if result is not together[3]] == [
        result for result in alone if result is not alone[3]
    ]
    assert [result.duplicate for result in together if result is not together[3]] == [
        False,
        True,
        False,
        False,
        False,
        True,
    ]


async def test_an_event_that_fails_does_not_undo_others_of_its_session(bench):
    before, bad, after = queued(), queued(item_id="poison"), queued()
    first, error, second = await bench.score(before, bad, after)
    assert isinstance(error, PredictionError)
    assert first.answer.events == 1
    assert second.answer.probability == bench.model.expected([before.event, after.event])
    assert await bench.store.load_histories(["s"]) == [[before.event, after.event]]


async def test_a_run_that_conflicts_is_folded_again_from_what_is_stored_then(bench):
    commit = bench.store.commit
    mine, other = [queued(item_id=str(i)) for i in range(3)], queued(item_id="other")

    async def commit_behind_another(commits):
        bench.store.commit = commit
        await bench.score(other)
        return await commit(commits)

    bench.store.commit = commit_behind_another
    scores = await bench.score(*mine)
    events = [other.event, *(one.event for one in mine)]
    assert [score.answer.probability for score in scores] == [bench.model.expected(events[: i + 2]) for i in range(3)]
    assert await bench.store.load_histories(["s"]) == [events]
    assert bench.counted("conflicts") == 1


async def test_a_run_whose_reply_was_lost_is_recognised_whole(bench):
    commit = bench.store.commit
    mine, other = [queued(item_id=str(i)) for i in range(3)], queued(item_id="other")

    async def commit_but_lose_the_reply(commits):
        bench.store.commit = commit
        await commit(commits)
        await bench.score(other)
        return [False]

    bench.store.commit = commit_but_lose_the_reply
    scores = await bench.score(*mine)
    events = [one.event for one in mine]
    assert [score.answer.probability for score in scores] == [bench.model.expected(events[: i + 1]) for i in range(3)]
    assert await bench.store.load_histories(["s"]) == [[*events, other.event]]


@pytest.mark.parametrize("window", [1, 2, 8, 255])
def test_a_run_is_shorter_than_the_window_by_far(window):
    assert 1 <= max_events_per_session(window) <= max(1, window / 4)


async def test_a_run_fails_whole_when_the_store_does(bench):
    async def commit(commits):
        return [StoreUnavailableError("gone")] * len(commits)

    bench.store.commit = commit
    results = await bench.score(queued(), queued(), queued("t"))
    assert all(isinstance(result, StoreUnavailableError) for result in results)


@pytest.mark.parametrize("abandoned", [{0}, {1}, {2}, {0, 2}, {0, 1, 2}])
async def test_events_whose_callers_have_left_before_the_commit_are_not_folded(bench, abandoned):
    mine = [queued(item_id=str(i)) for i in range(3)]
    callers = Callers(abandoned)
    results = await bench.scorer.score([*mine, queued("t")], callers)
    assert callers.resolved == {place: result for place, result in enumerate(results) if place not in abandoned}
    kept = [one.event for place, one in enumerate(mine) if place not in abandoned]
    assert all(isinstance(results[place], DeadlineExceededError) for place in abandoned)
    scores = [results[place] for place in range(3) if place not in abandoned]
    assert [score.answer.probability for score in scores] == [
        bench.model.expected(kept[: i + 1]) for i in range(len(kept))
    ]
    assert await bench.store.load_histories(["s"]) == [kept]
    assert results[3].answer.events == 1
    assert bench.counted("abandoned_events") == len(abandoned)
    # It costs no attempt
    assert bench.counted("conflicts") == 0


class Gate:
    """Stands before a store's commits: each waits until the test opens it, or fails as the test says."""

    def __init__(self, store):
        self.sizes = []
        self.failures = {}
        self.opened = asyncio.Event()
        self._commit = store.commit
        store.commit = self.commit

    async def commit(self, commits):
        self.sizes.append(len(commits))
        number = len(self.sizes)
        if number > 1:
            await self.opened.wait()
        if number in self.failures:
            raise self.failures[number]
        return await self._commit(commits)


async def test_a_large_commit_goes_in_halves_and_the_first_is_answered_meanwhile(store):
    bench, gate, callers = Bench(store), Gate(store), Callers()
    batch = [queued(str(i), item_id=str(i)) for i in range(41)]
    scoring = asyncio.create_task(bench.scorer.score(batch, callers))
    for _ in range(20):
        await asyncio.sleep(0)
    assert sorted(callers.resolved) == list(range(20))
    assert gate.sizes == [20, 21]
    # An answer means stored
    assert all(await store.load([str(i) for i in range(20)]))
    assert await store.load([str(i) for i in range(20, 41)]) == [None] * 21
    assert not scoring.done()
    gate.opened.set()
    scores = [one for one in await scoring if isinstance(one, Score)]
    assert callers.resolved == dict(enumerate(scores))
    assert [one.answer.probability for one in scores] == [bench.model.expected([one.event]) for one in batch]
    assert bench.counted("events_folded") == bench.counted("sessions_started") == 41


@pytest.mark.parametrize(("sessions", "sizes"), [(1, [1]), (31, [31]), (32, [16, 16]), (33, [16, 17])])
async def test_a_small_commit_stays_whole(store, sessions, sizes):
    bench, gate, callers = Bench(store), Gate(store), Callers()
    gate.opened.set()
    scores = await bench.scorer.score([queued(str(i)) for i in range(sessions)], callers)
    assert gate.sizes == sizes
    assert callers.resolved == dict(enumerate(scores))


@pytest.mark.parametrize("failing", [1, 2])
async def test_a_defect_in_one_half_leaves_the_other_to_its_end(store, failing):
    bench, gate, callers = Bench(store), Gate(store), Callers()
    gate.failures[failing] = RuntimeError("a defect")
    scoring = asyncio.create_task(bench.scorer.score([queued(str(i)) for i in range(40)], callers))
    for _ in range(20):
        await asyncio.sleep(0)
    # While a half is on its way, the batch is not through: its sessions must not be in another
    assert not scoring.done()
    gate.opened.set()
    results = await scoring
    # The gate raises once, and what is sent again is stored
    assert [type(result) for result in results] == [Score] * 40
    assert sorted(callers.resolved) == list(range(40))
    assert all([await store.load([str(number)]) != [None] for number in range(40)])
    assert bench.counted("events_folded") == 40


async def test_a_half_that_fails_for_good_waits_for_the_other_before_the_batch_is_handled_again(store):
    # Given a store that never takes session 0, and that takes its time for the second half
    bench, callers, slow = Bench(store), Callers(), asyncio.Event()
    commit = bench.store.commit
    on_their_way: set[str] = set()

    async def commit_slowly(commits):
        sessions = {one.session_id for one in commits}
        assert not sessions & on_their_way, "a session is in two commits at once"
        if "0" in sessions:
            raise RuntimeError("a defect")
        on_their_way.update(sessions)
        if "39" in sessions:
            await slow.wait()
        on_their_way.difference_update(sessions)
        return await commit(commits)

    bench.store.commit = commit_slowly
    # When a batch of both halves is scored
    scoring = asyncio.create_task(bench.scorer.score([queued(str(i)) for i in range(40)], callers))
    for _ in range(50):
        await asyncio.sleep(0)
    # Then the failure of the first half does not end the batch while the second is on its way
    assert not scoring.done()
    slow.set()
    with pytest.raises(RuntimeError, match="a defect"):
        await scoring
    assert sorted(callers.resolved) == list(range(1, 40))


async def test_an_event_that_races_a_delete_is_erased_or_starts_a_new_session(bench):
    first, raced = queued(item_id="first"), queued(item_id="raced")
    await bench.score(first)
    commit = bench.store.commit

    async def delete_before_the_commit(commits):
        bench.store.commit = commit
        await bench.store.delete("s")
        return await commit(commits)

    bench.store.commit = delete_before_the_commit
    (score,) = await bench.score(raced)
    assert score.answer.events == 1
    assert score.answer.probability == bench.model.expected([raced.event])
    assert await bench.store.load_histories(["s"]) == [[raced.event]]
    await bench.store.delete("s")
    assert await bench.store.load(["s"]) == [None]


async def test_a_rebuild_delays_no_other_session_of_its_batch(store):
    await Bench(store, FakeModel("a")).score(*[queued("old", item_id=str(i)) for i in range(4)])
    bench = Bench(store, FakeModel("b"))
    waits, new, waits_too = await bench.scorer.score([queued("old"), queued("new"), queued("old")])
    assert waits is waits_too is REQUEUE
    assert isinstance(new, Score)
    assert new.answer.events == 1


async def test_a_rebuilt_state_is_stored_although_no_event_comes_after_it(store):
    await Bench(store, FakeModel("a")).score(*[queued(item_id=str(i)) for i in range(4)])
    bench = Bench(store, FakeModel("b"))
    (result,) = await bench.scorer.score([queued()])
    assert result is REQUEUE
    await bench.rebuilt("s")
    (record,) = await store.load(["s"])
    (history,) = await store.load_histories(["s"])
    assert record.model == bench.model.fingerprint
    assert record.probability == bench.model.expected(history)
    assert record.events == 4
    # And the next event needs no other
    (score,) = await bench.scorer.score([queued()])
    assert isinstance(score, Score)
    assert score.answer.events == 5
    assert bench.counted("rebuilds") == 1


async def test_a_session_is_rebuilt_once_for_all_the_events_that_wait_for_it(store):
    await Bench(store, FakeModel("a")).score(*[queued(item_id=str(i)) for i in range(4)])
    bench = Bench(store, FakeModel("b"))
    batches = [await bench.scorer.score([queued()]) for _ in range(3)]
    assert batches == [[REQUEUE]] * 3
    await bench.rebuilt("s")
    assert bench.model.refolded == 1
    assert bench.counted("rebuilt_events") == 4


async def test_a_long_history_is_folded_in_parts_and_delays_no_short_one(store, monkeypatch):
    monkeypatch.setattr(rebuilder, "EVENTS_AT_ONCE", 3)
    old = Bench(store, FakeModel("a"), max_session_events=1000, dedupe_window=255)
    await old.score(*[queued("long", item_id=str(i)) for i in range(50)])
    await old.score(queued("short"), queued("short"))
    bench = Bench(store, FakeModel("b"))
    await bench.scorer.score([queued("long"), queued("short")])
    await bench.rebuilt("short")
    await bench.rebuilt("long")
    (record,), (history,) = await store.load(["long"]), await store.load_histories(["long"])
    assert record.probability == bench.model.expected(history)


async def test_a_model_that_answers_after_a_rebuild_is_named_in_the_history(store):
    """A rebuild adds no entry, so the next one has to say that another model answered."""
    first, second = Bench(store, FakeModel("a")), Bench(store, FakeModel("b"))
    await first.score_in_turn(queued(), queued())
    await second.score_in_turn(queued(), queued())
    entries = decode_history(store.sessions["s"].history)
    assert [entry.model for entry in entries] == [first.model.fingerprint] * 2 + [second.model.fingerprint] * 2


@pytest.mark.parametrize("call", ["load_sessions", "commit"])
async def test_an_exception_for_one_session_fails_no_other_rebuild(store, call):
    await Bench(store, FakeModel("a")).score(queued("good"), queued("bad"))
    bench = Bench(store, FakeModel("b"))
    original = getattr(store, call)

    async def raise_for_one(inputs):
        if any("bad" in (one, getattr(one, "session_id", None)) for one in inputs):
            raise RuntimeError("injected")
        return await original(inputs)

    setattr(store, call, raise_for_one)
    await bench.scorer.score([queued("good"), queued("bad")])
    await asyncio.gather(*filter(None, [bench.rebuilder.pending("good"), bench.rebuilder.pending("bad")]))
    good, bad = await store.load(["good", "bad"])
    assert (good.model, bad.model) == (bench.model.fingerprint, FakeModel("a").fingerprint)
    setattr(store, call, original)
    (failed,) = await bench.scorer.score([queued("bad")])
    assert "injected" in str(failed)
    # Once: the next event has it tried again
    (score,) = await bench.score(queued("bad"))
    assert score.answer.events == 2


@settings(deadline=None, max_examples=100)
@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.lists(st.tuples(st.sampled_from("pqr"), st.integers(0, 30)), min_size=1, max_size=6),
        ),
        max_size=15,
    ),
)
def test_replicas_of_different_models_back_and_forth_lose_double_and_reorder_nothing(steps):
    asyncio.run(back_and_forth(steps))


async def back_and_forth(steps):
    """Each step is a replica and its batch: sessions and event ids, some of them again and again."""
    store = MemoryStore(session_idle_s=1800, now_ms=lambda: NOW_MS)
    models = [FakeModel("a"), FakeModel("b"), FakeModel("b", state_size=24)]
    replicas = [Bench(store, model, max_session_events=1000, dedupe_window=255) for model in models]
    acknowledged = {}
    folded: dict[str, list[Event]] = {name: [] for name in "pqr"}
    for replica, batch in steps:
        bench = replicas[replica]
        events = [queued(name, event_id=f"{name}{number}", item_id=str(number)) for name, number in batch]
        for one, score in zip(events, await bench.score(*events), strict=True):
            key = (one.session_id, one.code)
            assert score.duplicate == (key in acknowledged)
            if not score.duplicate:
                folded[one.session_id].append(one.event)
                acknowledged[key] = score.answer
                assert score.answer.probability == bench.model.expected(folded[one.session_id])
            assert score.answer == acknowledged[key]
    assert await store.load_histories("pqr") == [folded[name] for name in "pqr"]


class ConfirmingStore(MemoryStore):
    """A store whose commits wait for replicas; `is_confirmed` says whether they answer."""

    is_confirmed = True
    confirms_by_writing = True

    async def commit(self, commits):
        stored = await super().commit(commits)
        return stored if self.is_confirmed else [StoreUnavailableError("too few replicas")] * len(stored)


async def test_an_event_whose_commit_was_not_confirmed_is_not_acknowledged_before_it_is():
    # Given a commit that the primary has and too few replicas confirmed
    store = ConfirmingStore(session_idle_s=1800, now_ms=lambda: NOW_MS)
    bench = Bench(store)
    store.is_confirmed = False
    (first,) = await bench.score(queued(event_id="e"))
    assert isinstance(first, StoreUnavailableError)

    # When it is sent again while the replicas are still away, and once more when they are back
    (second,) = await bench.score(queued(event_id="e"))
    store.is_confirmed = True
    (third,) = await bench.score(queued(event_id="e"))

    # Then only what the replicas have is acknowledged, and it counts once
    assert isinstance(second, StoreUnavailableError)
    assert third.duplicate
    assert third.answer.events == 1
    assert await store.load_histories(["s"]) == [[Event("page_view", NOW_MS)]]
