"""Counts of rules' groups and the switches of rules, in real servers."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from app.store.experiments import DAY_MS, RedisExperiments, Revenue, Totals
from app.store.keys import Keys, shard_of
from app.store.outcomes import OutcomeLimits, RedisOutcomes, Written
from app.store.redis.connection import Command, ConnectionOptions, open_client
from app.store.redis.scripts import ScriptRunner

pytestmark = pytest.mark.anyio

KEYS = Keys()
DECIDED_MS = 20_000 * DAY_MS
LATER_MS = DECIDED_MS + DAY_MS


@asynccontextmanager
async def opened(server):
    client = open_client(server.url, ConnectionOptions(timeout_s=10))
    try:
        yield client
    finally:
        await client.close()


def replica(client) -> RedisOutcomes:
    return RedisOutcomes(ScriptRunner(client), keys=KEYS, session_idle_s=60, limits=OutcomeLimits())


def experiments(client) -> RedisExperiments:
    return RedisExperiments(client, ScriptRunner(client), keys=KEYS, session_idle_s=60)


async def closed(client, session_id: str) -> str:
    """Append a closed session as a commit does, and return its entry."""
    words = ("id", session_id, "facts", '{"outcome":"none","closed_by":"idle"}', "seen", 1, "events", b"")
    (entry,) = await client.execute(
        [Command(shard_of(session_id), ("XADD", KEYS.closed(shard_of(session_id)), "*", *words))]
    )
    return entry.decode()


async def publish(outcomes, *sessions: tuple[str, Written]) -> None:
    by_shard: dict[int, list[Written]] = {}
    for session_id, written in sessions:
        by_shard.setdefault(shard_of(session_id), []).append(written)
    await outcomes.publish(by_shard)


async def test_a_session_counts_once_in_each_of_its_rules_however_many_replicas_publish_it(redis_server) -> None:
    async with opened(redis_server) as client:
        sessions = []
        for number in range(40):
            group = "control" if number % 4 == 0 else "treatment"
            groups = {"voucher": group} | ({"chat": "treatment"} if number < 3 else {})
            value = None if number % 2 else 10.5 + number
            currency = "JPY" if number == 38 else "EUR"
            entry = await closed(client, f"s-{number}")
            sessions.append((f"s-{number}", Written(entry, f"s-{number}", b"{}", groups, value, DECIDED_MS, currency)))
        # When three replicas publish all of them at once, and one of them again
        await asyncio.gather(*(publish(replica(client), *sessions) for _ in range(3)))
        await publish(replica(client), *sessions)
        # Then
        found = await experiments(client).totals(LATER_MS)
        control = [10.5 + number for number in range(0, 40, 4)]
        treated = [10.5 + number for number in range(2, 38, 4)]
        euros = Revenue(10, sum(control), sum(value**2 for value in control))
        assert found["voucher", "control"] == Totals(10, 10, {"EUR": euros})
        euros = Revenue(9, sum(treated), sum(value**2 for value in treated))
        assert found["voucher", "treatment"] == Totals(30, 10, {"EUR": euros, "JPY": Revenue(1, 48.5, 48.5**2)})
        assert found["chat", "treatment"].sessions == 3
        assert found["chat", "treatment"].buyers == 2
        assert len(found) == 3


async def test_an_erased_or_undecided_session_counts_nowhere(redis_server) -> None:
    async with opened(redis_server) as client:
        entry = await closed(client, "s-1")
        await publish(
            replica(client),
            ("s-1", Written(entry, "s-1", b"{}")),
            ("s-2", Written("1-1", "s-2", b"{}", {"a": "control"}, 1.0)),
        )
        assert await experiments(client).totals(LATER_MS) == {}


async def test_decisions_are_those_of_today_and_of_yesterday_over_all_shards(redis_server) -> None:
    async with opened(redis_server) as client:
        today = LATER_MS // DAY_MS
        for shard in (0, 1, 128, 255):
            for day, number in ((today - 2, 9), (today - 1, 2), (today, 3)):
                await client.execute(
                    [Command(shard, ("HINCRBY", KEYS.fired(shard, day), "voucher:control", number + shard))]
                )
        found = (await experiments(client).totals(LATER_MS))["voucher", "control"]
        assert found.fired == {today - 1: 4 * 2 + 384, today: 4 * 3 + 384}


@pytest.mark.parametrize("shard", [0, 1, 128, 254, 255])
async def test_a_session_of_any_shard_counts(redis_server, shard) -> None:
    session_id = next(name for name in map(str, range(60_000)) if shard_of(name) == shard)
    async with opened(redis_server) as client:
        entry = await closed(client, session_id)
        written = Written(entry, session_id, b"{}", {"a": "control"}, 4.0, DECIDED_MS)
        await publish(replica(client), (session_id, written))
        assert (await experiments(client).totals(LATER_MS))["a", "control"].buyers == 1


async def test_a_rule_is_switched_off_and_on(redis_server) -> None:
    async with opened(redis_server) as client:
        store = experiments(client)
        assert await store.switched_off() == {}
        await store.switch("voucher", on=False)
        (when,) = (await store.switched_off()).values()
        await store.switch("voucher", on=False)
        assert await store.switched_off() == {"voucher": when}
        await store.switch("chat", on=True)
        await store.switch("voucher", on=True)
        assert await store.switched_off() == {}


async def test_results_are_kept_for_a_year_and_their_parts_for_hours(redis_server) -> None:
    async with opened(redis_server) as client:
        entry = await closed(client, "s")
        await publish(replica(client), ("s", Written(entry, "s", b"{}", {"a": "control"}, 4.0, DECIDED_MS)))
        shard = shard_of("s")
        (keys,) = await client.execute([Command(shard, ("KEYS", f"{KEYS.experiments(shard)}*"))])
        assert len(keys) == 2
        left = [(await client.execute([Command(shard, ("PTTL", key))]))[0] for key in sorted(keys, key=len)]
        assert 364 * DAY_MS < left[0] <= 365 * DAY_MS
        assert 0 < left[1] < DAY_MS


@pytest.mark.parametrize(("most", "written"), [(0, 0), (50_000, 1)])
async def test_a_session_counts_where_no_outcomes_are_wanted(redis_server, most, written) -> None:
    async with opened(redis_server) as client:
        limits = OutcomeLimits(most=most)
        outcomes = RedisOutcomes(ScriptRunner(client), keys=KEYS, session_idle_s=60, limits=limits)
        entry = await closed(client, "s")
        await publish(outcomes, ("s", Written(entry, "s", b"{}", {"a": "control"}, 4.0, DECIDED_MS)))
        shard = shard_of("s")
        # Nor is there a stream without entries
        assert await client.execute([Command(shard, ("EXISTS", KEYS.outcomes(shard)))]) == [written]
        assert (await experiments(client).totals(LATER_MS))["a", "control"].buyers == 1


async def test_a_session_counts_when_it_has_had_time_to_end_with_either_outcome(redis_server) -> None:
    async with opened(redis_server) as client:
        # Given a buyer of now, and one of long ago
        for number, decided_ms in enumerate((DECIDED_MS, DECIDED_MS - DAY_MS)):
            session_id = f"s-{number}"
            entry = await closed(client, session_id)
            written = Written(entry, session_id, b"{}", {"a": "control"}, 4.0, decided_ms)
            await publish(replica(client), (session_id, written))
        store = experiments(client)
        # Then the one of now counts after one and a half idle times, and a bucket at most
        for wait_ms, sessions in ((0, 1), (89_000, 1), (121_000, 2)):
            found = (await store.totals(DECIDED_MS + wait_ms))["a", "control"]
            assert (found.sessions, found.buyers, found.pending) == (sessions, sessions, 2 - sessions)
            assert found.revenue == {"": Revenue(sessions, 4.0 * sessions, 16.0 * sessions)}
