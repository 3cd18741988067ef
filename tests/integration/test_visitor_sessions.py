"""Sessions of visitors in Redis: each event is in the session that is nearest in time, and stays there."""

from itertools import permutations

import pytest

from app.store.ingest import RedisIngest
from app.store.keys import Keys, shard_of
from app.store.redis.connection import Command, ConnectionOptions, open_client
from app.store.redis.scripts import ScriptRunner

pytestmark = pytest.mark.anyio

KEYS = Keys()
IDLE_MS = 100
KEPT_MS = 60_000
# Of today, as text that Lua must not round.
NOW_MS = 1_795_342_600_123


@pytest.fixture
async def client(redis_server):
    opened = open_client(redis_server.url, ConnectionOptions(timeout_s=10))
    yield opened
    await opened.close()


@pytest.fixture
def starts(client):
    """Returns which session each event of a visitor is in, by the time that its id has."""
    store = RedisIngest(client, ScriptRunner(client), keys=KEYS, idle_ms=IDLE_MS, kept_ms=KEPT_MS)

    async def assigned(*times, visitor="v"):
        found = await store.assign({visitor: [NOW_MS + time for time in times]})
        return [int(session.removeprefix(f"{visitor}-")) - NOW_MS for session in found[visitor]]

    return assigned


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0, 100], [0, 0]),
        ([0, 101], [0, 101]),
        ([0, -100], [0, 0]),
        ([0, -101], [0, -101]),
        # A session grows at both ends, and keeps its name.
        ([0, -90, -180, 90, 180, 270], [0, 0, 0, 0, 0, 0]),
        # The nearest of two, whichever came first.
        ([0, 150, 90], [0, 150, 150]),
        ([0, 150, 60], [0, 150, 0]),
        ([150, 0, 90], [150, 0, 150]),
        ([150, 0, 60], [150, 0, 0]),
        # Of two equally near, the one that was begun last.
        ([0, 200, 100], [0, 200, 200]),
        ([200, 0, 100], [200, 0, 0]),
    ],
)
async def test_an_event_is_in_the_nearest_session_within_the_idle_time(starts, times, expected):
    assert await starts(*times) == expected
    # Each of them again, in another order and one by one
    for time, start in reversed([*zip(times, expected, strict=True)]):
        assert await starts(time) == [start]
    # And another visitor has sessions of its own
    assert await starts(times[-1], visitor="w") == [times[-1]]


async def test_the_order_in_which_events_of_one_visit_come_changes_only_its_name(starts):
    for number, order in enumerate(permutations([0, 80, 160, 240])):
        apart = [*order, 2_000]
        found = await starts(*apart, visitor=f"v{number}")
        # Two that are far from each other may have begun a session each, which never become one
        sessions = dict(zip(apart, found, strict=True))
        assert sessions[2_000] == 2_000
        assert all(abs(time - start) <= 240 for time, start in sessions.items() if time < 2_000)
        assert await starts(*apart, visitor=f"v{number}") == found


async def test_a_visitors_last_eight_sessions_are_known(starts):
    begun = [1_000 * number for number in range(9)]
    assert await starts(*begun[:8]) == begun[:8]
    assert await starts(50) == [0]
    # The ninth takes the place of the oldest
    assert await starts(begun[8]) == [begun[8]]
    assert await starts(1_050, 8_050) == [1_000, 8_000]
    assert await starts(60) == [60]


async def test_a_visitor_is_remembered_longer_than_a_session(starts, client):
    await starts(0)
    (left_ms,) = await client.execute([Command(shard_of("v"), ("PTTL", KEYS.visitor("v")))])
    assert KEPT_MS / 2 < left_ms <= KEPT_MS
