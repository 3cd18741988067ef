"""Refused events leave no cycles: collections of garbage are rare, and a cycle keeps the body of its request."""

import asyncio
import gc
import json
import time
from contextlib import contextmanager

import httpx
import pytest
from support.fakes import FakeModel
from support.kafka import MockCluster

from app.errors import StoreUnavailableError, WillbuyError
from app.kafka.consumer import KafkaFeed
from app.kafka.options import kafka_options
from app.main import create_app
from app.scoring.batcher import Batcher
from app.settings import Settings

pytestmark = pytest.mark.anyio

GOOD = {"session_id": "s-1", "event_name": "page_view", "timestamp": int(time.time() * 1000)}


@contextmanager
def garbage():
    """Give what only a collection frees of what the block leaves."""
    found: list[object] = []
    gc.collect()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found += gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


@pytest.fixture
async def client(valkey):
    settings = Settings(artifact="unused.pt", redis_url=valkey.url, open_access=True)
    app = create_app(settings, model=FakeModel())
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://willbuy") as client:
            yield client


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/events/batch", json.dumps([GOOD, GOOD | {"nonsense": 1}])),
        ("/v1/events/batch", json.dumps([GOOD, "no event"])),
        ("/v1/events/batch", json.dumps([GOOD, GOOD | {"timestamp": 10**15}])),
        ("/v1/events/batch", f'[{json.dumps(GOOD)}, {{"a": 1, "a": 2}}]'),
        ("/v1/events/batch", json.dumps([GOOD] * 300 + [GOOD | {"nonsense": 1}])),
        ("/v1/ingest/segment", '{"batch": [{"type": "track"'),
        ("/v1/ingest/segment", json.dumps({"batch": [{"type": "track", "event": "x" * 300, "anonymousId": "v-1"}]})),
    ],
    ids=["field", "no-object", "future", "key-twice", "large", "vendors-json", "vendors-event"],
)
async def test_an_event_that_is_refused_beside_others_leaves_no_cycle(client, path, body):
    with garbage() as left:
        answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert "code" in answer.text
    assert [one for one in left if isinstance(one, WillbuyError)] == []


def send(cluster, body, number):
    """Send an event and return when the service has committed as many."""
    cluster.topics.send("events", [("s-1", json.dumps(body).encode())])
    while cluster.topics.committed("events", "g") < number:
        time.sleep(0.1)


async def test_a_message_that_is_refused_leaves_no_cycle(valkey):
    cluster = MockCluster()
    cluster.create("events", "events-dead-letters")
    options = kafka_options(
        topic="events", brokers=cluster.brokers, group="g", scores=None, dead_letters="events-dead-letters", file=None
    )
    settings = Settings(artifact="unused.pt", redis_url=valkey.url, open_access=True)
    app = create_app(settings, model=FakeModel(), feed=KafkaFeed(options))
    try:
        async with app.router.lifespan_context(app):
            with garbage() as left:
                # The feed itself keeps the last batch.
                for at, body in enumerate([GOOD | {"nonsense": 1}, GOOD | {"timestamp": 10**15}, GOOD], 1):
                    await asyncio.to_thread(send, cluster, body, at)
        assert cluster.topics.end("events-dead-letters") == 2
    finally:
        cluster.stop()
    assert [one for one in left if isinstance(one, WillbuyError)] == []


async def test_an_error_of_a_batch_leaves_no_cycle_with_who_waited_for_it():
    async def handle(items, callers):
        return [StoreUnavailableError("Redis is away") if item == "bad" else item for item in items]

    batcher = Batcher(handle, key=lambda item: item, max_batch_size=4, max_queue=8, max_items_per_key=1, max_batches=1)
    batcher.start()
    with garbage() as left:
        assert isinstance(*await asyncio.gather(batcher.submit("bad"), return_exceptions=True), StoreUnavailableError)
        # The batcher itself keeps the last batch.
        await batcher.submit("good")
    assert [one for one in left if isinstance(one, WillbuyError)] == []
    await batcher.close()
