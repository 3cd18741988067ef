"""One suite over every store: in memory, the oldest Redis and the newest Valkey."""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest
import redis
from msgspec.structs import replace
from support.memory_store import MemoryStore
from support.records import a_record
from support.redis_keys import board_key, closed_key, history_key, outcomes_key, record_key, seen_key

from app.errors import CorruptRecordError, StoreUnavailableError
from app.store.interface import Commit
from app.store.keys import shard_of
from app.store.outcomes import Counts, OutcomeLimits, Written
from app.store.record_codec import Outcome, Record
from app.store.redis.connection import ConnectionOptions
from app.store.sessions import RedisStore
from model.events import Event

pytestmark = pytest.mark.anyio


def numbered(version, **changes):
    return a_record(version=version.to_bytes(8, "big"), **changes)


def a_commit(session_id, expected, version, *events):
    return Commit(session_id, expected and expected.to_bytes(8, "big"), numbered(version), events)


def redis_store(server, *, session_idle_s=1800, options=None, **others):
    options = options or ConnectionOptions(timeout_s=10.0)
    return RedisStore(server.url, session_idle_s=session_idle_s, options=options, **others)


class Kind:
    """How to open a store, and how to put bytes under it."""

    def __init__(self, server):
        self.server = server
        self._memory = {}

    @asynccontextmanager
    async def open(self, **options):
        if self.server is None:
            idle_s = options.get("session_idle_s", 1800)
            store = self._memory.setdefault(
                idle_s, MemoryStore(session_idle_s=idle_s, now_ms=lambda: time.time_ns() // 1_000_000)
            )
        else:
            store = redis_store(self.server, **options)
        yield store
        await store.close()

    def damage(self, store, session_id, *, record=None, history=None):
        if self.server is None:
            session = store.sessions[session_id]
            session.record = record or session.record
            session.history = history or session.history
            return
        with redis.Redis.from_url(self.server.url) as client:
            if record:
                client.set(record_key(session_id), record)
            if history:
                client.delete(history_key(session_id))
                client.rpush(history_key(session_id), *history)


@pytest.fixture(scope="module", params=["memory", "redis-6.2", "valkey-8.1"])
def server(request, start_redis):
    return None if request.param == "memory" else start_redis(request.param)


@pytest.fixture
def kind(server):
    if server is not None:
        server.flush()
    return Kind(server)


async def test_what_is_committed_is_loaded(kind):
    async with kind.open() as store:
        first, second = Event("page_view", 1), Event("view_item", 2, "SKU", "shoes", 1.5, 2.0, {"device": "mobile"})
        assert await store.commit([a_commit("a", None, 1, first), a_commit("b", None, 2)]) == [True, True]
        assert await store.commit([a_commit("a", 1, 3, second)]) == [True]
        assert await store.load(["b", "a", "c"]) == [numbered(2), numbered(3), None]
        assert await store.load_histories(["a", "b", "c"]) == [[first, second], [], []]


async def test_a_commit_on_another_version_changes_nothing(kind):
    async with kind.open() as store:
        await store.commit([a_commit("a", None, 1, Event("page_view", 1))])
        stale = [
            a_commit("a", None, 2, Event("page_view", 2)),
            a_commit("b", 9, 3, Event("page_view", 3)),
        ]
        assert await store.commit(stale) == [False, False]
        assert await store.commit([a_commit("a", 7, 4, Event("page_view", 4))]) == [False]
        assert await store.load(["a", "b"]) == [numbered(1), None]
        assert await store.load_histories(["a", "b"]) == [[Event("page_view", 1)], []]


async def test_a_conflict_fails_alone(kind):
    async with kind.open() as store:
        ids = [str(i) for i in range(100)]
        await store.commit([a_commit(session_id, None, 1) for session_id in ids])
        expected = [9 if i % 7 == 0 else 1 for i in range(100)]
        commits = [a_commit(session_id, version, 2) for session_id, version in zip(ids, expected, strict=True)]
        assert await store.commit(commits) == [version == 1 for version in expected]


async def test_the_same_commit_twice_counts_once(kind):
    async with kind.open() as store:
        commit = a_commit("a", None, 1, Event("page_view", 1))
        assert await store.commit([commit]) == [True]
        assert await store.commit([commit]) == [True]
        following = a_commit("a", 1, 2, Event("page_view", 2))
        assert await store.commit([following]) == [True]
        assert await store.commit([following]) == [True]
        assert await store.load_histories(["a"]) == [[Event("page_view", 1), Event("page_view", 2)]]
        # But once another came on top, the old one is a conflict
        assert await store.commit([commit]) == [False]


async def test_a_hundred_racers_on_one_version_have_one_winner(kind):
    async with kind.open() as store:
        await store.commit([a_commit("a", None, 1)])

        async def race(number):
            (won,) = await store.commit([a_commit("a", 1, 100 + number, Event("page_view", number))])
            return won

        won = await asyncio.gather(*(race(number) for number in range(100)))
        winner = won.index(True)
        assert sum(won) == 1
        assert await store.load(["a"]) == [numbered(100 + winner)]
        assert await store.load_histories(["a"]) == [[Event("page_view", winner)]]


async def test_idle_sessions_end_and_active_ones_do_not(kind):
    async with kind.open(session_idle_s=2) as store:
        await store.commit([a_commit("idle", None, 1, Event("page_view", 1))])
        await store.commit([a_commit("active", None, 1, Event("page_view", 1))])
        version = 1
        while await store.load(["idle"]) != [None]:
            # A commit without events lets the history live on too
            assert await store.commit([a_commit("active", version, version + 1)]) == [True]
            version += 1
            await asyncio.sleep(0.05)
        assert version > 1
        assert await store.load(["active"]) == [numbered(version)]
        (_, active) = await store.load_histories(["idle", "active"])
        assert active == [Event("page_view", 1)]
        # And an expired session's version is worth nothing
        assert await store.commit([a_commit("idle", 1, 3)]) == [False]


async def test_what_cannot_be_read_fails_alone(kind):
    async with kind.open() as store:
        await store.commit([a_commit(session_id, None, 1, Event("page_view", 1)) for session_id in ("good", "bad")])
        kind.damage(store, "bad", record=b"\x01garbage", history=[b"\xc1"])
        good, bad = await store.load(["good", "bad"])
        assert good == numbered(1)
        assert isinstance(bad, CorruptRecordError)
        good, bad = await store.load_histories(["good", "bad"])
        assert good == [Event("page_view", 1)]
        assert isinstance(bad, CorruptRecordError)


async def test_any_session_id_is_a_key(kind):
    async with kind.open() as store:
        ids = ["a/b", "{x}", "ä€😀", "a b", "*", "s:1", "x" * 256]
        assert await store.commit([a_commit(session_id, None, 1) for session_id in ids]) == [True] * len(ids)
        assert await store.load(ids) == [numbered(1)] * len(ids)


def test_keys_of_a_session_share_the_shards_hash_tag():
    # Fixed for all time: another shard would put live sessions where nobody looks for them.
    # CRC-32's published check value is 0xCBF43926, of this very string.
    assert shard_of("123456789") == 0x26
    assert record_key("123456789") == "wb:{26}:s:123456789"
    assert history_key("123456789") == "wb:{26}:h:123456789"
    assert {shard_of(str(number)) for number in range(5000)} == set(range(256))


async def test_every_key_expires(redis_server):
    store = redis_store(redis_server, session_idle_s=60, outcome_grace_s=100)
    await store.commit([a_commit(str(i), None, 1, Event("page_view", 1)) for i in range(20)])
    with redis.Redis.from_url(redis_server.url) as client:
        records = [client.pttl(record_key(str(i))) for i in range(20)]
        histories = [client.pttl(history_key(str(i))) for i in range(20)]
        shards = {shard_of(str(i)) for i in range(20)}
        sets = [client.pttl(key(shard)) for shard in shards for key in (board_key, seen_key)]
        assert client.dbsize() == 40 + len(sets)
    # A record ends with its session; the history waits for the closer, and the sets tell how many it missed
    assert all(0 < lifetime_ms <= 60_000 for lifetime_ms in records)
    assert all(60_000 < lifetime_ms <= 160_000 for lifetime_ms in histories)
    assert all(160_000 < lifetime_ms <= 260_000 for lifetime_ms in sets)
    await store.close()


async def test_the_sets_of_a_shard_are_given_more_time_when_little_is_left(redis_server):
    (first, second), shard = ids_of_one_shard(2)
    sets = (board_key(shard), seen_key(shard))
    store = redis_store(redis_server, session_idle_s=60, outcome_grace_s=100)
    await store.commit([a_commit(first, None, 1, Event("page_view", 1))])
    with redis.Redis.from_url(redis_server.url) as client:
        # Given half the grace time less than a commit gives them, and a little more than that
        for name in sets:
            assert client.pexpire(name, 220_000)
        # Then a commit leaves it at that
        assert await store.commit([a_commit(first, 1, 2, Event("page_view", 2))]) == [True]
        assert all(0 < client.pttl(name) <= 220_000 for name in sets)
        # Given less, then a commit gives both all of it again
        for name in sets:
            assert client.pexpire(name, 209_000)
        assert await store.commit([a_commit(first, 2, 3, Event("page_view", 3))]) == [True]
        assert all(220_000 < client.pttl(name) <= 260_000 for name in sets)
        # Given a board that is gone, as its last session has left it, then the next session's expires as well
        bought = Commit(first, (3).to_bytes(8, "big"), numbered(4, outcome=Outcome.PURCHASE), closed_by="event")
        assert await store.commit([bought]) == [True]
        assert not client.exists(board_key(shard))
        assert await store.commit([a_commit(second, None, 1, Event("page_view", 1))]) == [True]
        assert all(220_000 < client.pttl(name) <= 260_000 for name in sets)
    await store.close()


async def test_what_is_left_of_closed_sessions_expires_too(redis_server):
    store = redis_store(redis_server, session_idle_s=60, outcomes=OutcomeLimits(kept_s=300))
    bought = Commit("a", None, numbered(1, outcome=Outcome.PURCHASE), (Event("page_view", 1),), closed_by="event")
    assert await store.commit([bought]) == [True]
    with redis.Redis.from_url(redis_server.url) as client:
        assert 0 < client.pttl(history_key("a")) <= 60_000
        assert 60_000 < client.pttl(closed_key(shard_of("a"))) <= 300_000
        (due,) = (await store.outcomes.due("me", lease_s=5)).values()
        (session,) = due.closed
        await store.outcomes.publish({shard_of("a"): [Written(session.entry, "a", b"{}")]})
        await store.outcomes.count("token", {("m", 1): Counts({"s": 1}, {"events": 2})}, lifetime_s=100)
        lifetimes_ms = {key.decode(): client.pttl(key) for key in client.scan_iter()}
    assert 60_000 < lifetimes_ms[outcomes_key(shard_of("a"))] <= 300_000
    assert all(lifetime_ms > 0 for lifetime_ms in lifetimes_ms.values())
    await store.close()


async def test_a_session_is_read_whole(kind):
    async with kind.open() as store:
        await store.commit([a_commit("a", None, 1, Event("page_view", 1))])
        record, history = await store.load_session("a")
        assert (replace(record, history_bytes=0), history) == (numbered(1), [Event("page_view", 1)])
        assert await store.load_session("b") is None
        kind.damage(store, "a", history=[b"one", b"two"])
        with pytest.raises(CorruptRecordError):
            await store.load_session("a")


async def test_a_session_and_a_history_that_do_not_fit_are_not_read_as_one(kind):
    async with kind.open() as store:
        await store.commit([a_commit("a", None, 1)])
        with pytest.raises(CorruptRecordError, match="counts 1 events and the history has 0"):
            await store.load_session("a")


async def test_what_is_deleted_is_gone_and_a_commit_on_it_is_a_conflict(kind):
    async with kind.open() as store:
        await store.commit([a_commit(session_id, None, 1, Event("page_view", 1)) for session_id in ("a", "b")])
        await store.delete("a")
        await store.delete("a")
        await store.delete("never was")
        assert await store.load(["a", "b"]) == [None, numbered(1)]
        assert await store.load_histories(["a", "b"]) == [[], [Event("page_view", 1)]]
        assert await store.commit([a_commit("a", 1, 2, Event("page_view", 2))]) == [False]
        assert await store.commit([a_commit("a", None, 3, Event("page_view", 3))]) == [True]
        assert await store.load_histories(["a"]) == [[Event("page_view", 3)]]


async def test_nothing_of_a_deleted_session_is_left(redis_server):
    store = redis_store(redis_server)
    await store.commit([a_commit("a", None, 1, Event("page_view", 1))])
    await store.delete("a")
    with redis.Redis.from_url(redis_server.url) as client:
        assert list(client.scan_iter()) == []
    await store.close()


async def test_without_a_server_a_session_can_be_neither_read_nor_deleted(start_redis):
    server = start_redis("valkey-8.1")
    store = redis_store(server)
    server.kill()
    with pytest.raises(StoreUnavailableError):
        await store.load_session("a")
    with pytest.raises(StoreUnavailableError):
        await store.delete("a")
    await store.close()


class Board:
    """What a shard's sorted sets hold."""

    def __init__(self, server, shard):
        self._url = server.url
        self._shard = shard

    def members(self, key):
        with redis.Redis.from_url(self._url) as client:
            return {member.decode(): score for member, score in client.zrange(key(self._shard), 0, -1, withscores=True)}

    @property
    def board(self):
        return self.members(board_key)

    @property
    def seen(self):
        return self.members(seen_key)


def ids_of_one_shard(count):
    shard = shard_of("0")
    return [str(number) for number in range(400 * count) if shard_of(str(number)) == shard][:count], shard


async def test_the_board_shows_open_sessions_by_probability(redis_server):
    store = redis_store(redis_server)
    (first, second), shard = ids_of_one_shard(2)
    board = Board(redis_server, shard)
    before_ms = time.time() * 1000 - 1
    await store.commit([a_commit(first, None, 1), a_commit(second, None, 1)])
    assert board.board == {first: 0.5, second: 0.5}
    await store.commit([Commit(first, (1).to_bytes(8, "big"), numbered(2, probability=0.1 + 0.2))])
    # To the last bit
    assert board.board == {first: 0.1 + 0.2, second: 0.5}
    # A commit that conflicts changes nothing
    assert await store.commit([Commit(first, (9).to_bytes(8, "big"), numbered(3, probability=0.9))]) == [False]
    assert board.board[first] == 0.1 + 0.2
    # A purchase takes the session off the board, and it stays among those that were seen
    await store.commit([Commit(first, (2).to_bytes(8, "big"), numbered(4, outcome=Outcome.PURCHASE))])
    assert board.board == {second: 0.5}
    assert set(board.seen) == {first, second}
    assert all(before_ms <= seen_ms <= time.time() * 1000 + 1 for seen_ms in board.seen.values())
    await store.close()


async def test_a_new_session_does_not_inherit_an_old_history(redis_server):
    store = redis_store(redis_server)
    await store.commit([a_commit("a", None, 1, Event("page_view", 1))])
    # Given a record that is gone before its history is
    with redis.Redis.from_url(redis_server.url) as client:
        client.delete(record_key("a"))
    await store.commit([a_commit("a", None, 2, Event("page_view", 2))])
    assert await store.load_histories(["a"]) == [[Event("page_view", 2)]]
    await store.close()


async def test_a_key_of_another_type_fails_its_shards_sessions_and_no_others(redis_server):
    # Given sessions of many shards, committed together, and one whose history is no list
    session_ids = [f"beside-{number}" for number in range(40)]
    poisoned = session_ids[17]
    with redis.Redis.from_url(redis_server.url) as client:
        client.set(history_key(poisoned), "no list", ex=60)
        client.set(record_key(poisoned), b"\x01" + (1).to_bytes(8, "big"), ex=60)
    store = redis_store(redis_server)
    commits = [a_commit(one, 1 if one == poisoned else None, 2, Event("page_view", 5)) for one in session_ids]
    # When they are committed
    stored = dict(zip(session_ids, await store.commit(commits), strict=True))
    # Then only it, and at most those of its shard, have failed, and the others are there
    failed = [one for one, outcome in stored.items() if outcome is not True]
    assert poisoned in failed
    assert {shard_of(one) for one in failed} == {shard_of(poisoned)}
    well = [one for one in session_ids if one not in failed]
    assert len(well) > 30
    assert all(isinstance(record, Record) for record in await store.load(well))
    await store.close()


async def test_a_server_that_forgot_the_script_is_given_it_again(redis_server):
    store = redis_store(redis_server)
    commits = [a_commit(str(i), None, 1, Event("page_view", 1)) for i in range(20)]
    assert await store.commit(commits) == [True] * 20
    redis_server.command("SCRIPT", "FLUSH")
    commits = [a_commit(str(i), 1, 2, Event("page_view", 2)) for i in range(20)]
    assert await store.commit(commits) == [True] * 20
    assert await store.load_histories(["7"]) == [[Event("page_view", 1), Event("page_view", 2)]]
    await store.close()


async def test_a_batch_costs_one_round_trip_to_load_and_one_to_commit(redis_server):
    observed = []
    store = redis_store(redis_server, observe=lambda operation, seconds: observed.append(operation))
    await store.commit([a_commit("warm", None, 1)])
    observed.clear()
    ids = [str(i) for i in range(200)]
    await store.load(ids)
    await store.commit([a_commit(session_id, None, 1) for session_id in ids])
    assert observed == ["load", "commit"]
    await store.close()


async def test_a_full_server_refuses_writes_as_unavailable(start_redis):
    server = start_redis("valkey-8.1", options=("--maxmemory", "1", "--maxmemory-policy", "noeviction"))
    store = redis_store(server)
    results = await store.commit([a_commit("a", None, 1), a_commit("b", None, 1)])
    assert [type(result) for result in results] == [StoreUnavailableError] * 2
    assert await store.load(["a", "b"]) == [None, None]
    await store.close()


async def test_a_server_that_is_gone_is_told_at_once_and_found_again(start_redis):
    server = start_redis("valkey-8.1", appendonly=True)
    # It is asked every time, however often it failed
    store = redis_store(server, options=ConnectionOptions(timeout_s=10.0, failures_to_open=1000))
    await store.commit([a_commit("a", None, 1)])
    server.kill()
    for results in (
        await store.load(["a", "b"]),
        await store.load_histories(["a", "b"]),
        await store.commit([a_commit("a", 1, 2), a_commit("b", None, 2)]),
    ):
        assert [type(result) for result in results] == [StoreUnavailableError] * 2
    with pytest.raises(StoreUnavailableError):
        await store.ping()
    # When it is back, what was committed is there and the next commit goes through
    server.start()
    assert await store.load(["a"]) == [numbered(1)]
    assert await store.commit([a_commit("a", 1, 2)]) == [True]
    await store.close()


async def test_a_server_that_hangs_is_given_up_and_found_again(start_redis):
    server = start_redis("valkey-8.1")
    store = redis_store(server, options=ConnectionOptions(timeout_s=1.0))
    await store.commit([a_commit("a", None, 1)])
    server.pause()
    (result,) = await store.load(["a"])
    assert isinstance(result, StoreUnavailableError)
    server.resume()
    assert await store.load(["a"]) == [numbered(1)]
    await store.close()


async def test_more_callers_than_connections_wait_for_a_free_one(redis_server):
    store = redis_store(redis_server, options=ConnectionOptions(max_connections=2, timeout_s=10.0))
    results = await asyncio.gather(*(store.commit([a_commit(str(i), None, 1)]) for i in range(50)))
    assert results == [[True]] * 50
    await store.close()
