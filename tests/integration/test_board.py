"""The board on real servers: exact pages while entries move, bounded work, and nobody who has ended."""

import asyncio
import random
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache

import pytest
import redis
from conftest import missing
from support.memory_store import MemoryStore
from support.records import a_record
from support.redis_keys import board_key, record_key, seen_key
from support.redis_servers import BINARIES, find_binary
from support.redis_topologies import RedisCluster

from app.board.query import BoardQuery
from app.board.reader import read_page
from app.errors import StoreUnavailableError
from app.store.board import Order, Position, Selection
from app.store.interface import Commit
from app.store.keys import shard_of
from app.store.record_codec import Outcome, encode_record
from app.store.redis.connection import ConnectionOptions
from app.store.sessions import RedisStore
from model.events import Event

pytestmark = pytest.mark.anyio

IDLE_S = 1800


def seen_record(probability, *, seen_ms=0, **fields):
    seen_ms = seen_ms or int(time.time() * 1000)
    return a_record(version=random.randbytes(8), probability=probability, last_seen_ms=seen_ms, **fields)


class Shop:
    """A store, and what the board of it should say."""

    def __init__(self, store):
        self.store = store
        self.records = {}

    async def put(self, session_id, probability, **facts):
        before = self.records.get(session_id)
        record = seen_record(probability, **facts)
        commit = Commit(session_id, before and before.version, record, [Event("page_view", 1)] * (before is None))
        assert await self.store.commit([commit]) == [True]
        self.records[session_id] = record

    async def put_all(self, probabilities):
        records = {session_id: seen_record(probability) for session_id, probability in probabilities.items()}
        commits = [Commit(session_id, None, record, [Event("page_view", 1)]) for session_id, record in records.items()]
        assert all(await self.store.commit(commits))
        self.records |= records

    def best_first(self, fits=lambda record: True):
        open_ones = [
            (record.probability, session_id)
            for session_id, record in self.records.items()
            if record.outcome is Outcome.OPEN and record.probability is not None and fits(record)
        ]
        return [session_id for _, session_id in sorted(open_ones, reverse=True)]


def probability_query(*, limit=50, after=None, min_events=0, **selection):
    return BoardQuery(Selection(**selection), limit=limit, after=after, min_events=min_events)


async def walk(store, query_of, *, between=None):
    """All sessions of all pages in order; `query_of(after)` makes the query of a page."""
    listed, after = [], None
    while True:
        page = await read_page(store.board, query_of(after))
        listed.append([session_id for session_id, _ in page.rows])
        if page.following is None:
            return listed
        assert after is None or page.following < after
        after = page.following
        if between is not None:
            await between()


def flat(pages):
    return [session_id for page in pages for session_id in page]


@asynccontextmanager
async def opened(url, *, session_idle_s=IDLE_S):
    options = ConnectionOptions(timeout_s=10.0)
    store = RedisStore(url, session_idle_s=session_idle_s, options=options)
    try:
        yield Shop(store)
    finally:
        await store.close()


@pytest.fixture
async def shop(redis_server):
    async with opened(redis_server.url) as shop:
        yield shop


@pytest.fixture(scope="module")
def servers(start_redis):
    return cache(start_redis)


@pytest.fixture(params=["memory", *sorted(BINARIES)])
async def any_shop(request, servers):
    if request.param == "memory":
        yield Shop(MemoryStore(session_idle_s=IDLE_S, now_ms=lambda: time.time_ns() // 1_000_000))
        return
    server = servers(request.param)
    server.flush()
    async with opened(server.url) as shop:
        yield shop


def random_probability(chance):
    # Many sessions have the same: first page views of one kind do.
    return chance.choice([chance.random(), chance.randrange(5) / 4, 0.123456789012345])


@pytest.mark.parametrize("limit", [1, 7, 50, 200])
async def test_the_pages_together_are_the_board_in_order(any_shop, limit):
    chance = random.Random(limit)
    await any_shop.put_all(
        {f"s-{chance.random()}": random_probability(chance) for _ in range(40 if limit == 1 else 700)}
    )
    pages = await walk(any_shop.store, lambda after: probability_query(limit=limit, after=after))
    assert flat(pages) == any_shop.best_first()
    assert all(len(page) == limit for page in pages[:-1])


async def test_an_empty_board_is_one_empty_page(any_shop):
    page = await read_page(any_shop.store.board, probability_query())
    assert (page.rows, page.following, page.live) == ([], None, 0)


async def test_bounds_of_probability_are_included(any_shop):
    await any_shop.put_all({f"s-{number}": number / 100 for number in range(101)})
    pages = await walk(
        any_shop.store,
        lambda after: probability_query(limit=9, after=after, min_probability=0.25, max_probability=0.5),
    )
    assert flat(pages) == any_shop.best_first(lambda record: 0.25 <= record.probability <= 0.5)


async def test_sessions_with_too_few_events_are_left_out_and_the_cursor_goes_on(any_shop):
    for number in range(300):
        await any_shop.put(f"s-{number}", number / 300, events=5 if number % 10 == 0 else 1)
    pages = await walk(any_shop.store, lambda after: probability_query(limit=4, after=after, min_events=5))
    assert flat(pages) == any_shop.best_first(lambda record: record.events >= 5)


async def test_a_row_has_the_last_of_each_fact_of_its_session(any_shop):
    visits = [
        Event("search", 1, properties={"device": "mobile", "plan": "basic"}),
        Event("view_item", 2, "SKU-1", currency="EUR", properties={"device": "desktop"}),
        Event("add_to_cart", 3, "SKU-2", currency="CHF"),
        Event("page_view", 4),
    ]
    scores = [0.25, 0.5, 0.75, 0.125]
    commit = Commit("s-1", None, seen_record(0.125, events=4), visits, probabilities=scores)
    assert await any_shop.store.commit([commit]) == [True]
    for recent in (0, 1, 3, 9):
        missing_row, row = await any_shop.store.board.rows(["none", "s-1"], recent=recent)
        assert missing_row is None
        assert row.recent_probabilities == (scores[-recent:] if recent else [])
        assert (row.last_event, row.last_item_id) == ("page_view", None)
        assert row.currency == ("CHF" if recent > 1 else None)
        assert row.properties == {}
    (row,) = await any_shop.store.board.rows(["s-1"], recent=1, with_properties=True)
    assert row.properties == {"device": "desktop", "plan": "basic"}
    assert (row.currency, row.recent_probabilities) == ("CHF", [0.125])


async def test_by_last_seen_the_last_comes_first_and_bought_ones_are_there(any_shop):
    for number in range(20):
        await any_shop.put(f"s-{number}", 0.5, seen_ms=1000 + number)
        await asyncio.sleep(0.002)
    await any_shop.put("s-3", 0.5, outcome=Outcome.PURCHASE, seen_ms=5000)
    pages = await walk(any_shop.store, lambda after: BoardQuery(Selection(order=Order.LAST_SEEN), limit=6, after=after))
    assert flat(pages) == ["s-3", *(f"s-{number}" for number in reversed(range(20)) if number != 3)]
    # By probability, it is gone
    assert "s-3" not in flat(await walk(any_shop.store, lambda after: probability_query(after=after)))


async def test_bounds_of_probability_hold_by_last_seen_also_for_bought_ones(any_shop):
    await any_shop.put_all({f"open-{number}": number / 10 for number in range(10)})
    for number in range(10):
        await any_shop.put(f"bought-{number}", number / 10, outcome=Outcome.PURCHASE)
    pages = await walk(
        any_shop.store,
        lambda after: BoardQuery(
            Selection(order=Order.LAST_SEEN, min_probability=0.35, max_probability=0.75), limit=3, after=after
        ),
    )
    assert sorted(flat(pages)) == [f"{kind}-{number}" for kind in ("bought", "open") for number in range(4, 8)]


async def test_seen_since_leaves_out_who_was_seen_before(shop, redis_server):
    await shop.put_all({f"s-{number}": number / 100 for number in range(100)})
    # Given times a second apart
    now_ms = int(time.time() * 1000)
    with redis.Redis.from_url(redis_server.url) as client:
        for number in range(100):
            client.zadd(seen_key(shard_of(f"s-{number}")), {f"s-{number}": now_ms - 1000 * number})
    since_ms = now_ms - 30_000
    pages = await walk(shop.store, lambda after: probability_query(limit=7, after=after, seen_since_ms=since_ms))
    assert flat(pages) == [f"s-{number}" for number in reversed(range(31))]
    pages = await walk(
        shop.store,
        lambda after: BoardQuery(Selection(order=Order.LAST_SEEN, seen_since_ms=since_ms), limit=7, after=after),
    )
    assert flat(pages) == [f"s-{number}" for number in range(31)]


@pytest.mark.parametrize("limit", [50, 200])
async def test_few_active_sessions_below_many_others_are_one_full_page(shop, redis_server, limit):
    # Given 20,000 sessions that left an hour ago and are likelier than all others: more than a page examines
    active = {f"s-{number}": random_probability(random.Random(number)) / 2 for number in range(600)}
    # And the likeliest of them in one shard, more than a page reads from each at first
    active |= dict.fromkeys([name for name in (f"t-{n}" for n in range(8000)) if shard_of(name) == 7][:10], 0.625)
    now_ms = int(time.time() * 1000)
    await shop.put_all(active)
    with redis.Redis.from_url(redis_server.url) as client, client.pipeline(transaction=False) as pipeline:
        for number in range(20_000):
            shard = shard_of(f"gone-{number}")
            pipeline.zadd(board_key(shard), {f"gone-{number}": 0.75})
            pipeline.zadd(seen_key(shard), {f"gone-{number}": now_ms - 600_000})
        pipeline.execute()
    query = BoardQuery(limit=limit, active_s=300).begun(now_ms)
    pages = await walk(shop.store, lambda after: replace(query, after=after))
    assert flat(pages) == shop.best_first()
    assert all(len(page) == limit for page in pages[:-1])
    narrow = BoardQuery(Selection(min_probability=0.1, max_probability=0.4), limit=limit, active_s=300).begun(now_ms)
    pages = await walk(shop.store, lambda after: replace(narrow, after=after))
    assert flat(pages) == shop.best_first(lambda record: 0.1 <= record.probability <= 0.4)


@pytest.mark.parametrize("active_s", [None, 300])
@pytest.mark.parametrize("order", list(Order))
async def test_a_prefix_finds_sessions_by_their_id(any_shop, order, active_s):
    names = [f"{start}{number}" for start in ("s-1", "s-2", "S-1", "ä", "%", "s-1%") for number in range(40)]
    await any_shop.put_all({name: random_probability(random.Random(name)) for name in names})
    now_ms = int(time.time() * 1000)
    for prefix in ("s-1", "ä", "%", "s-13", "nobody"):
        query = BoardQuery(Selection(order=order, id_prefix=prefix), limit=9, active_s=active_s).begun(now_ms)
        listed = flat(await walk(any_shop.store, lambda after, query=query: replace(query, after=after)))
        assert sorted(listed) == sorted(name for name in names if name.startswith(prefix))
        if order is Order.PROBABILITY:
            assert listed == [name for name in any_shop.best_first() if name.startswith(prefix)]


async def test_ids_of_any_characters_keep_their_order_within_one_score(shop):
    ids = ["a", "A", "ab", "a b", "ä", "ß", "日本", "🛒", "z", "Z", "_", "/", "a/b", "%2F", "x" * 256]
    chance = random.Random(0)
    ids += [f"{chance.choice(ids)[:200]}{number}" for number in range(300)]
    await shop.put_all(dict.fromkeys(ids, 0.25))
    pages = await walk(shop.store, lambda after: probability_query(limit=11, after=after))
    assert flat(pages) == sorted(set(ids), reverse=True)


@pytest.mark.parametrize("seed", range(2))
async def test_what_does_not_move_is_listed_once_while_everything_else_moves(shop, seed):
    chance = random.Random(seed)
    await shop.put_all({f"s-{number}": random_probability(chance) for number in range(400)})
    still = {f"s-{number}" for number in range(0, 400, 2)}
    moving = [f"s-{number}" for number in range(1, 400, 2)]
    ended = asyncio.Event()

    async def move():
        number = 1000
        while not ended.is_set():
            session_id = chance.choice(moving)
            what = chance.random()
            if what < 0.1:
                await shop.store.delete(session_id)
                shop.records.pop(session_id, None)
            elif what < 0.2:
                number += 1
                await shop.put(f"new-{number}", random_probability(chance))
            else:
                await shop.put(session_id, random_probability(chance), outcome=Outcome(what < 0.25))

    movement = asyncio.create_task(move())
    for limit in (3, 17, 64):
        listed = flat(await walk(shop.store, lambda after, limit=limit: probability_query(limit=limit, after=after)))
        of_still = [session_id for session_id in listed if session_id in still]
        expected = [session_id for session_id in shop.best_first() if session_id in still]
        assert of_still == expected
    ended.set()
    await movement


async def test_a_cursor_goes_on_where_its_session_was_when_that_is_gone(shop):
    await shop.put_all({f"s-{number:02}": 0.5 for number in range(30)})
    page = await read_page(shop.store.board, probability_query(limit=10))
    assert page.following == Position(0.5, "s-20")
    await shop.store.delete("s-20")
    following = await read_page(shop.store.board, probability_query(limit=10, after=page.following))
    assert [session_id for session_id, _ in following.rows] == [f"s-{number}" for number in range(19, 9, -1)]


async def test_who_has_ended_is_neither_shown_nor_counted(shop, redis_server):
    await shop.put_all({f"s-{number}": number / 1000 for number in range(200)})
    past_ms = int(time.time() * 1000) - IDLE_S * 1000 - 1
    ended = {f"s-{number}" for number in range(150, 200)}
    with redis.Redis.from_url(redis_server.url) as client:
        for session_id in ended:
            client.zadd(seen_key(shard_of(session_id)), {session_id: past_ms})
    pages = await walk(shop.store, lambda after: probability_query(limit=20, after=after))
    assert flat(pages) == [session_id for session_id in shop.best_first() if session_id not in ended]
    assert (await read_page(shop.store.board, probability_query())).live == 150
    by_time = await walk(shop.store, lambda after: BoardQuery(Selection(order=Order.LAST_SEEN), limit=20, after=after))
    assert set(flat(by_time)).isdisjoint(ended)
    spread = await shop.store.board.spread([0.05, 0.1, 0.15])
    assert (spread.live, spread.open, spread.counts) == (150, 150, [50, 50, 50, 0])


async def test_the_spread_counts_every_open_session_in_its_class(any_shop):
    chance = random.Random(3)
    await any_shop.put_all({f"s-{number}": random_probability(chance) for number in range(500)})
    for number in range(0, 500, 9):
        await any_shop.put(f"s-{number}", 0.9, outcome=Outcome.PURCHASE)
    edges = [0.25, 0.5, 0.75]
    spread = await any_shop.store.board.spread(edges)
    scores = [record.probability for record in any_shop.records.values() if record.outcome is Outcome.OPEN]
    classes = [sum(sum(score >= edge for edge in edges) == number for score in scores) for number in range(4)]
    assert (spread.live, spread.open, spread.counts) == (500, len(scores), classes)


async def test_a_session_whose_record_cannot_be_read_is_left_out(shop, redis_server):
    await shop.put_all({f"s-{number}": number / 10 for number in range(5)})
    with redis.Redis.from_url(redis_server.url) as client:
        client.set(record_key("s-2"), b"\xffwhat", keepttl=True)
    assert flat(await walk(shop.store, lambda after: probability_query(after=after))) == ["s-4", "s-3", "s-1", "s-0"]


def fill(server, sessions, probability_of):
    """Put many sessions straight under the board, with records."""
    now_ms = int(time.time() * 1000)
    with redis.Redis.from_url(server.url) as client:
        for start in range(0, sessions, 10_000):
            with client.pipeline(transaction=False) as pipeline:
                for number in range(start, min(start + 10_000, sessions)):
                    session_id = f"s-{number}"
                    shard = shard_of(session_id)
                    probability = probability_of(number)
                    pipeline.zadd(board_key(shard), {session_id: repr(probability)})
                    pipeline.zadd(seen_key(shard), {session_id: now_ms - number % 60_000})
                    if number >= 99_000:
                        pipeline.set(record_key(session_id), encode_record(seen_record(probability)))
                pipeline.execute()


def work_of(server):
    """Commands that the server has run, those inside scripts too, and bytes that it has sent."""
    with redis.Redis.from_url(server.url) as client:
        calls = sum(row["calls"] for name, row in client.info("commandstats").items() if name != "cmdstat_info")
        return calls, client.info("stats")["total_net_output_bytes"]


async def test_the_work_of_a_page_does_not_grow_with_the_sessions(start_redis):
    server = start_redis("valkey-8.1")
    # Given 100,000 sessions, half of them with one and the same probability
    fill(server, 100_000, lambda number: 0.5 if number % 2 else number / 100_000)
    async with opened(server.url) as shop:
        queries = [
            probability_query(limit=50),
            probability_query(limit=50, after=Position(0.5, "s-55555")),
            probability_query(limit=50, min_events=3),
            # Fits nobody among the highest, so that every bound is reached
            probability_query(limit=50, seen_since_ms=int(time.time() * 1000) - 10),
            BoardQuery(Selection(order=Order.LAST_SEEN, min_probability=0.9999), limit=50),
            BoardQuery(Selection(id_prefix="nobody"), limit=50),
            # Some 4,000 sessions: as many as are examined without regard to their probability
            BoardQuery(active_s=3, limit=50).begun(int(time.time() * 1000)),
        ]
        for query in queries:
            await read_page(shop.store.board, query)
            calls, sent_bytes = work_of(server)
            page = await read_page(shop.store.board, query)
            now_calls, now_bytes = work_of(server)
            assert now_calls - calls < 40_000
            assert now_bytes - sent_bytes < 400_000
            assert page.live == 100_000
        # The one that everybody asks for is far below: a handful of commands a shard
        calls, sent_bytes = work_of(server)
        await read_page(shop.store.board, queries[0])
        assert work_of(server)[0] - calls < 256 * 12
        assert work_of(server)[1] - sent_bytes < 100_000


@pytest.fixture
def cluster(tmp_path):
    binary = find_binary("valkey-8.1")
    if binary is None:
        raise missing("valkey-8.1")
    started = RedisCluster(binary, tmp_path)
    try:
        started.start()
        yield started
    finally:
        started.stop()


async def test_on_a_cluster_pages_are_the_same_and_a_lost_node_is_said(cluster):
    chance = random.Random(1)
    async with opened(cluster.url) as shop:
        await shop.put_all({f"s-{number}": random_probability(chance) for number in range(500)})
        pages = await walk(shop.store, lambda after: probability_query(limit=33, after=after))
        assert flat(pages) == shop.best_first()
        assert (await shop.store.board.spread([0.5])).live == 500
        await shop.store.replicas.report("one", b"fine")
        assert await shop.store.replicas.reports() == {"one": b"fine"}
        cluster.primaries[1].kill()
        with pytest.raises(StoreUnavailableError):
            await read_page(shop.store.board, probability_query())
        with pytest.raises(StoreUnavailableError):
            await shop.store.board.spread([0.5])


async def test_a_report_counts_until_its_replica_takes_it_out_or_is_silent_for_long(shop, redis_server):
    replicas = shop.store.replicas
    await replicas.report("one", b"1")
    await replicas.report("two", b"2")
    await replicas.report("one", b"3")
    assert await replicas.reports() == {"one": b"3", "two": b"2"}
    await replicas.report("two", b"")
    assert await replicas.reports() == {"one": b"3"}
    # Given one that has been silent for a minute
    with redis.Redis.from_url(redis_server.url) as client:
        client.zadd("wb:{00}:replicas", {"gone": int(time.time() * 1000) - 60_000})
        client.hset("wb:{00}:reports", "gone", b"4")
        assert await replicas.reports() == {"one": b"3"}
        await replicas.report("one", b"5")
        assert client.hkeys("wb:{00}:reports") == [b"one"]
        assert client.pttl("wb:{00}:reports") > 0
