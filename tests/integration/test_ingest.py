"""`POST /v1/events` over real connections: the same answer whatever the head, and however the bytes arrive."""

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
import uvicorn
from support.fakes import FakeModel
from support.keys import make_key, write_keys
from support.memory_store import MemoryStore

from app.api import bodies, ingest
from app.api.services import Services
from app.errors import StoreUnavailableError
from app.main import create_app
from app.runtime import http_protocol as protocol
from app.runtime.http_protocol import BoundedHttp
from app.settings import Settings

pytestmark = pytest.mark.anyio

EVENT = {"session_id": "s-1", "event_name": "page_view"}


class GatedStore(MemoryStore):
    """Loads wait while the gate is shut; a broken one answers as a Redis that is gone."""

    def __init__(self):
        super().__init__(session_idle_s=1800, now_ms=lambda: time.time_ns() // 1_000_000)
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.broken = False

    async def load(self, session_ids):
        self.entered.set()
        await self.gate.wait()
        if self.broken:
            return [StoreUnavailableError("gone")] * len(session_ids)
        return await super().load(session_ids)


class Served(NamedTuple):
    """A server that runs, and what serves behind it."""

    server: uvicorn.Server
    port: int
    services: Services


@asynccontextmanager
async def served(store=None, server=None, **settings):
    """A server that runs as `willbuy serve` runs it, but for these of its options."""
    settings.setdefault("open_access", "api_keys_file" not in settings)
    chosen = Settings(artifact="unused.pt", **settings)
    app = create_app(chosen, model=FakeModel(), store=store or GatedStore())
    options = {"access_log": False} | (server or {})
    config = uvicorn.Config(app, port=0, http=BoundedHttp, log_config=None, timeout_graceful_shutdown=10, **options)
    started = uvicorn.Server(config)
    running = asyncio.create_task(started.serve())

    async def is_up():
        assert not running.done()
        return started.started

    await until(is_up)
    yield Served(started, started.servers[0].sockets[0].getsockname()[1], app.state.services)
    started.should_exit = True
    await asyncio.wait_for(running, 30)


class Connection:
    """What a caller does, byte by byte."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    async def post(self, event, **headers):
        self.send(event, **headers)
        return await self.answer()

    def send(self, event, **headers):
        self.writer.write(request_of(event, **headers))

    async def answer(self):
        """Status, headers and body of the next answer."""
        async with asyncio.timeout(30):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode().strip().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(status.split()[1]), headers, json.loads(body)

    async def is_closed(self):
        async with asyncio.timeout(30):
            return await self.reader.read() == b""


@asynccontextmanager
async def connected(server):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    yield Connection(reader, writer)
    writer.close()


def request_of(event, **headers):
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    lines = {"host": "shop", "content-type": "application/json", "content-length": len(body)}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST /v1/events HTTP/1.1\r\n{head}\r\n".encode() + body


async def send_and_hold(store, connection, event=EVENT):
    """Send an event and return when its batch has begun, which goes on once the store's gate is opened."""
    store.gate.clear()
    store.entered.clear()
    connection.send(event)
    await asyncio.wait_for(store.entered.wait(), 30)


async def until(condition):
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110 - what is waited for raises no event
            await asyncio.sleep(0.01)


def without_ids(headers):
    """The headers but those that differ from answer to answer."""
    return {name: value for name, value in headers.items() if name not in {"x-request-id", "date", "content-length"}}


async def test_answers_to_like_events_differ_in_their_ids_alone_and_are_counted():
    async with served() as server, connected(server) as connection:
        first_status, first_headers, first = await connection.post(EVENT)
        status, headers, second = await connection.post(EVENT)
        assert (first_status, status) == (200, 200)
        assert without_ids(headers) == without_ids(first_headers)
        assert list(headers) == list(first_headers)
        assert headers["x-request-id"] != first_headers["x-request-id"]
        assert list(second) == list(first)
        assert (first["events"], second["events"]) == (1, 2)
        text = server.services.metrics.exposition().decode()
        assert 'willbuy_requests_total{method="POST",route="/v1/events",status="200"} 2.0' in text
        assert 'willbuy_request_seconds_count{route="/v1/events"} 2.0' in text


@pytest.mark.parametrize(
    "headers",
    [
        {"x_request_id": "mine-1"},
        {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        {"x_forwarded_for": "192.0.2.1"},
        {"origin": "https://shop.example"},
        {"expect": "100-continue"},
        {"connection": "close"},
        {"content_type": "application/json; charset=utf-8"},
        {"x_long": "a" * 3000},
    ],
)
async def test_every_head_gets_the_same_answer(headers):
    async with served() as server:
        async with connected(server) as connection:
            _, expected, _ = await connection.post(EVENT)
        for number in (2, 3):
            async with connected(server) as connection:
                connection.send(EVENT, **headers)
                if "expect" in headers:
                    await connection.reader.readuntil(b"\r\n\r\n")
                status, answered, body = await connection.answer()
                assert (status, body["events"]) == (200, number)
                assert answered["x-request-id"] == headers.get("x_request_id", answered["x-request-id"])
                assert answered.pop("connection", None) == headers.get("connection")
                assert without_ids(answered) == without_ids(expected)


async def test_a_body_that_is_no_event_is_a_problem_and_the_connection_goes_on():
    async with served() as server, connected(server) as connection:
        good, bad = b'{"session_id":"s-1","event_name":"search"}', b'{"session_id":"s-1","event_nema":"search"}'
        worse = b'{"session_id":"s-1","event_name":"search",'
        assert (await connection.post(good))[0] == 200
        status, _, body = await connection.post(bad)
        assert (status, body["code"]) == (422, "invalid_event")
        assert (await connection.post(worse))[2]["code"] == "invalid_json"
        assert (await connection.post(good))[2]["events"] == 2


@pytest.mark.parametrize("cut", [1, 30, -1])
async def test_a_request_that_comes_in_parts_is_put_together(cut):
    async with served() as server, connected(server) as connection:
        await connection.post(EVENT)
        request = request_of(EVENT)
        connection.writer.write(request[:cut])
        await connection.writer.drain()
        await asyncio.sleep(0.05)
        connection.writer.write(request[cut:])
        assert (await connection.answer())[2]["events"] == 2
        assert (await connection.post(EVENT))[2]["events"] == 3


async def test_requests_sent_without_waiting_are_answered_in_their_order():
    async with served() as server, connected(server) as connection:
        health = b"GET /healthz HTTP/1.1\r\nhost: shop\r\n\r\n"
        # Two at once, one that is held up by them, another kind, and an event again
        connection.writer.write(request_of(EVENT) + request_of(EVENT))
        await connection.writer.drain()
        connection.writer.write(request_of(EVENT) + health)
        await connection.writer.drain()
        connection.writer.write(request_of(EVENT))
        bodies = [(await connection.answer())[2] for _ in range(5)]
        assert [body.get("events") for body in bodies] == [1, 2, 3, None, 4]


async def test_what_comes_while_an_event_is_waited_for_waits_its_turn():
    store = GatedStore()
    async with served(store) as server, connected(server) as connection:
        await send_and_hold(store, connection)
        for part in (request_of(EVENT)[:20], request_of(EVENT)[20:]):
            connection.writer.write(part)
            await connection.writer.drain()
            await asyncio.sleep(0.05)
        store.gate.set()
        assert [(await connection.answer())[2]["events"] for _ in range(2)] == [1, 2]
        assert (await connection.post(EVENT))[2]["events"] == 3


async def test_behind_a_proxys_prefix_events_are_answered_likewise():
    async with served(server={"root_path": "/shop"}) as server, connected(server) as connection:
        assert (await connection.post(EVENT))[2]["events"] == 1
        text = server.services.metrics.exposition().decode()
        assert 'willbuy_requests_total{method="POST",route="/v1/events",status="200"} 1.0' in text


async def test_a_store_that_is_gone_is_a_problem_that_is_counted():
    store = GatedStore()
    async with served(store) as server, connected(server) as connection:
        await connection.post(EVENT)
        store.broken = True
        status, headers, body = await connection.post(EVENT)
        assert (status, body["code"]) == (503, "store_unavailable")
        assert headers["content-type"] == "application/problem+json"
        text = server.services.metrics.exposition().decode()
        assert 'willbuy_requests_total{method="POST",route="/v1/events",status="503"} 1.0' in text
        assert 'willbuy_errors_total{code="store_unavailable"} 1.0' in text
        # And the connection is good for more
        store.broken = False
        assert (await connection.post(EVENT))[2]["events"] == 2


async def test_an_event_that_takes_too_long_is_a_problem_and_its_wait_is_timed():
    store = GatedStore()
    async with served(store, request_timeout_s=0.3, redis_timeout_s=0.2) as server, connected(server) as connection:
        await connection.post(EVENT)
        store.gate.clear()
        status, _, body = await connection.post(EVENT)
        assert (status, body["code"]) == (503, "deadline_exceeded")
        services = server.services
        text = services.metrics.exposition().decode()
        assert 'willbuy_request_seconds_bucket{le="0.25",route="/v1/events"} 1.0' in text
        # One more waits behind the batch that hangs, gives up, and is taken back
        assert (await connection.post(EVENT))[0] == 503
        assert services.batcher.queue_length == 0
        store.gate.set()
        assert (await connection.post(EVENT))[0] == 200


async def test_a_body_that_does_not_come_is_a_problem():
    async with served(request_timeout_s=0.3, redis_timeout_s=0.2) as server, connected(server) as connection:
        connection.writer.write(request_of(EVENT)[:-1])
        status, _, body = await connection.answer()
        assert (status, body["code"]) == (408, "body_timeout")


async def test_a_full_service_refuses(monkeypatch):
    monkeypatch.setattr(Settings, "max_batch_size", 1)
    store = GatedStore()
    async with (
        served(store, max_queue=1) as server,
        connected(server) as running,
        connected(server) as waiting,
        connected(server) as refused,
    ):
        await send_and_hold(store, running)
        waiting.send(EVENT)

        async def is_full():
            return server.services.batcher.queue_length == 1

        await until(is_full)
        status, _, body = await refused.post(EVENT)
        assert (status, body["code"]) == (503, "overloaded")
        store.gate.set()
        assert [(await one.answer())[0] for one in (running, waiting)] == [200, 200]


async def test_an_answer_that_fails_takes_no_other_with_it(monkeypatch):
    store = GatedStore()
    async with served(store) as server, connected(server) as one, connected(server) as other:
        encode = bodies.score_json

        def fail_for_one(score, **options):
            if score.session_id == "s-1":
                raise RuntimeError("planted")
            return encode(score, **options)

        monkeypatch.setattr(ingest, "score_json", fail_for_one)
        async with connected(server) as first:
            # Both come while a batch runs, so that they are of one
            await send_and_hold(store, first, EVENT | {"session_id": "s-3"})
            one.send(EVENT)
            other.send(EVENT | {"session_id": "s-2"})

            async def both_wait():
                return server.services.batcher.queue_length == 2

            await until(both_wait)
            store.gate.set()
            assert (await other.answer())[2]["events"] == 1
            assert (await first.answer())[2]["events"] == 1
        status, headers, body = await one.answer()
        assert (status, body["code"], body["request_id"]) == (500, "internal_error", headers["x-request-id"])
        assert (await other.post(EVENT | {"session_id": "s-2"}))[2]["events"] == 2


async def test_who_leaves_before_its_answer_has_sent_the_event_all_the_same():
    store = GatedStore()
    async with served(store) as server:
        async with connected(server) as connection:
            await send_and_hold(store, connection)
        store.gate.set()

        async def is_folded():
            (record,) = await store.load(["s-1"])
            return record is not None and record.events == 1

        await until(is_folded)
        async with connected(server) as connection:
            assert (await connection.post(EVENT))[2]["events"] == 2


async def test_a_key_that_is_taken_away_is_refused_at_once(tmp_path):
    one, other = make_key("events:write", name="one"), make_key("events:write", name="other")
    path = write_keys(tmp_path / "keys.toml", one, other)
    async with served(api_keys_file=path) as server, connected(server) as connection:
        for _ in range(2):
            assert (await connection.post(EVENT, authorization=f"Bearer {one.key}"))[0] == 200
        assert (await connection.post(EVENT))[0] == 401
        assert (await connection.post(EVENT, authorization=f"Bearer {one.key[:-1]}x"))[0] == 401
        write_keys(path, other)

        async def is_refused():
            return (await connection.post(EVENT, authorization=f"Bearer {one.key}"))[0] == 401

        await until(is_refused)
        assert (await connection.post(EVENT, authorization=f"Bearer {other.key}"))[0] == 200


async def test_events_of_a_key_with_a_limit_are_counted_each(tmp_path):
    limited = make_key("events:write", events_per_s=0.1)
    path = write_keys(tmp_path / "keys.toml", limited)
    # Redis, which counts, is not there: then all are let in, and none passes by
    async with served(api_keys_file=path, redis_url="redis://127.0.0.1:1/0") as server, connected(server) as connection:
        for _ in range(3):
            assert (await connection.post(EVENT, authorization=f"Bearer {limited.key}"))[0] == 200
        text = server.services.metrics.exposition().decode()
        assert "willbuy_rate_limit_failures_total 3.0" in text


async def test_who_is_being_drained_is_asked_to_connect_anew():
    store = GatedStore()
    async with served(store) as server, connected(server) as idle, connected(server) as connection:
        await connection.post(EVENT)
        await idle.post(EVENT)
        await send_and_hold(store, connection)
        server.services.drain.draining = True
        # The answer that is still open, and those to what comes later
        store.gate.set()
        status, headers, _ = await connection.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await connection.is_closed()
        status, headers, _ = await idle.post(EVENT)
        assert (status, headers["connection"]) == (200, "close")
        assert await idle.is_closed()


@pytest.mark.parametrize("breaks", [False, True])
async def test_a_server_that_stops_answers_what_it_has_begun(breaks):
    store = GatedStore()
    async with served(store) as server, connected(server) as connection:
        await send_and_hold(store, connection)
        server.server.should_exit = True

        async def is_stopping():
            return not server.server.servers[0].is_serving()

        await until(is_stopping)
        store.broken = breaks
        store.gate.set()
        status, headers, _ = await connection.answer()
        assert (status, headers["connection"]) == (503 if breaks else 200, "close")
        assert await connection.is_closed()


@pytest.mark.parametrize("options", [{"access_log": True}, {"limit_concurrency": 100}])
async def test_options_of_the_server_that_concern_each_request_hold(options):
    async with served(server=options) as server, connected(server) as connection:
        assert [(await connection.post(EVENT))[2]["events"] for _ in range(2)] == [1, 2]


async def test_connections_are_bounded_as_ever(monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.3)
    async with served() as server, connected(server) as connection:
        # A request stops the wait for a head, and the next half one begins another
        await connection.post(EVENT)
        await asyncio.sleep(0.5)
        assert (await connection.post(EVENT))[2]["events"] == 2
        connection.writer.write(b"POST /v1/ev")
        assert await connection.is_closed()


async def test_an_idle_connection_is_closed_in_the_end():
    async with served() as server, connected(server) as connection:
        for one in server.server.server_state.connections:
            one.timeout_keep_alive = 0.3
        await connection.post(EVENT)
        assert await connection.is_closed()
