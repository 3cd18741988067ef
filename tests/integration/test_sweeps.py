"""Sweeps of large sessions, failures of the sweeper's store, and sessions of which Redis has evicted keys."""

import io
import json

import pytest
import redis
from support.records import a_record
from support.redis_keys import history_key, record_key, seen_key
from support.redis_servers import RedisServer

from app.errors import StoreUnavailableError
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.outcomes.sweeper import SessionSweeper
from app.store.interface import Commit
from app.store.keys import shard_of
from app.store.outcomes import ClosedSession
from app.store.record_codec import Outcome
from app.store.redis.connection import ConnectionOptions
from app.store.sessions import RedisStore
from model.events import Event

pytestmark = pytest.mark.anyio

IDLE_S = 60
LARGE = Event("view_item", 5, properties={f"p{number}": "x" * 250 for number in range(160)})
OF_ONE_SHARD = [name for name in map(str, range(5000)) if shard_of(name) == 7][:10]


def a_commit(session_id, *events, before=None, outcome=Outcome.OPEN):
    record = a_record(
        version=f"{session_id:>7}{len(events)}".encode()[-8:] if before is None else b"after---",
        events=len(events) + (0 if before is None else before.events),
        last_seen_ms=2,
        last_event_ms=5,
        outcome=outcome,
        outcome_ms=9 if outcome else 0,
    )
    return Commit(
        session_id,
        before and before.version,
        record,
        events,
        [0.25] * len(events),
        "ab" * 8,
        "event" if outcome else None,
        previous=before,
    )


@pytest.fixture
async def store(redis_server):
    opened = RedisStore(redis_server.url, session_idle_s=IDLE_S, options=ConnectionOptions(timeout_s=10.0))
    yield opened
    await opened.close()


@pytest.fixture
def client(redis_server: RedisServer):
    with redis.Redis.from_url(redis_server.url) as opened:
        yield opened


class Sweeps:
    """A sweeper and what it has counted and said."""

    def __init__(self, outcomes):
        self.metrics, self.log = Metrics(), io.StringIO()
        self.taken: list[ClosedSession] = []
        logger = build_logger(log_level="info", stream=self.log)

        async def take(sessions):
            self.taken += sessions

        self.sweeper = SessionSweeper(outcomes, every_s=0.1, on_closed=take, metrics=self.metrics, logger=logger)

    def counted(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"willbuy_{name}_total", labels) or 0

    async def all(self):
        while await self.sweeper.run_once():
            pass


def published(client):
    found = []
    for key in client.scan_iter(match="*:outcomes"):
        found += [json.loads(fields[b"session"]) for _, fields in client.xrange(key)]
    return found


def end(client, *session_ids):
    """Let the sessions' idle time pass: their records are gone, and they were seen that long ago."""
    for session_id in session_ids:
        client.delete(record_key(session_id))
        client.zincrby(seen_key(shard_of(session_id)), -(IDLE_S * 1000 + 1), session_id)


async def test_a_call_takes_large_closed_sessions_in_small_numbers(store):
    commits = [a_commit(name, LARGE, outcome=Outcome.PURCHASE) for name in OF_ONE_SHARD]
    assert await store.commit(commits) == [True] * len(commits)
    (due,) = (await store.outcomes.due("me", lease_s=60)).values()
    assert 1 <= len(due.closed) < 4
    assert due.is_more
    (due,) = (await store.outcomes.due("me", lease_s=60, shards=[7], one=True)).values()
    assert len(due.closed) == 1


async def test_a_call_closes_large_idle_sessions_in_small_numbers(store, client):
    assert all(await store.commit([a_commit(name, LARGE) for name in OF_ONE_SHARD]))
    end(client, *OF_ONE_SHARD)
    count = await store.outcomes.close_idle({7: OF_ONE_SHARD})
    assert 1 <= count.closed < 4
    assert count.closed + count.left == len(OF_ONE_SHARD)


async def test_a_backlog_of_large_sessions_is_swept_to_its_end(store, client):
    assert all(await store.commit([a_commit(name, LARGE) for name in OF_ONE_SHARD]))
    end(client, *OF_ONE_SHARD)
    sweeps = Sweeps(store.outcomes)
    await sweeps.all()
    assert {session["session_id"] for session in published(client)} == {*OF_ONE_SHARD}
    assert sweeps.counted("outcomes", outcome="none", closed_by="idle") == len(OF_ONE_SHARD)


class Slow:
    """An outcome store whose calls for several sessions fail, and for the broken shards all calls."""

    def __init__(self, outcomes, broken=()):
        self._outcomes, self._broken = outcomes, broken

    def __getattr__(self, name):
        return getattr(self._outcomes, name)

    async def due(self, replica, *, lease_s, shards, one=False):
        if not one or set(shards) & set(self._broken):
            raise StoreUnavailableError("took too long") from TimeoutError("injected")
        return await self._outcomes.due(replica, lease_s=lease_s, shards=shards, one=one)


async def test_after_a_time_out_sessions_are_swept_one_at_a_time_and_the_failure_counts(store, client):
    names = ["a", "b", "c", *OF_ONE_SHARD[:3]]
    assert all(await store.commit([a_commit(name, Event("page_view", 5)) for name in names]))
    end(client, *names)
    sweeps = Sweeps(Slow(store.outcomes))
    while len(published(client)) < len(names):
        await sweeps.sweeper.run_once()
    assert sweeps.counted("closer_failures") > 0
    # Once a minute, not once a failure
    assert sweeps.log.getvalue().count("closer_failed") == 1
    assert "TimeoutError: injected" in sweeps.log.getvalue()
    assert '"level": "warning"' in sweeps.log.getvalue()


async def test_a_shard_that_fails_alone_stops_no_other(store, client):
    names = ["a", "b", "c", *OF_ONE_SHARD[:3]]
    assert 7 not in {shard_of(name) for name in "abc"}
    assert all(await store.commit([a_commit(name, Event("page_view", 5)) for name in names]))
    end(client, *names)
    sweeps = Sweeps(Slow(store.outcomes, broken=[7]))
    while len(published(client)) < 3:
        await sweeps.sweeper.run_once()
    assert {session["session_id"] for session in published(client)} == {"a", "b", "c"}


async def test_a_node_that_cannot_be_asked_is_counted_while_the_others_are_swept(store, client):
    """As on a cluster, whose nodes answer for themselves: the calls for one shard fail, those beside it do not."""
    names = ["a", *OF_ONE_SHARD[:1]]
    assert all(await store.commit([a_commit(name, Event("page_view", 5)) for name in names]))
    end(client, *names)
    scripts, broken = store.outcomes._scripts, True  # noqa: SLF001 - no public part fails for one shard
    run = scripts.run

    async def run_partly(operation, script, calls, **options):
        replies = await run(operation, script, calls, **options)
        return [
            TimeoutError("injected") if broken and operation == "due" and shard == 7 else reply
            for (shard, _), reply in zip(calls, replies, strict=True)
        ]

    scripts.run = run_partly
    sweeps = Sweeps(store.outcomes)
    for _ in range(3):
        await sweeps.sweeper.run_once()
    assert [session["session_id"] for session in published(client)] == ["a"]
    assert sweeps.counted("closer_failures") >= 1
    assert sweeps.log.getvalue().count("closer_failed") == 1
    assert '"shards": [7]' in sweeps.log.getvalue()
    broken = False
    await sweeps.all()
    assert {session["session_id"] for session in published(client)} == {*names}


async def test_a_redis_that_is_away_is_counted_and_said_once(store):
    class Away(Slow):
        async def due(self, replica, *, lease_s, shards, one=False):
            raise StoreUnavailableError("away")

    sweeps = Sweeps(Away(store.outcomes))
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            await sweeps.sweeper.run_once()
    assert sweeps.counted("closer_failures") > 0
    assert sweeps.log.getvalue().count("closer_failed") == 1


async def test_a_session_whose_record_was_evicted_is_closed_as_unknown_and_is_no_label(store, client):
    view = Event("page_view", 5)
    assert await store.commit([a_commit("s", view)]) == [True]
    # Delete the record, as `allkeys-lru` does; then the visitor sends more events and buys
    client.delete(record_key("s"))
    assert await store.commit([a_commit("s", outcome=Outcome.PURCHASE)]) == [True]
    sweeps = Sweeps(store.outcomes)
    await sweeps.all()
    first, second = sorted(published(client), key=lambda session: -len(session["events"]))
    assert (first["outcome"], first["closed_by"], len(first["events"])) == ("unknown", "eviction", 1)
    # What the visitor did after the eviction is no example either: its beginning is not known
    assert (second["outcome"], second["closed_by"], second["events"]) == ("unknown", "eviction", [])
    assert sweeps.taken == []
    assert sweeps.counted("outcomes", outcome="unknown", closed_by="eviction") == 2
    assert "outcomes_unknown" in sweeps.log.getvalue()


@pytest.mark.parametrize("is_history_evicted", [False, True])
async def test_the_rest_of_a_visit_after_an_eviction_is_read_and_closed_as_unknown(store, client, is_history_evicted):
    assert await store.commit([a_commit("s", Event("page_view", 5))]) == [True]
    client.delete(record_key("s"), *([history_key("s")] if is_history_evicted else []))
    rest = a_commit("s", Event("view_item", 6), Event("view_cart", 7))
    assert await store.commit([rest]) == [True]
    # It is a session like any other while it lasts
    found = await store.load_session("s")
    assert [event.event_name for event in found[1]] == ["view_item", "view_cart"]
    (events,) = await store.load_histories(["s"])
    assert [event.timestamp_ms for event in events] == [6, 7]
    (row,) = await store.board.rows(["s"], recent=30)
    assert row.last_event == "view_cart"
    # The next visit under the id is complete again
    end(client, "s")
    assert await store.commit([a_commit("s", Event("page_view", 8))]) == [True]
    end(client, "s")
    sweeps = Sweeps(store.outcomes)
    await sweeps.all()
    of_events = {tuple(event["timestamp_ms"] for event in one["events"]): one for one in published(client)}
    outcomes = {times: (one["outcome"], one["closed_by"]) for times, one in of_events.items()}
    unknown = ("unknown", "eviction")
    assert outcomes == {(6, 7): unknown, (8,): ("none", "idle")} | ({} if is_history_evicted else {(5,): unknown})
    assert [session.outcome for session in sweeps.taken] == ["none"]


async def test_a_session_after_an_erasure_is_a_whole_one(store, client):
    assert await store.commit([a_commit("s", Event("page_view", 5))]) == [True]
    await store.delete("s")
    assert await store.commit([a_commit("s", Event("page_view", 6))]) == [True]
    end(client, "s")
    await Sweeps(store.outcomes).all()
    (session,) = published(client)
    assert session["outcome"] == "none"


async def test_a_session_whose_place_in_the_sorted_set_was_evicted_is_closed_as_unknown(store, client):
    assert await store.commit([a_commit("s", Event("page_view", 5))]) == [True]
    client.delete(seen_key(shard_of("s")), record_key("s"))
    assert await store.commit([a_commit("s", Event("page_view", 6))]) == [True]
    await Sweeps(store.outcomes).all()
    (session,) = published(client)
    assert session["outcome"] == "unknown"


async def test_a_session_whose_history_was_evicted_has_no_known_outcome(store, client):
    first = a_commit("s", Event("page_view", 5))
    assert await store.commit([first]) == [True]
    client.delete(history_key("s"))
    assert await store.commit([a_commit("s", before=first.record, outcome=Outcome.PURCHASE)]) == [True]
    sweeps = Sweeps(store.outcomes)
    await sweeps.all()
    (session,) = published(client)
    assert (session["outcome"], session["closed_by"]) == ("unknown", "event")
    assert sweeps.taken == []


async def test_a_session_whose_idle_time_has_passed_is_no_evicted_one(store, client):
    assert await store.commit([a_commit("s", Event("page_view", 5))]) == [True]
    end(client, "s")
    assert await store.commit([a_commit("s", Event("page_view", 6))]) == [True]
    await Sweeps(store.outcomes).all()
    (session,) = published(client)
    assert (session["outcome"], session["closed_by"]) == ("none", "idle")


async def test_a_session_that_another_one_follows_under_its_id_was_seen_when_it_was(store, client):
    assert await store.commit([a_commit("s", Event("page_view", 5))]) == [True]
    end(client, "s")
    (ended_ms,) = client.zrange(seen_key(shard_of("s")), 0, -1, withscores=True)[0][1:]
    assert await store.commit([a_commit("s", Event("search", 6), Event("search", 7))]) == [True]
    sweeps = Sweeps(store.outcomes)
    await sweeps.all()
    (session,) = sweeps.taken
    assert (session.bought, session.closed_by, session.last_seen_ms) == (False, "idle", ended_ms)
    assert [entry.event.event_name for entry in session.entries] == ["page_view"]
