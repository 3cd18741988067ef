"""Closed sessions at and beyond every limit: sizes, pages, lifetimes, shards; on a real server."""

import json
import time

import pytest
import redis
from support.records import a_record
from support.redis_keys import (
    board_key,
    closed_key,
    counted_key,
    drift_key,
    history_key,
    outcomes_key,
    record_key,
    seen_key,
    trust_key,
)

from app.store.history_codec import encode_event
from app.store.interface import Commit
from app.store.keys import shard_of
from app.store.outcomes import ClosedCount, ClosedSession, Counts, OutcomeLimits, Written
from app.store.record_codec import Outcome
from app.store.redis.connection import ConnectionOptions
from app.store.sessions import RedisStore
from model.events import Event

pytestmark = pytest.mark.anyio

IDLE_S = 600
HOUR_MS = 3_600_000


@pytest.fixture
def client(valkey):
    # Replies depend on how a client was made, which its types do not say.
    with redis.Redis.from_url(valkey.url) as one:
        yield one


@pytest.fixture
async def store(valkey):
    one = opened(valkey)
    yield one
    await one.close()


def opened(server, **limits):
    return RedisStore(
        server.url,
        session_idle_s=IDLE_S,
        outcome_grace_s=1000,
        outcomes=OutcomeLimits(**limits),
        options=ConnectionOptions(timeout_s=30.0),
    )


def a_commit(session_id, version=1, *events, expected=None, outcome=Outcome.OPEN, closed_by=None):
    record = a_record(
        version=version.to_bytes(8, "big"),
        events=len(events),
        last_seen_ms=2,
        last_event_ms=3,
        outcome=outcome,
        outcome_ms=4 if closed_by else 0,
    )
    known = expected and expected.to_bytes(8, "big")
    return Commit(session_id, known, record, events or (Event("page_view", 1),), closed_by=closed_by)


def ids_of(shard, count):
    """Session ids of one shard."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        if shard_of(str(number)) == shard:
            found.append(str(number))
        number += 1
    return found


def end(client, *session_ids):
    """Let the idle time of sessions pass."""
    for session_id in session_ids:
        client.delete(record_key(session_id))
        client.zincrby(seen_key(shard_of(session_id)), -(IDLE_S * 1000 + 1), session_id)


async def closed_in(store, shard):
    due = await store.outcomes.due("me", lease_s=60)
    return due[shard].closed


# --- sizes of a session


@pytest.mark.parametrize("count", [1, 2, 15, 16, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537])
@pytest.mark.parametrize("how", ["idle", "event"])
async def test_a_closed_session_has_all_its_events_whatever_their_number(store, client, count, how):
    # Given a history of so many events, the last of them in the commit that closes or precedes the end
    first = encode_event(Event("page_view", 0), 0.5)
    entries = [first, *(encode_event(Event("page_view", n), after_ms=n - 1) for n in range(1, count - 1))]
    shard = shard_of("a")
    last = Event("search", count - 1)
    await store.commit([a_commit("a", 1, Event("page_view", 0))])
    if count > 1:
        client.delete(history_key("a"))
        for start in range(0, len(entries), 5000):
            client.rpush(history_key("a"), *entries[start : start + 5000])
    if how == "event":
        events = [last] if count > 1 else []
        commit = a_commit("a", 2, expected=1, outcome=Outcome.PURCHASE, closed_by="event")
        client.rpush(history_key("a"), *[encode_event(event) for event in events]) if events else None
        await store.commit([Commit("a", commit.expected, commit.record, closed_by="event")])
    else:
        if count > 1:
            client.rpush(history_key("a"), encode_event(last))
        end(client, "a")
        assert await store.outcomes.close_idle({shard: ["a"]}) == ClosedCount(closed=1)
    (session,) = await closed_in(store, shard)
    assert isinstance(session, ClosedSession)
    assert [entry.event.timestamp_ms for entry in session.entries] == list(range(count))
    assert (session.bought, session.closed_by) == (how == "event", how)


# --- erasing


@pytest.mark.parametrize("total", [1, 99, 100, 101, 199, 200, 201, 250])
async def test_an_erased_session_is_in_no_page_of_either_stream(store, client, total):
    # Given streams of so many entries, among them the session's: at the pages' ends and at the streams' end
    shard = shard_of("a")
    places = {0, 99, 100, 199, 200, total - 1}
    others = {}
    for key in (closed_key(shard), outcomes_key(shard)):
        ids = ["a" if place in places else f"other-{place}" for place in range(total)]
        for place, session_id in enumerate(ids):
            client.xadd(key, {"id": session_id, "other": "a"}, id=f"{place + 1}-0")
        others[key] = [session_id.encode() for session_id in ids if session_id != "a"]
    await store.delete("a")
    for key, kept in others.items():
        assert [fields[b"id"] for _, fields in client.xrange(key)] == kept


async def test_erasing_leaves_nothing_of_a_session_and_all_of_the_others(store, client):
    one, other = ids_of(shard_of("a"), 2)
    await store.commit([a_commit(one), a_commit(other)])
    await store.delete(one)
    shard = shard_of("a")
    assert [client.exists(key(one)) for key in (record_key, history_key)] == [0, 0]
    assert [client.exists(key(other)) for key in (record_key, history_key)] == [1, 1]
    for key in (board_key, seen_key):
        assert client.zrange(key(shard), 0, -1) == [other.encode()]


# --- what is lost


@pytest.mark.parametrize("shards", [1, 2])
async def test_each_lost_session_counts_and_a_closed_one_does_not(store, client, shards):
    ids = [one for shard in range(shards) for one in ids_of(shard, 4)]
    await store.commit([a_commit(session_id) for session_id in ids])
    end(client, *ids)
    # Given two of four sessions in each shard without a history: one is published as lost, one has a new record
    by_shard = {shard: ids_of(shard, 4) for shard in range(shards)}
    for lost, also_lost, _, back in by_shard.values():
        client.delete(history_key(lost), history_key(also_lost))
        await store.commit([a_commit(back, 7)])
    assert await store.outcomes.close_idle(by_shard) == ClosedCount(closed=shards, lost=2 * shards)
    for shard, (*_, back) in by_shard.items():
        assert client.zrange(seen_key(shard), 0, -1) == client.zrange(board_key(shard), 0, -1) == [back.encode()]


# --- pages of a sweep


@pytest.mark.parametrize(("count", "found", "is_more"), [(63, 63, False), (64, 64, True), (65, 64, True)])
async def test_a_sweep_lists_the_oldest_64_and_says_whether_there_may_be_more(store, client, count, found, is_more):
    ids = ids_of(3, count)
    await store.commit([a_commit(session_id) for session_id in ids])
    end(client, *ids)
    client.zincrby(seen_key(3), -5, ids[-1])
    (due,) = (await store.outcomes.due("me", lease_s=60)).values()
    assert (len(due.idle), due.is_more, due.closed) == (found, is_more, [])
    assert due.idle[0] == ids[-1]


@pytest.mark.parametrize(("count", "found", "is_more"), [(15, 15, False), (16, 16, True), (17, 16, True)])
async def test_a_sweep_takes_the_oldest_16_closed_sessions(store, client, count, found, is_more):
    ids = ids_of(3, count)
    for session_id in ids:
        await store.commit([a_commit(session_id, outcome=Outcome.PURCHASE, closed_by="event")])
    (due,) = (await store.outcomes.due("me", lease_s=60)).values()
    assert ([one.session_id for one in due.closed], due.is_more, due.idle) == (ids[:found], is_more, [])


async def test_a_live_session_is_not_due(store, client):
    await store.commit([a_commit("a")])
    assert await store.outcomes.due("me", lease_s=60) == {}
    # Listed all the same, as by a sweeper that was slow, it stays
    assert await store.outcomes.close_idle({shard_of("a"): ["a"]}) == ClosedCount()
    assert client.exists(history_key("a")) == 1


async def test_a_session_whose_record_was_evicted_is_not_closed_before_its_time(store, client):
    await store.commit([a_commit("a")])
    client.delete(record_key("a"))
    assert await store.outcomes.close_idle({shard_of("a"): ["a"]}) == ClosedCount()
    assert client.exists(history_key("a")) == 1
    assert client.zrange(seen_key(shard_of("a")), 0, -1) == [b"a"]


async def test_every_shard_is_swept(store, client):
    ids = [ids_of(shard, 1)[0] for shard in (0, 31, 32, 33, 255)]
    await store.commit([a_commit(session_id) for session_id in ids])
    end(client, *ids)
    due = await store.outcomes.due("me", lease_s=60)
    assert {shard: found.idle for shard, found in due.items()} == {shard_of(one): [one] for one in ids}


@pytest.mark.parametrize("shards", [1, 31, 32, 33, 65])
async def test_every_shard_is_published(store, client, shards):
    ids = [ids_of(shard, 1)[0] for shard in range(shards)]
    await store.commit([a_commit(one, outcome=Outcome.PURCHASE, closed_by="event") for one in ids])
    due = await store.outcomes.due("me", lease_s=60)
    written = {
        shard: [Written(one.entry, one.session_id, b"{}") for one in found.closed] for shard, found in due.items()
    }
    assert await store.outcomes.publish(written) == {shard: [True] for shard in range(shards)}
    assert await store.outcomes.publish(written) == {shard: [False] for shard in range(shards)}
    assert [client.xlen(outcomes_key(shard)) for shard in range(shards)] == [1] * shards


# --- lifetimes


@pytest.fixture
async def two_hours(valkey):
    """A store that keeps outcomes for two hours, and many of them."""
    one = opened(valkey, kept_s=7200, most=256 * 10_000)
    yield one
    await one.close()


async def test_outcomes_are_kept_for_their_lifetime_and_no_longer(two_hours, client):
    store = two_hours
    key = outcomes_key(shard_of("a"))
    now_ms = time.time_ns() // 1_000_000
    # Given entries that are older than two hours, by more and by less than a minute, and as many younger ones
    for age_ms in (3 * HOUR_MS, 2 * HOUR_MS + 60_000, 2 * HOUR_MS - 60_000, 1000):
        for number in range(300):
            client.xadd(key, {"id": "x", "session": "{}"}, id=f"{now_ms - age_ms}-{number}")
    await store.commit([a_commit("a", outcome=Outcome.PURCHASE, closed_by="event")])
    (session,) = await closed_in(store, shard_of("a"))
    await store.outcomes.publish({shard_of("a"): [Written(session.entry, "a", b'{"n":1}')]})
    ids = [int(entry.partition(b"-")[0]) for entry, _ in client.xrange(key)]
    # A server removes whole nodes of its stream, of a hundred entries each
    assert sum(one < now_ms - 2 * HOUR_MS for one in ids) < 100
    assert sum(one >= now_ms - 2 * HOUR_MS for one in ids) == 601
    assert 7_100_000 < client.pttl(key) <= 7_200_000


async def test_of_sessions_that_are_published_the_unreadable_one_is_only_removed(store, client):
    shard = 3
    ids = ids_of(shard, 3)
    for one in ids:
        await store.commit([a_commit(one, outcome=Outcome.PURCHASE, closed_by="event")])
    entries = [one.entry for one in await closed_in(store, shard)]
    client.xdel(closed_key(shard), entries[0])
    texts = (b'{"n":0}', b"", b'{"n":2}')
    written = [Written(*each) for each in zip(entries, ids, texts, strict=True)]
    # The first was erased meanwhile, the second cannot be read
    assert await store.outcomes.publish({shard: written}) == {shard: [False, True, True]}
    ((_, fields),) = client.xrange(outcomes_key(shard))
    assert (fields[b"id"].decode(), json.loads(fields[b"session"])) == (ids[2], {"n": 2})
    assert client.xlen(closed_key(shard)) == 0


async def test_counts_live_as_long_as_they_are_wanted_and_their_marker_longer_than_a_retry(store, client):
    added = {("m", 7): Counts({"s": 1, "b": 2}, {"events": 3}), ("all", 7): Counts({"s": 4}, {})}
    await store.outcomes.count("token", added, lifetime_s=100)
    assert 590_000 < client.pttl(counted_key("token")) <= 600_000
    for key in (trust_key("m", 7), drift_key("m", 7), trust_key("all", 7)):
        assert 90_000 < client.pttl(key) <= 100_000
    assert client.exists(drift_key("all", 7)) == 0
    # What is added later lives on from then
    client.pexpire(trust_key("m", 7), 50_000)
    await store.outcomes.count("another", {("m", 7): Counts({"s": 1}, {})}, lifetime_s=100)
    assert client.pttl(trust_key("m", 7)) > 90_000


# --- one commit over several shards


@pytest.mark.parametrize("shards", [1, 2, 3])
async def test_sessions_of_several_shards_in_one_commit_are_each_in_their_own(store, client, shards):
    ids = {shard: ids_of(shard, 2) for shard in range(shards)}
    every = [one for pair in ids.values() for one in pair]
    commits = [a_commit(one, 1, *[Event("page_view", n) for n in range(1 + place)]) for place, one in enumerate(every)]
    # One of them conflicts, and those after it are read from the right place
    conflicting = a_commit(every[0], 9, Event("page_view", 1), Event("page_view", 2), expected=8)
    assert await store.commit([conflicting, *commits]) == [False, *[True] * len(every)]
    for shard, pair in ids.items():
        expected = sorted(one.encode() for one in pair)
        for key in (board_key(shard), seen_key(shard)):
            assert sorted(client.zrange(key, 0, -1)) == expected
            assert 2_590_000 < client.pttl(key) <= 2_600_000
    assert [client.llen(history_key(one)) for one in every] == list(range(1, len(every) + 1))
    assert [record.version for record in await store.load(every)] == [commit.record.version for commit in commits]


async def test_a_purchase_leaves_the_board_of_its_shard_alone(store, client):
    ids = [ids_of(shard, 1)[0] for shard in (4, 5)]
    await store.commit([a_commit(one) for one in ids])
    await store.commit([a_commit(ids[1], 2, expected=1, outcome=Outcome.PURCHASE, closed_by="event")])
    assert client.zrange(board_key(4), 0, -1) == [ids[0].encode()]
    assert client.exists(board_key(5)) == 0
    assert client.zrange(seen_key(5), 0, -1) == [ids[1].encode()]
    assert [client.xlen(closed_key(shard)) for shard in (4, 5)] == [0, 1]
    # And what comes after it is not told of again
    after = a_commit(ids[1], 3, expected=2, outcome=Outcome.PURCHASE)
    assert await store.commit([Commit(ids[1], after.expected, after.record)]) == [True]
    assert client.xlen(closed_key(5)) == 1
