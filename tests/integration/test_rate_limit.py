"""How much a key may send, counted in real servers of each kind."""

import asyncio
import gzip
import json
from contextlib import asynccontextmanager

import httpx
import pytest
from conftest import missing
from support.fakes import FakeModel
from support.keys import make_key, write_keys
from support.memory_store import MemoryStore
from support.redis_servers import find_binary
from support.redis_topologies import RedisCluster, Sentinels

from app.auth.rate_limit import RateLimit
from app.errors import RateLimitedError
from app.main import create_app
from app.monitoring.metrics import Metrics
from app.settings import Settings
from app.wiring import open_rate_limit

pytestmark = pytest.mark.anyio

# So long that no test sees its end, however slow the machine.
WINDOW_S = 10_000


def limited_key(events, name="shop"):
    """A key that may send so many events in a window."""
    return make_key("events:write", events_per_s=events / WINDOW_S, name=name).entry


@asynccontextmanager
async def limits(url, **settings):
    """What counts at that Redis, and its metrics."""
    metrics = Metrics()
    limit = open_rate_limit(Settings(artifact="unused.pt", redis_url=url, **settings), metrics, window_s=WINDOW_S)
    yield limit, metrics
    await limit.close()


async def taken(limit: RateLimit, key, count=1) -> bool:
    try:
        await limit.take(key, count)
    except RateLimitedError:
        return False
    return True


def failures(metrics):
    return metrics.registry.get_sample_value("willbuy_rate_limit_failures_total")


async def test_all_replicas_together_let_in_as_many_as_the_limit_says(redis_server) -> None:
    key = limited_key(5)
    async with limits(redis_server.url) as (one, metrics), limits(redis_server.url) as (other, _):
        results = await asyncio.gather(*(taken(limit, key) for limit in (one, other) * 20))
        assert sum(results) == 5
        assert failures(metrics) == 0


@pytest.mark.parametrize(("own", "of_settings"), [(2, 5), (5, 2), (2, 0)])
async def test_a_keys_own_limit_goes_before_that_of_the_settings(valkey, own, of_settings) -> None:
    plain = make_key("events:write", name="plain").entry
    async with limits(valkey.url, key_events_per_s=of_settings / WINDOW_S) as (limit, _):
        assert [await taken(limit, limited_key(own)) for _ in range(own + 1)] == [True] * own + [False]
        assert limit.is_limited(plain) == (of_settings > 0)
        if of_settings:
            assert [await taken(limit, plain) for _ in range(of_settings + 1)] == [True] * of_settings + [False]


async def test_the_limit_belongs_to_the_name_so_that_a_new_key_is_no_fresh_start(valkey) -> None:
    old, new = limited_key(3), limited_key(3)
    other = limited_key(3, "other")
    async with limits(valkey.url) as (limit, _):
        assert [await taken(limit, old) for _ in range(3)] == [True] * 3
        assert not await taken(limit, new)
        assert await taken(limit, other)


async def test_what_is_refused_is_not_counted_and_a_large_batch_fits_an_empty_window(valkey) -> None:
    key = limited_key(10)
    async with limits(valkey.url) as (limit, _):
        assert await taken(limit, key, 4)
        assert not await taken(limit, key, 7)
        assert await taken(limit, key, 6)
        large = limited_key(10, "large")
        assert await taken(limit, large, 1000)
        assert not await taken(limit, large)


async def test_the_setting_is_the_limit_of_keys_without_their_own(valkey) -> None:
    async with limits(valkey.url, key_events_per_s=1 / WINDOW_S) as (limit, _):
        key = make_key("events:write").entry
        assert [await taken(limit, key) for _ in range(2)] == [True, False]
    async with limits(valkey.url) as (limit, _):
        assert not limit.is_limited(make_key("events:write").entry)


async def test_counts_expire_and_stand_below_the_services_prefix(valkey) -> None:
    from redis import Redis  # noqa: PLC0415 - next to its one use

    async with limits(valkey.url) as (limit, _):
        assert await taken(limit, limited_key(5))
    with Redis(port=valkey.port) as client:
        names = client.keys()
        assert names
        assert all(name.startswith(b"wb:rate") for name in names)
        # A window that is over still counts as the one before, for as long as a window lasts
        assert all(1.5 * WINDOW_S < client.ttl(name) <= 2 * WINDOW_S for name in names)


async def test_the_window_slides(redis_server) -> None:
    from redis import Redis  # noqa: PLC0415 - next to its one use

    key = limited_key(10)

    def let_pass(windows):
        (name,) = client.keys("wb:rate*")
        client.hincrby(name, "start_ms", -int(windows * WINDOW_S * 1000))

    with Redis(port=redis_server.port) as client:
        async with limits(redis_server.url) as (limit, _):
            assert await taken(limit, key, 10)
            # Within the window nothing is forgotten
            let_pass(0.5)
            assert not await taken(limit, key)
            # 55 % into the next one, 45 % of the one before still count: 4.5 of 10
            let_pass(1.05)
            assert not await taken(limit, key, 7)
            assert await taken(limit, key, 6)
            assert not await taken(limit, key)
            # One more, and it is those six that count
            let_pass(1)
            assert not await taken(limit, key, 9)
            assert await taken(limit, key, 8)
            # After two windows without a request there is nothing to count
            let_pass(3)
            assert await taken(limit, key, 10)
            assert not await taken(limit, key)


async def test_a_user_of_the_services_keys_alone_counts_over_a_unix_socket(start_redis, tmp_path_factory) -> None:
    # A socket's path has at most 108 characters
    socket_path = tmp_path_factory.mktemp("s") / "redis.sock"
    users = ("--user", "shop", "on", ">se:cr@et", "~wb:*", "&*", "+@all", "--user", "default", "off")
    start_redis(options=("--unixsocket", str(socket_path), *users))
    key = limited_key(1)
    async with limits(f"unix://shop:se%3Acr%40et@{socket_path}?db=1") as (limit, metrics):
        assert [await taken(limit, key) for _ in range(2)] == [True, False]
        assert failures(metrics) == 0


async def test_without_redis_everything_is_let_in_and_soon_without_a_wait(start_redis) -> None:
    server = start_redis()
    key = limited_key(1)
    async with limits(server.url) as (limit, metrics):
        server.kill()
        assert [await taken(limit, key) for _ in range(5)] == [True] * 5
        assert failures(metrics) == 5


async def test_a_redis_that_hangs_delays_by_its_time_out_and_no_longer(start_redis) -> None:
    server = start_redis()
    key = limited_key(1)
    async with limits(server.url, redis_timeout_s=0.2) as (limit, metrics):
        server.pause()
        # Without the bound, this would wait for as long as the server is paused.
        async with asyncio.timeout(30):
            assert [await taken(limit, key) for _ in range(50)] == [True] * 50
        assert failures(metrics) == 50
        server.resume()


@pytest.mark.parametrize("topology", [RedisCluster, Sentinels])
async def test_several_servers_count_as_one_does(tmp_path, topology) -> None:
    binary = find_binary("valkey-8.1")
    if binary is None:
        raise missing("valkey-8.1")
    servers = topology(binary, tmp_path)
    try:
        servers.start()
        async with limits(servers.url) as (limit, metrics):
            for name in ("one", "other", "third"):
                key = limited_key(2, name)
                assert [await taken(limit, key) for _ in range(3)] == [True, True, False]
            assert failures(metrics) == 0
    finally:
        servers.stop()


@pytest.mark.parametrize(
    ("headers", "body", "events"),
    [
        ({"content-type": "application/json"}, json.dumps([{"session_id": "]}", "properties": {"a": [1]}}] * 7), 7),
        ({"content-type": "application/x-ndjson"}, '{"a": 1}\n\n{"b": 2}\n{"c": 3}', 3),
        ({"content-type": "application/jsonl; charset=utf-8"}, "{}\n" * 4, 4),
        ({"content-type": "application/json", "content-encoding": "gzip"}, gzip.compress(b"[{},{},{},{}]", mtime=0), 4),
        ({"content-type": "application/json"}, r'[{"a":"\ud83d"},{},{}]', 3),
        ({"content-type": "application/json"}, "[1,", 1),
        ({"content-type": "application/json"}, "[" * 100_000, 1),
        ({"content-type": "application/json"}, "{}", 1),
        ({"content-type": "application/json"}, b"\xff", 1),
        ({"content-type": "application/json"}, "", 1),
    ],
)
async def test_a_batch_counts_its_events_however_its_body_is_written(valkey, tmp_path, headers, body, events) -> None:
    key = make_key("events:write", events_per_s=1)
    settings = Settings(
        artifact="unused.pt",
        redis_url=valkey.url,
        api_keys_file=write_keys(tmp_path / "keys.toml", key),
    )
    app = create_app(settings, model=FakeModel())
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://willbuy", headers=key.headers) as client,
    ):
        await client.post("/v1/events/batch", content=body, headers=headers)
        event = {"session_id": "s", "event_name": "page_view"}
        more = [(await client.post("/v1/events", json=event)).status_code for _ in range(11 - events)]
        assert more == [200] * (10 - events) + [429]


async def test_an_event_counts_as_one_and_a_batch_as_its_events(valkey, tmp_path) -> None:
    # Given a key that may send 50 in ten seconds
    key = make_key("events:write", "sessions:read", events_per_s=5)
    settings = Settings(
        artifact="unused.pt",
        redis_url=valkey.url,
        api_keys_file=write_keys(tmp_path / "keys.toml", key),
    )
    store = MemoryStore(session_idle_s=1800, now_ms=lambda: 1_795_342_600_000)
    app = create_app(settings, model=FakeModel(), store=store)
    events = [{"session_id": f"s-{at}", "event_name": "page_view"} for at in range(40)]
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://willbuy", headers=key.headers) as client,
    ):
        # When it sends many times as much, as one event, as batches of both kinds, and by reading
        refused = []
        for _ in range(20):
            lines = "\n".join(map(json.dumps, events))
            ndjson = {"content-type": "application/x-ndjson"}
            answers = [
                await client.post("/v1/events", json=events[0]),
                await client.post("/v1/events/batch", json=events),
                await client.post("/v1/events/batch", content=lines, headers=ndjson),
                await client.get("/v1/sessions/s-0"),
            ]
            assert {answer.status_code for answer in answers} <= {200, 429}
            refused += [answer for answer in answers if answer.status_code == 429]
        # Then most of it is refused, the batches above all
        assert all(answer.json()["code"] == "rate_limited" for answer in refused)
        assert all(answer.headers["retry-after"] == "1" for answer in refused)
        assert len([answer for answer in refused if answer.request.url.path.endswith("batch")]) > 20
        # And nobody is asked for a count where no key is needed
        assert (await client.get("/healthz")).status_code == 200
