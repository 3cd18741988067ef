"""Decisions of rules in Redis: handed over once with the commit, tokens of caps, erasure."""

import asyncio

import pytest
import redis
from msgspec.structs import replace
from support.records import a_record

from app.store.interface import Commit
from app.store.interventions import NOW, START
from app.store.keys import Keys, shard_of
from app.store.redis.connection import ConnectionOptions
from app.store.sessions import RedisStore
from model.events import Event
from model.interventions.decide import NO_FACTS, Decision, Decisions, Group, advanced_facts

pytestmark = pytest.mark.anyio
KEYS = Keys()
EVENT = Event("page_view", 1)


@pytest.fixture(scope="module", params=["redis-6.2", "valkey-8.1"])
def server(request, start_redis):
    return start_redis(request.param)


@pytest.fixture
async def store(server):
    server.flush()
    store = RedisStore(server.url, session_idle_s=1800, options=ConnectionOptions(timeout_s=5.0))
    yield store
    await store.close()


def commit_of(session_id, number, *rules, expected=None, facts=b""):
    decided = Decisions(Decision(rule, Group.CONTROL, 0.5, number, 1000 + number, told=False) for rule in rules)
    version = number.to_bytes(8, "big")
    record = a_record(version=version, events=number, facts=facts, decisions=decided)
    return Commit(session_id, expected and expected.to_bytes(8, "big"), record, [EVENT], [0.5], decided=decided)


async def read_all(store, session_id):
    shard = shard_of(session_id)
    page = (await store.decisions.read({shard: START}))[shard]
    return [entry.decision for entry in page.entries]


async def test_a_decision_is_handed_over_with_its_commit_and_only_once(store):
    facts = advanced_facts(NO_FACTS, EVENT, "visitor-1")
    first = commit_of("s", 1, "voucher", "chat", facts=facts)
    # A lost answer: the same commit again
    assert await store.commit([first]) == [True]
    assert await store.commit([first]) == [True]
    # A conflict: nothing is handed over
    assert await store.commit([commit_of("s", 2, "other", expected=7)]) == [False]
    assert await store.commit([commit_of("s", 2, "late", expected=1)]) == [True]
    found = await read_all(store, "s")
    assert [(one.rule, one.event) for one in found] == [("voucher", 1), ("chat", 1), ("late", 2)]
    one = found[0]
    assert (one.session_id, one.group, one.probability, one.decided_ms) == ("s", "control", 0.5, 1001)
    assert (one.visitor_id, one.idle, one.told) == ("visitor-1", False, False)
    assert found[2].visitor_id is None
    _, entries = await store.load_entries("s")
    assert [[one.rule for one in entry.decisions] for entry in entries] == [["voucher", "chat"], ["late"]]


async def test_decisions_are_counted_by_rule_group_and_day_once(store, server):
    first = commit_of("s", 1, "a", "b")
    assert await store.commit([first, first]) == [True, True]
    with redis.Redis.from_url(server.url) as client:
        assert client.hgetall(KEYS.fired(shard_of("s"), 0)) == {b"a:control": b"1", b"b:control": b"1"}


async def test_the_decisions_of_many_sessions_of_a_call_stay_with_their_sessions(store):
    ids = [f"s{number}" for number in range(300)]
    # More decisions than a fifth of the sessions, in some of them
    commits = [
        commit_of(session_id, 1, *[f"r{number}-{rule}" for rule in range(number % 4)])
        for number, session_id in enumerate(ids)
    ]
    assert await store.commit(commits) == [True] * len(ids)
    pages = await store.decisions.read(dict.fromkeys(range(256), START))
    found = {(entry.decision.session_id, entry.decision.rule) for page in pages.values() for entry in page.entries}
    assert found == {(session_id, f"r{n}-{rule}") for n, session_id in enumerate(ids) for rule in range(n % 4)}
    for shard, page in pages.items():
        assert all(shard_of(entry.decision.session_id) == entry.shard == shard for entry in page.entries)


async def test_a_reader_goes_on_from_its_place(store):
    shard = shard_of("s")
    (empty,) = (await store.decisions.read({shard: START})).values()
    assert (empty.entries, empty.is_more) == ((), False)
    for number in range(1, 6):
        await store.commit([commit_of("s", number, f"r{number}", expected=number - 1 or None)])
    places, seen = START, []
    for _ in range(5):
        (page,) = (await store.decisions.read({shard: places}, most=2)).values()
        seen += [entry.decision.rule for entry in page.entries]
        places = page.after
        if not page.is_more:
            break
    assert seen == ["r1", "r2", "r3", "r4", "r5"]
    (now,) = (await store.decisions.read({shard: NOW})).values()
    assert (now.entries, now.after) == ((), places)
    await store.commit([commit_of("s", 6, "r6", expected=5)])
    (page,) = (await store.decisions.read({shard: now.after})).values()
    assert [entry.decision.rule for entry in page.entries] == ["r6"]


async def test_an_erased_session_leaves_no_decision(store, server):
    other = next(name for name in map(str, range(10_000)) if shard_of(name) == shard_of("s"))
    await store.commit([commit_of("s", 1, "a", "b"), commit_of(other, 1, "c")])
    await store.delete("s")
    assert [one.session_id for one in await read_all(store, "s")] == [other]
    with redis.Redis.from_url(server.url) as client:
        assert not [key for key in client.scan_iter() if b"s:s" in key or b"h:s" in key]


async def test_a_broken_history_hands_nothing_over(store, server):
    with redis.Redis.from_url(server.url) as client:
        client.set(KEYS.history("s"), "no list")
    (stored,) = await store.commit([commit_of("s", 1, "a")])
    assert isinstance(stored, Exception)
    assert await read_all(store, "s") == []


async def test_everything_of_decisions_expires(store, server):
    await store.commit([commit_of("s", 1, "a")])
    await store.decisions.take({"a": (1, 5)})
    with redis.Redis.from_url(server.url) as client:
        assert 0 < client.pttl(KEYS.decisions(shard_of("s"))) <= 86_400_000
        assert 0 < client.pttl(KEYS.cap("a")) <= 7_200_000
        # Yesterday's are read as well as today's.
        assert 2 * 86_400_000 < client.pttl(KEYS.fired(shard_of("s"), 0)) <= 3 * 86_400_000


async def test_tokens_of_a_rule_never_exceed_its_cap_within_an_hour(store, server):
    taken = await asyncio.gather(*[store.decisions.take({"a": (3, 10), "b": (1, 100)}) for _ in range(8)])
    assert sum(one["a"] for one in taken) == 10
    assert sum(one["b"] for one in taken) == 8
    with redis.Redis.from_url(server.url) as client:
        # 59 minutes later, and another two
        tokens = client.zrange(KEYS.cap("a"), 0, -1)
        client.zincrby(KEYS.cap("a"), -59 * 60_000, tokens[0])
        assert (await store.decisions.take({"a": (3, 10)})) == {"a": 0}
        client.zincrby(KEYS.cap("a"), -2 * 60_000, tokens[0])
        assert (await store.decisions.take({"a": (3, 10)})) == {"a": 1}


async def test_a_call_for_tokens_that_is_sent_again_gets_the_tokens_that_it_got(store):
    run = store.decisions._scripts.run  # noqa: SLF001 - a lost answer

    async def twice(operation, script, calls, **options):
        await run(operation, script, calls, **options)
        return await run(operation, script, calls, **options)

    store.decisions._scripts.run = twice  # noqa: SLF001 - same
    assert await store.decisions.take({"a": (3, 5)}) == {"a": 3}
    assert await store.decisions.take({"a": (3, 5)}) == {"a": 2}


async def test_a_store_that_is_gone_gives_no_token():
    store = RedisStore("redis://127.0.0.1:1", session_idle_s=1800, options=ConnectionOptions(timeout_s=0.5))
    assert await store.decisions.take({"a": (1, 5)}) == {"a": 0}
    await store.close()


async def test_the_board_shows_the_last_event_behind_decisions(store):
    commit = commit_of("s", 1, *[f"r{number}" for number in range(40)])
    await store.commit([commit])
    second = replace(commit_of("s", 2, "x", "y", expected=1), appended=[Event("search", 2)])
    await store.commit([second])
    for recent in (0, 1, 2, 5):
        (row,) = await store.board.rows(["s"], recent=recent)
        assert (row.last_event, row.recent_probabilities) == ("search", [0.5, 0.5][: min(recent, 2)])


@pytest.mark.parametrize("number", [1, 255, 256, 257, 1000])
async def test_a_commit_has_any_number_of_events(store, number):
    """More than one byte holds."""
    record = a_record(version=b"12345678", events=number)
    events = [Event("page_view", place) for place in range(number)]
    other = replace(record, version=b"87654321", events=1)
    commits = [Commit("s", None, record, events, [0.5] * number), Commit("t", None, other, [EVENT], [0.5])]
    assert await store.commit(commits) == [True, True]
    for session_id, expected in (("s", events), ("t", [EVENT])):
        found = await store.load_session(session_id)
        assert [event.timestamp_ms for event in found[1]] == [event.timestamp_ms for event in expected]
