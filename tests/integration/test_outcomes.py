"""How sessions are closed and told of, on real servers: once each, whatever happens at the same time."""

import asyncio
import io
import json
import time
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
import redis
from conftest import missing
from support.fakes import FakeModel
from support.records import a_record
from support.redis_keys import closed_key, closer_key, history_key, outcomes_key, record_key, seen_key
from support.redis_servers import find_binary
from support.redis_topologies import RedisCluster

from app.errors import StoreUnavailableError
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.outcomes.sweeper import SessionSweeper
from app.scoring.events import QueuedEvent
from app.scoring.scorer import Scorer
from app.scoring.session_update import Score
from app.store.interface import Commit
from app.store.keys import shard_of
from app.store.outcomes import Counts, OutcomeLimits
from app.store.record_codec import Outcome
from app.store.redis.connection import ConnectionOptions
from app.store.sessions import RedisStore
from model.events import Event

pytestmark = pytest.mark.anyio

IDLE_S = 600
_versions = count(1)
_codes = count(1)


@asynccontextmanager
async def opened(url, **options):
    chosen: dict[str, Any] = {"session_idle_s": IDLE_S, "options": ConnectionOptions(timeout_s=10.0)} | options
    store = RedisStore(url, **chosen)
    try:
        yield store
    finally:
        await store.close()


def a_commit(session_id, *events, expected=None, outcome=Outcome.OPEN, closed_by=None):
    record = a_record(
        version=next(_versions).to_bytes(8, "big"),
        events=len(events),
        last_seen_ms=2,
        last_event_ms=3,
        outcome=outcome,
        outcome_ms=4 if closed_by else 0,
    )
    probabilities = [0.25] * len(events)
    return Commit(session_id, expected, record, events, probabilities, "ab" * 8, closed_by)


def client_of(server):
    # Replies depend on how a client was made, which its types do not say.
    client: Any = redis.Redis.from_url(server.url)
    return client


def end(client, *session_ids):
    """Let the idle time of sessions pass: their records are gone, and they were seen that long ago."""
    for session_id in session_ids:
        client.delete(record_key(session_id))
        client.zincrby(seen_key(shard_of(session_id)), -(IDLE_S * 1000 + 1), session_id)


def told(client):
    """Every session that the streams of outcomes tell of."""
    sessions = []
    for key in client.scan_iter(match="*:outcomes"):
        sessions += [json.loads(fields[b"session"]) for _, fields in client.xrange(key)]
    return sessions


class Replica:
    """A closer and what it has taken on."""

    def __init__(self, store):
        self.metrics = Metrics()
        self.log = io.StringIO()
        self.taken = []
        logger = build_logger(log_level="info", stream=self.log)
        self.sweeper = SessionSweeper(
            store.outcomes, every_s=0.25, on_closed=self.on_closed, metrics=self.metrics, logger=logger
        )

    async def on_closed(self, sessions):
        self.taken += sessions

    async def work(self, client):
        """Do all that there is to do, as if whoever looked after the shards before had been gone for long."""
        for key in client.scan_iter(match="*:closer"):
            client.delete(key)
        while await self.sweeper.run_once():
            pass

    def counted(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"willbuy_{name}_total", labels)


async def test_a_session_that_idled_out_is_told_of_with_what_it_was_answered(redis_server):
    async with opened(redis_server.url) as store:
        event = Event("view_item", 7, "SKU", "shoes", 1.5, 2.0, {"device": "mobile", "visits": 3.0})
        await store.commit([a_commit("a", Event("page_view", 5), event), a_commit("on", Event("page_view", 5))])
        with client_of(redis_server) as client:
            end(client, "a")
            replica = Replica(store)
            await replica.work(client)
            (session,) = told(client)
            assert client.exists(history_key("a")) == 0
            assert client.zscore(seen_key(shard_of("a")), "a") is None
        assert session["events"] == [
            {"event_name": "page_view", "timestamp_ms": 5, "probability": 0.25, "model": "ab" * 8},
            {
                "event_name": "view_item",
                "timestamp_ms": 7,
                "item_id": "SKU",
                "item_category": "shoes",
                "price": 1.5,
                "quantity": 2.0,
                "properties": {"device": "mobile", "visits": 3.0},
                "probability": 0.25,
            },
        ]
        facts = {key: session[key] for key in ("format", "session_id", "outcome", "closed_by", "outcome_ms")}
        assert facts == {"format": 1, "session_id": "a", "outcome": "none", "closed_by": "idle", "outcome_ms": None}
        assert session["closed_ms"] - session["last_seen_ms"] > IDLE_S * 1000
        assert [one.session_id for one in replica.taken] == ["a"]
        assert replica.counted("outcomes", outcome="none", closed_by="idle") == 1
        # And the other one lives
        assert (await store.load(["a", "on"]))[1] is not None


async def test_a_purchase_is_told_of_at_once_and_once(redis_server):
    async with opened(redis_server.url) as store:
        first = a_commit("a", Event("page_view", 5))
        bought = a_commit(
            "a", Event("view_item", 6), expected=first.record.version, outcome=Outcome.PURCHASE, closed_by="event"
        )
        after = a_commit("a", expected=bought.record.version, outcome=Outcome.PURCHASE)
        # When the commit that closes is sent twice, something comes after it, and the session idles out
        for commit in (first, bought, bought, after):
            assert await store.commit([commit]) == [True]
        with client_of(redis_server) as client:
            await Replica(store).work(client)
            end(client, "a")
            client.delete(history_key("a"))
            replica = Replica(store)
            await replica.work(client)
            (session,) = told(client)
            assert client.zscore(seen_key(shard_of("a")), "a") is None
        assert (session["outcome"], session["closed_by"], session["outcome_ms"]) == ("purchase", "event", 4)
        assert [event["timestamp_ms"] for event in session["events"]] == [5, 6]
        assert replica.taken == []
        assert replica.counted("outcomes_lost") == 0


async def test_a_purchase_that_the_shop_reported_by_a_call_is_a_purchase(redis_server):
    async with opened(redis_server.url) as store:
        first = a_commit("a", Event("page_view", 5))
        reported = a_commit("a", expected=first.record.version, outcome=Outcome.PURCHASE, closed_by="api")
        assert [await store.commit([commit]) for commit in (first, reported)] == [[True], [True]]
        replica = Replica(store)
        with client_of(redis_server) as client:
            await replica.work(client)
            (session,) = told(client)
        assert (session["outcome"], session["closed_by"]) == ("purchase", "api")
        assert [session.bought for session in replica.taken] == [True]


@pytest.mark.parametrize(("most", "a_shard"), [(0, 0), (1, 1), (256, 1), (257, 2)])
def test_a_limit_over_all_shards_leaves_no_shard_without(most, a_shard):
    assert OutcomeLimits(most=most).most_a_shard == a_shard


@pytest.mark.parametrize(("replicas", "confirms"), [(0, False), (1, True), (2, True)])
async def test_one_replica_that_must_confirm_is_enough_to_write_again(replicas, confirms):
    async with opened("redis://127.0.0.1:1/0", wait_replicas=replicas) as store:
        assert store.confirms_by_writing is confirms


async def test_an_event_after_the_idle_time_starts_anew_and_the_old_session_is_told_of(redis_server):
    async with opened(redis_server.url) as store:
        await store.commit([a_commit("a", Event("page_view", 5))])
        with client_of(redis_server) as client:
            end(client, "a")
            assert await store.load(["a"]) == [None]
            anew = a_commit("a", Event("search", 9))
            assert await store.commit([anew]) == [True]
            record, history = await store.load_session("a")
            assert (record.version, history) == (anew.record.version, [Event("search", 9)])
            # When the closer comes after that, it leaves the new one alone
            await Replica(store).work(client)
            (session,) = told(client)
        assert [event["event_name"] for event in session["events"]] == ["page_view"]
        assert await store.load(["a"]) == [anew.record]


async def test_many_closers_and_events_at_once_tell_of_every_session_once(redis_server):
    """Sessions end all the time while events come in, some for ids whose session has just ended."""
    async with opened(redis_server.url, session_idle_s=1) as store:
        model, metrics = FakeModel(), Metrics()
        logger = build_logger(log_level="error", stream=io.StringIO())
        scorer = Scorer(
            store,
            model,
            metrics=metrics,
            logger=logger,
            max_session_events=100,
            max_session_bytes=2**20,
            dedupe_window=8,
            commit_attempts=64,
        )
        replicas = [Replica(store) for _ in range(3)]
        folded: dict[str, list[int]] = {}

        async def post(session_id, name):
            number = next(_codes)
            event = Event(name, number, item_id=str(number))
            (score,) = await scorer.score([QueuedEvent(session_id, event, number, True, number)])
            assert isinstance(score, Score), score
            if score.answer.folded:
                folded.setdefault(session_id, []).append(number)

        async def shoppers(number):
            for step in range(8):
                name = "purchase" if (number + step) % 5 == 4 else "page_view"
                # A pause after which some sessions have ended and others have not
                await asyncio.sleep(1.0 if step % 4 == 3 else 0.0)
                await post(f"s{(number + step % 2) % 6}", name)

        for replica in replicas:
            replica.sweeper.start()
        await asyncio.gather(*(shoppers(number) for number in range(6)))
        with client_of(redis_server) as client:
            # Until what began last has ended too
            deadline = time.monotonic() + 30
            while any(client.zcard(key) for key in client.scan_iter(match="*:seen")) or any(
                client.xlen(key) for key in client.scan_iter(match="*:closed")
            ):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            sessions = told(client)
        for replica in replicas:
            await replica.sweeper.close()
        # Then every folded event is told of exactly once
        found = sorted(event["timestamp_ms"] for session in sessions for event in session["events"])
        assert found == sorted(number for numbers in folded.values() for number in numbers)
        # And every session too, by the replica that took it on
        taken = [one.entry + one.session_id for replica in replicas for one in replica.taken]
        assert len(taken) == len(set(taken)) == len(sessions)
        assert sum(session["outcome"] == "purchase" for session in sessions) == metrics.registry.get_sample_value(
            "willbuy_purchases_total"
        )
        assert all(replica.counted("closer_failures") == 0 for replica in replicas)


async def test_one_replica_looks_after_a_shard_until_it_is_gone(redis_server):
    async with opened(redis_server.url) as store:
        await store.commit([a_commit("a", Event("page_view", 5))])
        with client_of(redis_server) as client:
            end(client, "a")
            shard = shard_of("a")
            assert set(await store.outcomes.due("first", lease_s=60)) == {shard}
            assert 0 < client.pttl(closer_key(shard)) <= 60_000
            assert await store.outcomes.due("second", lease_s=60) == {}
            assert set(await store.outcomes.due("first", lease_s=0.001)) == {shard}
            # The first one does not come again, and its time is over
            deadline = time.monotonic() + 30
            while not (found := await store.outcomes.due("second", lease_s=60)):
                assert time.monotonic() < deadline
        assert found[shard].idle == ["a"]


async def test_sessions_that_nobody_closed_in_time_are_counted(redis_server):
    async with opened(redis_server.url) as store:
        await store.commit([a_commit("lost", Event("page_view", 5)), a_commit("kept", Event("page_view", 5))])
        with client_of(redis_server) as client:
            end(client, "lost", "kept")
            client.delete(history_key("lost"))
            replica = Replica(store)
            await replica.work(client)
            assert [session["session_id"] for session in told(client)] == ["kept"]
        assert replica.counted("outcomes_lost") == 1
        assert "outcomes_lost" in replica.log.getvalue()


async def test_a_session_that_was_erased_is_not_told_of(redis_server):
    async with opened(redis_server.url) as store:
        commits = [a_commit(name, Event("page_view", 5)) for name in ("told", "closed", "ended", "other")]
        await store.commit(commits)
        with client_of(redis_server) as client:
            # Given one that was told of, one that was only closed, and one that has only ended
            end(client, "told", "other")
            await Replica(store).work(client)
            end(client, "closed")
            await store.outcomes.close_idle({shard_of("closed"): ["closed"]})
            end(client, "ended")
            for name in ("told", "closed", "ended"):
                await store.delete(name)
            await Replica(store).work(client)
            assert [session["session_id"] for session in told(client)] == ["other"]
            assert all(client.xlen(closed_key(shard_of(name))) == 0 for name in ("told", "closed", "ended"))


async def test_what_cannot_be_read_is_taken_away_and_counted(redis_server):
    async with opened(redis_server.url) as store:
        await store.commit([a_commit("bad", Event("page_view", 5)), a_commit("good", Event("page_view", 5))])
        with client_of(redis_server) as client:
            client.rpush(history_key("bad"), b"\xc1")
            end(client, "bad", "good")
            replica = Replica(store)
            await replica.work(client)
            assert [session["session_id"] for session in told(client)] == ["good"]
            assert client.xlen(closed_key(shard_of("bad"))) == 0
        assert replica.counted("outcomes_lost") == 1


async def test_only_so_many_are_kept(redis_server):
    # Given room for 256 sessions, which is one a shard, about
    async with opened(redis_server.url, outcomes=OutcomeLimits(most=256)) as store:
        shard = shard_of("0")
        ids = [str(number) for number in range(160_000) if shard_of(str(number)) == shard][:400]
        await store.commit([a_commit(session_id, Event("page_view", 5)) for session_id in ids])
        with client_of(redis_server) as client:
            end(client, *ids)
            replica = Replica(store)
            await replica.work(client)
            # Redis trims whole nodes of a stream, of a hundred entries each
            assert 1 <= client.xlen(outcomes_key(shard)) <= 201
        assert len(replica.taken) == 400


async def test_none_are_kept_where_nobody_collects(redis_server):
    async with opened(redis_server.url, outcomes=OutcomeLimits(most=0)) as store:
        await store.commit([a_commit("a", Event("page_view", 5))])
        with client_of(redis_server) as client:
            end(client, "a")
            replica = Replica(store)
            await replica.work(client)
            assert told(client) == []
        assert len(replica.taken) == 1


async def test_counts_are_added_once_for_a_token(redis_server):
    async with opened(redis_server.url) as store:
        key = ("ab" * 8, 7)
        for _ in range(2):
            await store.outcomes.count("one", {key: Counts({"s": 2}, {"0:1": 5})}, lifetime_s=60)
        await store.outcomes.count("two", {key: Counts({"s": 1, "b": 1}), ("all", 7): Counts({"s": 3})}, lifetime_s=60)
        await store.outcomes.count("three", {}, lifetime_s=60)
        assert await store.outcomes.counts([key, ("all", 7), ("all", 8)]) == [
            Counts({"s": 3, "b": 1}, {"0:1": 5}),
            Counts({"s": 3}),
            Counts(),
        ]


async def test_on_a_cluster_every_node_closes_its_own(tmp_path):
    binary = find_binary("valkey-8.1")
    if binary is None:
        raise missing("valkey-8.1")
    cluster = RedisCluster(binary, tmp_path)
    try:
        cluster.start()
        async with opened(cluster.url) as store:
            ids = [str(number) for number in range(60)]
            await store.commit([a_commit(session_id, Event("page_view", 5)) for session_id in ids])
            for session_id in ids:
                with client_of(cluster.owner_of(session_id)) as client:
                    end(client, session_id)
            replica = Replica(store)
            while await replica.sweeper.run_once():
                pass
            await store.outcomes.count("one", {("all", 1): Counts({"s": 1})}, lifetime_s=60)
            assert await store.outcomes.counts([("all", 1)]) == [Counts({"s": 1})]
            sessions = []
            for node in cluster.primaries:
                with client_of(node) as client:
                    sessions += told(client)
        assert sorted(session["session_id"] for session in sessions) == sorted(ids)
    finally:
        cluster.stop()


async def test_without_a_server_nothing_is_done_and_nothing_lost(start_redis):
    server = start_redis("valkey-8.1")
    async with opened(server.url, options=ConnectionOptions(timeout_s=0.5)) as store:
        server.kill()
        replica = Replica(store)
        with pytest.raises(StoreUnavailableError):
            await replica.sweeper.run_once()
        with pytest.raises(StoreUnavailableError):
            await store.outcomes.counts([("all", 1)])
