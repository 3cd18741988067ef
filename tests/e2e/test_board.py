"""The board, the numbers and the stream against real processes and a real server."""

import asyncio
import json
import time
from collections import defaultdict
from contextlib import AsyncExitStack

import httpx
import pytest
import redis

from app.settings import Settings

pytestmark = pytest.mark.anyio

DEADLINE_S = 30.0


async def until(condition):
    """Poll until what `condition` returns is true, and return that."""
    deadline_s = time.monotonic() + DEADLINE_S
    while not (result := await condition()):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.05)
    return result


def client_of(replica):
    return httpx.AsyncClient(base_url=replica.base_url, timeout=30)


async def post(client, session_id, *names):
    for name in names:
        response = await client.post("/v1/events", json={"session_id": session_id, "event_name": name})
        assert response.status_code == 200
    return response.json()


async def walk(client, **parameters):
    sessions = []
    while True:
        page = (await client.get("/v1/sessions", params=parameters)).raise_for_status().json()
        sessions += page["sessions"]
        if page["next_cursor"] is None:
            return sessions
        parameters["cursor"] = page["next_cursor"]


async def test_the_board_shows_what_the_events_were_answered_with(service, valkey):
    replica = service(redis_url=valkey.url)
    async with client_of(replica) as client:
        answers = defaultdict(list)
        for number in range(30):
            for name in ("page_view", "view_item", "add_to_cart")[: 1 + number % 3]:
                answers[f"s-{number}"].append((await post(client, f"s-{number}", name))["probability"])
        await post(client, "s-7", "purchase")
        sessions = await walk(client, limit=8, recent=2)
        assert [session["session_id"] for session in sessions] == sorted(
            set(answers) - {"s-7"}, key=lambda session_id: (answers[session_id][-1], session_id), reverse=True
        )
        for session in sessions:
            given = answers[session["session_id"]]
            assert session["probability"] == pytest.approx(given[-1], abs=1e-6)
            assert session["recent_probabilities"] == pytest.approx(given[-2:], abs=1e-4)
            assert session["events"] == len(given)
            assert session["last_event"] == ("page_view", "view_item", "add_to_cart")[len(given) - 1]
            assert session["outcome"] == "open"
        by_time = await walk(client, order="last_seen", limit=7)
        assert by_time[0]["session_id"] == "s-7"
        assert by_time[0]["outcome"] == "purchase"
        assert {session["session_id"] for session in by_time} == set(answers)
        assert "recent_probabilities" not in by_time[0]
        few = await walk(client, min_events=3)
        assert {session["session_id"] for session in few} == {key for key, given in answers.items() if len(given) == 3}


@pytest.mark.slow
async def test_an_answer_that_has_not_changed_is_not_sent_again_by_any_replica(service, valkey):
    first, second = (service(redis_url=valkey.url) for _ in range(2))
    async with client_of(first) as one, client_of(second) as another:
        await post(one, "s-1", "page_view")

        async def is_there():
            response = await one.get("/v1/sessions")
            return response if response.json()["sessions"] else None

        tag = (await until(is_there)).headers["etag"]

        async def is_known_there():
            return (await another.get("/v1/sessions", headers={"If-None-Match": tag})).status_code == 304

        await until(is_known_there)
        response = await one.get("/v1/sessions", headers={"If-None-Match": f'"other", W/{tag}'})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", tag)
        await post(another, "s-1", "view_item")

        async def has_changed():
            response = await one.get("/v1/sessions", headers={"If-None-Match": tag})
            return response if response.status_code == 200 else None

        assert (await until(has_changed)).json()["sessions"][0]["events"] == 2


@pytest.mark.slow
async def test_whoever_is_asked_answers_for_all_replicas_and_their_processes(service, valkey):
    pair, single = service(redis_url=valkey.url, workers=2), service(redis_url=valkey.url)
    async with client_of(pair) as one, client_of(single) as another:
        for number in range(20):
            await post(one if number % 2 else another, f"s-{number}", "page_view", "of_the_shops_own")
        await post(one, "s-0", "purchase")

        async def is_complete(client):
            stats = (await client.get("/v1/stats")).raise_for_status().json()
            return stats if stats["totals"]["events_folded"] == 40 and stats["replicas"] == 3 else None

        for client in (one, another):
            stats = await until(lambda client=client: is_complete(client))
            assert (stats["live_sessions"], stats["open_sessions"]) == (20, 19)
            assert sum(stats["scores"]["counts"]) == 19
            assert len(stats["scores"]["edges"]) == len(stats["scores"]["counts"]) + 1 == 21
            assert stats["totals"]["sessions_started"] == 20
            assert stats["totals"]["unseen_names"] == 20
            assert stats["rates"]["events_per_s"] > 0
            assert stats["rates"]["requests_per_s"] > stats["rates"]["batches_per_s"] > 0
            assert 0 < stats["latency_ms"]["p50"] <= stats["latency_ms"]["p95"] <= stats["latency_ms"]["p99"]
            assert stats["queue"] == {"length": 0, "capacity": 3 * 4096, "overloaded": False}
        single.stop()

        async def has_left():
            return (await one.get("/v1/stats")).json()["replicas"] == 2

        await until(has_left)


async def test_without_redis_the_board_is_unavailable_and_comes_back(service, start_redis):
    server = start_redis()
    replica = service(redis_url=server.url)
    async with client_of(replica) as client:
        await post(client, "s-1", "page_view")
        server.kill()

        async def says(path, status):
            response = await client.get(path)
            assert response.status_code in {200, 503}
            return response if response.status_code == status else None

        for path in ("/v1/sessions?order=last_seen", "/v1/stats"):
            problem = await until(lambda path=path: says(path, 503))
            assert problem.json()["code"] == "store_unavailable"
            assert problem.headers["retry-after"] == "1"
        server.start()
        for path in ("/v1/sessions?order=last_seen", "/v1/stats"):
            await until(lambda path=path: says(path, 200))
    assert replica.tracebacks() == []


@pytest.mark.slow
async def test_many_pollers_cost_redis_as_much_as_one(service, start_redis):
    server = start_redis()
    replica = service(redis_url=server.url)
    async with httpx.AsyncClient(
        base_url=replica.base_url, timeout=60, limits=httpx.Limits(max_connections=200)
    ) as client:
        for number in range(20):
            await post(client, f"s-{number}", "page_view")

        def calls():
            with redis.Redis.from_url(server.url) as connection:
                stats = connection.info("commandstats")
            return sum(row["calls"] for name, row in stats.items() if name in {"cmdstat_evalsha", "cmdstat_eval"})

        before, began_s = calls(), time.monotonic()

        async def poll():
            for _ in range(2):
                for path in ("/v1/sessions?recent=16", "/v1/stats"):
                    assert (await client.get(path)).status_code == 200

        await asyncio.gather(*(poll() for _ in range(200)))
        elapsed_s = time.monotonic() - began_s
        # A reading of the board is 16 calls for the shards and one for each of 20 rows; one of the numbers is 16 for
        # the spread and a few for reports and outcomes, beside what goes on without anybody polling.
        a_half_second = 16 + 20 + 16 + 20
        assert calls() - before < (elapsed_s / 0.5 + 2) * a_half_second * 2
        assert calls() - before < 800 * 16


class Stream:
    """What arrives on an open stream, by event."""

    def __init__(self):
        self.events = defaultdict(list)
        self.ended = asyncio.Event()
        self.id = ""

    async def read(self, response):
        event = ""
        async for line in response.aiter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                event = value
            elif name == "id":
                self.id = value
            elif name == "data":
                self.events[event].append(json.loads(value))
        self.ended.set()


async def test_a_stream_begins_with_what_is_there_and_tells_what_changes(service, valkey):
    replica = service(redis_url=valkey.url)
    async with client_of(replica) as client:
        await post(client, "s-1", "page_view")
        stream = Stream()
        async with client.stream("GET", "/v1/stream?limit=5&recent=4") as response:
            assert response.status_code == 200
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            reading = asyncio.create_task(stream.read(response))

            async def heard(condition):
                async def check():
                    return condition()

                await until(check)

            await heard(lambda: stream.events["board"] and stream.events["stats"])
            assert stream.events["board"][0]["sessions"][0]["session_id"] == "s-1"
            assert stream.events["stats"][0]["live_sessions"] == 1
            await post(client, "s-1", "view_item")
            await heard(lambda: stream.events["board"][-1]["sessions"][0]["events"] == 2)
            await heard(lambda: len(stream.events["stats"]) > 3)
            # What has not changed was not sent again
            assert len(stream.events["board"]) == 2
            reading.cancel()


async def test_a_stream_says_that_redis_is_gone_and_goes_on_when_it_is_back(service, start_redis):
    server = start_redis()
    replica = service(redis_url=server.url)
    async with client_of(replica) as client:
        await post(client, "s-1", "page_view")
        stream = Stream()
        async with client.stream("GET", "/v1/stream") as response:
            reading = asyncio.create_task(stream.read(response))

            async def has(name, count):
                return len(stream.events[name]) >= count

            await until(lambda: has("board", 1))
            server.kill()
            await until(lambda: has("problem", 1))
            assert stream.events["problem"][0]["code"] == "store_unavailable"
            server.start()
            await until(lambda: has("board", 2))
            assert stream.events["board"][-1]["sessions"] == []
            reading.cancel()


async def test_a_stream_that_was_cut_off_goes_on_with_the_decisions_since(service, valkey, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rules]]\nname = "each"\nrepeat = true\n')
    replica = service(redis_url=valkey.url, interventions_file=str(rules))

    async def read_until(headers, condition):
        stream = Stream()
        async with client.stream("GET", "/v1/stream", headers=headers) as response:
            reading = asyncio.create_task(stream.read(response))

            async def holds():
                return await condition(stream)

            await until(holds)
            reading.cancel()
        return stream

    def decided(stream):
        return {one["event"] for some in stream.events["interventions"] for one in some if one["session_id"] == "cut"}

    async with client_of(replica) as client:

        async def has_first(stream):
            # The id of a stream's begin is there before any decision
            if stream.id and not stream.events["interventions"]:
                await post(client, "cut", "page_view")
            return decided(stream) and stream.id

        first = await read_until({}, has_first)
        seen = max(decided(first))
        for _ in range(40):
            await post(client, "cut", "page_view")

        async def has_all(stream):
            return decided(stream) >= set(range(seen + 1, seen + 41)) and stream.id

        again = await read_until({"Last-Event-ID": first.id}, has_all)
        assert int(again.id) >= int(first.id) > 0

        async def has_id(stream):
            return stream.id

        for junk in ("x", "-1", "9" * 40):
            assert not (await read_until({"Last-Event-ID": junk}, has_id)).events["interventions"]


async def test_streams_are_bounded_and_free_their_place_when_their_callers_leave(service, valkey):
    replica = service(redis_url=valkey.url)
    many = httpx.Limits(max_connections=Settings.max_streams + 1)
    async with httpx.AsyncClient(base_url=replica.base_url, timeout=30, limits=many) as client:
        async with AsyncExitStack() as streams:
            for number in range(Settings.max_streams):
                stream = await streams.enter_async_context(client.stream("GET", f"/v1/stream?limit={number % 2 + 1}"))
                assert stream.status_code == 200
            refused = await client.get("/v1/stream")
            assert refused.status_code == 503
            assert refused.json()["code"] == "too_many_streams"
            assert "willbuy_streams_open 256.0" in (await client.get("/metrics")).text

        async def is_free():
            return "willbuy_streams_open 0.0" in (await client.get("/metrics")).text

        await until(is_free)
        assert (await client.get("/v1/stream?cursor=x")).status_code == 422


async def test_a_stop_ends_open_streams(service, valkey):
    replica = service(redis_url=valkey.url)
    async with client_of(replica) as client:
        stream = Stream()
        async with client.stream("GET", "/v1/stream") as response:
            reading = asyncio.create_task(stream.read(response))

            async def has_begun():
                return stream.events["board"]

            await until(has_begun)
            replica.terminate()
            # Ends in order, not cut off: reading to the end raises nothing
            await asyncio.wait_for(reading, DEADLINE_S)
    assert await asyncio.to_thread(replica.wait, 30) == 0
    assert replica.tracebacks() == []
    assert "Cancel" not in replica.output()
