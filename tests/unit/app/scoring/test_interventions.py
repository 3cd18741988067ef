"""Rules in the fold: decided once, from the state before and the event, whatever happens around it."""

import io

import pytest
from msgspec.structs import replace
from support.fakes import FakeModel
from support.memory_store import MemoryStore
from support.rebuilds import score_all

from app.errors import DeadlineExceededError, SessionTooLargeError, StoreUnavailableError
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.scoring.events import QueuedEvent
from app.scoring.rebuilder import Rebuilder
from app.scoring.scorer import Scorer
from app.store.interface import Commit
from model.events import Event, canonical_event_name
from model.interventions.decide import Decider, Decisions, Group, cart_value, facts_of, visitor_of
from model.interventions.rules import parse_rules

pytestmark = pytest.mark.anyio
NOW_MS = 1_795_392_000_000


class Vocabulary:
    canonical_name = staticmethod(canonical_event_name)

    def knows(self, _event_name):
        return True


def decider(*rules):
    return Decider(parse_rules({"rules": list(rules)}, Vocabulary(), source="rules.toml"))


class Store(MemoryStore):
    """May commit something else before a commit; keeps what it was given."""

    def __init__(self):
        super().__init__(session_idle_s=1800, now_ms=lambda: NOW_MS)
        self.commits: list[Commit] = []
        self.first = None
        self.loads = 0

    async def load_sessions(self, session_ids):
        self.loads += len(session_ids)
        return await super().load_sessions(session_ids)

    async def commit(self, commits):
        if self.first is not None:
            act, self.first = self.first, None
            await act()
        self.commits += commits
        return await super().commit(commits)


class Replica:
    def __init__(self, store, rules, model=None, **limits):
        self.store, self.metrics = store, Metrics()
        logger = build_logger(log_level="error", stream=io.StringIO())
        self.rebuilder = Rebuilder(store, metrics=self.metrics, logger=logger)
        limits = {"max_session_events": 100, "max_session_bytes": 2**22, "dedupe_window": 4} | limits
        self.scorer = Scorer(
            store,
            model or FakeModel(),
            metrics=self.metrics,
            logger=logger,
            rebuilder=self.rebuilder,
            decider=rules,
            **limits,
        )

    async def score(self, *events):
        return await score_all(self.scorer, self.rebuilder, events)


def event(code, name="page_view", *, session_id="s", visitor_id=None, price=None, **fields):
    body = Event(name, NOW_MS + code, price=price)
    return QueuedEvent(session_id, body, code, True, NOW_MS + code, visitor_id=visitor_id, **fields)


def fired(score):
    return [(one.rule, one.group.word, one.event) for one in score.decisions]


async def stored(store, session_id="s"):
    found = await store.load_entries(session_id)
    assert found is not None
    return found


async def record_of(store, session_id="s"):
    (record,) = await store.load([session_id])
    return record


async def test_a_rule_fires_once_and_a_repeated_event_gets_the_same_decision_again():
    store = Store()
    replica = Replica(store, decider({"name": "voucher", "min_events": 2}))
    scores = [(await replica.score(event(code)))[0] for code in (1, 2, 3, 2)]
    assert [fired(score) for score in scores] == [[], [("voucher", "treatment", 2)], [], [("voucher", "treatment", 2)]]
    assert scores[3].duplicate
    assert scores[1].decisions == scores[3].decisions
    (decision,) = scores[1].decisions
    assert (decision.probability, decision.decided_ms) == (scores[1].answer.probability, NOW_MS + 2)
    # It stands in the history behind its event, and in the commit that stored the event
    record, entries = await stored(store)
    assert [entry.decisions for entry in entries] == [(), (decision,), ()]
    assert [commit.decided for commit in store.commits] == [(), (decision,), ()]
    assert record.history_bytes == sum(map(len, store.sessions["s"].history))


async def test_events_of_one_batch_decide_one_after_another():
    store = Store()
    replica = Replica(store, decider({"name": "a", "min_events": 2}, {"name": "b", "repeat": True}))
    scores = await replica.score(*map(event, (1, 2, 3)))
    assert [fired(score) for score in scores] == [
        [("b", "treatment", 1)],
        [("a", "treatment", 2), ("b", "treatment", 2)],
        [("b", "treatment", 3)],
    ]
    _, entries = await stored(store)
    assert [[one.rule for one in entry.decisions] for entry in entries] == [["b"], ["a", "b"], ["b"]]


async def test_a_conflict_decides_anew_and_the_event_of_the_other_replica_counts():
    store = Store()
    rules = decider({"name": "voucher", "min_events": 2})
    one, other = Replica(store, rules), Replica(store, rules)
    await one.score(event(1))
    others = []

    async def overtake():
        others.extend(await other.score(event(2)))

    store.first = overtake
    (late,) = await one.score(event(3))
    assert fired(others[0]) == [("voucher", "treatment", 2)]
    assert fired(late) == []
    assert len((await record_of(store)).decisions) == 1


async def test_a_rebuild_after_a_model_release_keeps_the_decisions():
    store = Store()
    rules = decider({"name": "voucher"}, {"name": "late", "min_events": 3})
    before = Replica(store, rules)
    (first,) = await before.score(event(1))
    await before.score(event(2))
    after = Replica(store, rules, FakeModel("b"))
    (third,) = await after.score(event(3))
    assert fired(third) == [("late", "treatment", 3)]
    assert third.answer.model == FakeModel("b").fingerprint
    (again,) = await after.score(event(1))
    assert again.decisions == first.decisions
    assert [one.rule for one in (await record_of(store)).decisions] == ["voucher", "late"]


async def test_a_session_that_began_without_rules_gets_its_facts_from_its_history_once():
    store = Store()
    without = Replica(store, None)
    await without.score(event(1, "add_to_cart", price=30.0))
    await without.score(event(2, "search"))
    assert (await record_of(store)).facts == b""
    replica = Replica(store, decider({"name": "voucher", "with_events": ["search"], "cart_value_at_least": 30}))
    (score,) = await replica.score(event(3))
    assert fired(score) == [("voucher", "treatment", 3)]
    await replica.score(event(4))
    assert store.loads == 1
    _, entries = await stored(store)
    assert (await record_of(store)).facts == facts_of([entry.event for entry in entries])


async def test_without_its_facts_a_session_is_scored_and_no_rule_that_asks_for_them_fires(monkeypatch):
    store = Store()
    await Replica(store, None).score(event(1, "search"))
    replica = Replica(store, decider({"name": "voucher", "without_events": ["search"]}, {"name": "free"}))

    async def fails(session_ids):
        return [StoreUnavailableError("gone")] * len(session_ids)

    with monkeypatch.context() as patch:
        patch.setattr(store, "load_sessions", fails)
        (score,) = await replica.score(event(2))
        assert (score.answer.events, fired(score)) == (2, [])
    (score,) = await replica.score(event(3))
    assert fired(score) == [("free", "treatment", 3)]


async def test_facts_of_a_session_that_went_on_meanwhile_are_those_of_its_new_record(monkeypatch):
    store = Store()
    without = Replica(store, None)
    await without.score(event(1, "add_to_cart", price=30.0))
    rules = decider({"name": "voucher", "cart_value_at_least": 50})
    replica = Replica(store, rules)
    load = store.load_sessions

    async def overtaken(session_ids):
        monkeypatch.undo()
        await without.score(event(2, "add_to_cart", price=30.0))
        return await load(session_ids)

    monkeypatch.setattr(store, "load_sessions", overtaken)
    (score,) = await replica.score(event(3))
    assert fired(score) == [("voucher", "treatment", 3)]
    # What was read last is what the commit continues
    assert replica.metrics.registry.get_sample_value("willbuy_conflicts_total") == 0


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_probability_crosses_from_what_it_was_before_the_event(direction):
    # Two events between which the model's probability moves in this direction
    model = FakeModel()
    first = event(1)
    for code in range(2, 50):
        second = event(code)
        low, high = model.expected([first.event]), model.expected([first.event, second.event])
        if (low < high) == (direction == "up"):
            break
    replica = Replica(Store(), decider({"name": "r", f"crosses_{direction}": (low + high) / 2}), model)
    assert [fired((await replica.score(one))[0]) for one in (first, second)] == [[], [("r", "treatment", 2)]]


async def test_a_rules_days_are_those_of_the_server(monkeypatch):
    # Given visitors whose clocks are days behind and ahead
    days = {"starts": "2026-11-23T00:00:00Z", "ends": "2026-11-24T00:00:00Z"}
    replica = Replica(Store(), decider({"name": "r", **days}))
    for number, off_ms in enumerate((-3 * 86_400_000, 0, 3 * 86_400_000)):
        one = event(1, session_id=f"s{number}")
        (score,) = await replica.score(replace(one, event=replace(one.event, timestamp_ms=NOW_MS + off_ms)))
        assert fired(score) == [("r", "treatment", 1)]
        assert score.decisions[0].decided_ms == NOW_MS + 1


async def test_facts_are_kept_only_where_a_rule_asks_for_them_or_a_visitor_is_named():
    store = Store()
    asks_nothing = {"name": "voucher", "min_events": 2, "properties": {"a": "b"}, "crosses_up": 0.1, "control": 1.0}
    replica = Replica(store, decider(asks_nothing))
    await replica.score(event(1, "add_to_cart", price=5.0))
    assert store.sessions["s"].record[0] == 3
    # A visitor who logs in: readers of decisions get the id, and what came before counts
    await replica.score(event(2, visitor_id="v-1"))
    record = await record_of(store)
    assert (visitor_of(record.facts), cart_value(record.facts)) == ("v-1", 5.0)
    await replica.score(event(3))
    assert (visitor_of((await record_of(store)).facts), store.loads) == ("v-1", 1)
    for field in ({"cart_value_at_least": 1}, {"without_events": ["search"]}, {"with_events": ["search"]}):
        assert decider({"name": "r"} | field).asks_facts
    assert [decider({"name": "r", "control": share}).asks_facts for share in (0.0, 0.5, 1.0)] == [False, True, False]


async def test_facts_do_not_outlive_the_rules_and_decisions_do():
    store = Store()
    rules = decider({"name": "voucher"}, {"name": "cart", "cart_value_at_least": 100})
    (first,) = await Replica(store, rules).score(event(1, "add_to_cart", price=5.0))
    without = Replica(store, None)
    (again,) = await without.score(event(1))
    assert again.decisions == first.decisions
    await without.score(event(2, "add_to_cart", price=5.0))
    record = await record_of(store)
    assert (record.facts, record.decisions) == (b"", first.decisions)
    await Replica(store, rules).score(event(3))
    record = await record_of(store)
    assert (cart_value(record.facts), record.decisions) == (10.0, first.decisions)


async def test_without_rules_a_record_has_the_bytes_that_it_had():
    store = Store()
    replica = Replica(store, None)
    await replica.score(event(1, visitor_id="v"))
    assert store.sessions["s"].record[0] == 3


async def test_a_visitor_stays_in_one_group_over_sessions_and_a_session_without_visitor_is_by_itself():
    store = Store()
    rule = {"name": "r", "control": 0.5, "min_events": 2}
    replica = Replica(store, decider(rule))
    groups = set()
    for number in range(20):
        session_id = f"s{number}"
        await replica.score(event(1, session_id=session_id, visitor_id="v-1"))
        # Sent with the first event only
        (score,) = await replica.score(event(2, session_id=session_id))
        groups.add(score.decisions[0].group)
        assert visitor_of((await record_of(store, session_id)).facts) == "v-1"
    assert len(groups) == 1
    for number in range(20, 40):
        groups.add(
            (await replica.score(event(1, session_id=f"s{number}"), event(2, session_id=f"s{number}")))[1]
            .decisions[0]
            .group
        )
    assert len(groups) == 2


async def test_no_rule_fires_at_a_purchase_or_after_one():
    store = Store()
    replica = Replica(store, decider({"name": "r", "repeat": True}))
    scores = await replica.score(event(1), event(2, "purchase"))
    scores += await replica.score(event(3))
    assert [len(score.decisions) for score in scores] == [1, 0, 0]
    (again,) = await replica.score(event(2))
    assert again.decisions == ()


async def test_a_repeated_rule_keeps_as_many_decisions_as_answers():
    store = Store()
    replica = Replica(store, decider({"name": "r", "repeat": True}, {"name": "once"}))
    for code in range(1, 11):
        await replica.score(event(code))
    record = await record_of(store)
    assert [(one.rule, one.event) for one in record.decisions] == [("once", 1), ("r", 7), ("r", 8), ("r", 9), ("r", 10)]
    for code in range(7, 11):
        (again,) = await replica.score(event(code))
        assert fired(again) == [("r", "treatment", code)]


async def test_a_cap_holds_over_replicas_and_sessions():
    store = Store()
    rules = decider({"name": "r", "cap_per_hour": 3})
    replicas = [Replica(store, rules), Replica(store, rules)]
    scores = []
    for number in range(10):
        scores += await replicas[number % 2].score(event(1, session_id=f"s{number}"))
    assert sum(len(score.decisions) for score in scores) == 3
    assert [len((await record_of(store, f"s{number}")).decisions) for number in range(10)] == [1] * 3 + [0] * 7
    # In one batch as well, and the others are answered
    store.decisions.taken.clear()
    scores = await replicas[0].score(*[event(1, session_id=f"t{number}") for number in range(5)])
    assert sum(len(score.decisions) for score in scores) == 3
    assert all(score.answer.events == 1 for score in scores)
    _, entries = await stored(store, "t4")
    assert sum(len(entry.decisions) for entry in entries) == len(scores[4].decisions)


async def test_a_conflict_does_not_take_a_second_token():
    store = Store()
    rules = decider({"name": "r", "cap_per_hour": 5, "min_events": 2})
    one = Replica(store, rules)
    await one.score(event(1))

    async def overtake():
        record = await record_of(store)
        await store.commit([Commit("s", record.version, replace(record, version=b"overtake"))])

    store.first = overtake
    (score,) = await one.score(event(2))
    assert fired(score) == [("r", "treatment", 2)]
    assert store.decisions.taken == {"r": 1}


async def test_each_decision_of_a_session_has_a_token_of_its_own_after_a_conflict_too():
    store = Store()
    one = Replica(store, decider({"name": "r", "cap_per_hour": 2, "repeat": True}, {"name": "free", "min_events": 3}))

    async def overtake():
        await store.commit([Commit("s", None, replace(record, version=b"overtake"))])

    await one.score(event(1, session_id="t"))
    store.decisions.taken.clear()
    record = replace(await record_of(store, "t"), events=0, decisions=Decisions(), facts=b"")
    store.first = overtake
    scores = await one.score(*map(event, (11, 12, 13)))
    assert [[one.rule for one in score.decisions] for score in scores] == [["r"], ["r"], ["free"]]
    assert store.decisions.taken == {"r": 2}
    # What was withdrawn is nowhere
    record, entries = await stored(store)
    assert [[one.rule for one in entry.decisions] for entry in entries] == [["r"], ["r"], ["free"]]
    assert [one.rule for one in record.decisions] == ["r", "r", "free"]
    assert [one.rule for one in store.commits[-1].decided] == ["r", "r", "free"]


async def test_no_token_is_taken_when_no_rule_with_a_cap_fires():
    store = Store()
    replica = Replica(store, decider({"name": "r", "cap_per_hour": 5, "min_events": 2}, {"name": "free"}))
    await replica.score(event(1))
    assert not store.decisions.taken


async def test_an_abandoned_event_decides_nothing():
    store = Store()
    replica = Replica(store, decider({"name": "r"}))
    (late,) = await replica.score(event(1, give_up_at=0.0))
    assert isinstance(late, DeadlineExceededError)
    (score,) = await replica.score(event(2))
    assert fired(score) == [("r", "treatment", 1)]


async def test_an_event_that_is_refused_decides_nothing():
    store = Store()
    rules = decider({"name": "a" * 64, "repeat": True})
    replica = Replica(store, rules, max_session_bytes=1024)
    scores = [(await replica.score(event(code)))[0] for code in range(1, 30)]
    refused = [score for score in scores if isinstance(score, SessionTooLargeError)]
    assert refused
    record, entries = await stored(store)
    assert sum(len(entry.decisions) for entry in entries) == record.events == 29 - len(refused)
    assert record.history_bytes == sum(map(len, store.sessions["s"].history)) <= 1024


async def test_control_is_recorded():
    store = Store()
    (score,) = await Replica(store, decider({"name": "r", "control": 1.0})).score(event(1))
    assert [(one.group, one.told) for one in score.decisions] == [(Group.CONTROL, False)]
