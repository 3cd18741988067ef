"""The HTTP interface over a model whose answers are known and a store in memory."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest
from support.fakes import FakeModel
from support.memory_store import MemoryStore

from app.errors import StoreUnavailableError, WillbuyError
from app.main import create_app
from app.schemas.events import EVENT_EXAMPLE
from app.settings import Settings

pytestmark = pytest.mark.anyio

NOW_MS = 1_795_342_600_000
EVENT = {"session_id": "s-1", "event_name": "page_view"}


class GatedStore(MemoryStore):
    """Loads wait while the gate is shut; a broken one answers as a Redis that is gone."""

    def __init__(self):
        super().__init__(session_idle_s=1800, now_ms=lambda: NOW_MS)
        self.gate = asyncio.Event()
        self.gate.set()
        self.broken = False
        self.closed = False

    async def load(self, session_ids):
        await self.gate.wait()
        if self.broken:
            return [StoreUnavailableError("gone")] * len(session_ids)
        return await super().load(session_ids)

    async def ping(self):
        if self.broken:
            raise StoreUnavailableError("gone")

    async def close(self):
        self.closed = True


@asynccontextmanager
async def running(store, *, model=None, now_ms=lambda: NOW_MS, **settings):
    """A client of a service that runs, as a server would run it."""
    chosen = Settings(artifact="unused.pt", open_access=True, **settings)
    app = create_app(chosen, model=model or FakeModel(), store=store, now_ms=now_ms)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://willbuy") as client:
            yield client


@pytest.fixture
def store():
    return GatedStore()


@pytest.fixture
async def client(store):
    async with running(store) as client:
        yield client


async def until(condition):
    while not condition():  # noqa: ASYNC110 - what is waited for raises no event
        await asyncio.sleep(0.001)


def assert_problem(response, status, code):
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"].endswith(code)
    assert body["title"]
    assert body["detail"]
    assert "Traceback" not in response.text
    return body


async def test_an_event_is_answered_with_the_sessions_score(client):
    response = await client.post("/v1/events", json=EVENT_EXAMPLE)
    assert response.status_code == 200
    body = response.json()
    assert 0 <= body.pop("probability") <= 1
    assert body == {
        "session_id": "s-81",
        "events": 1,
        "model": FakeModel().fingerprint,
        "outcome": "open",
        "folded": True,
        "duplicate": False,
        "warnings": [],
        "interventions": [],
    }


async def test_a_session_reads_as_the_last_answer_said(client):
    answers = [(await client.post("/v1/events", json=EVENT)).json() for _ in range(3)]
    session = (await client.get("/v1/sessions/s-1")).json()
    assert session == {
        "session_id": "s-1",
        "probability": answers[-1]["probability"],
        "events": 3,
        "first_seen": "2026-11-22T10:16:40Z",
        "last_seen": "2026-11-22T10:16:40Z",
        "model": FakeModel().fingerprint,
        "outcome": "open",
    }


@pytest.mark.parametrize("session_id", ["a/b", "/", "a//b/", "ä €😀", "50% off", "a?b#c", "a b+c", "s"])
async def test_any_session_id_that_is_accepted_can_be_read_back(client, session_id):
    await client.post("/v1/events", json=EVENT | {"session_id": session_id})
    for safe in ("", "/"):
        path = httpx.URL("http://willbuy/").copy_with(raw_path=b"/v1/sessions/" + quoted(session_id, safe))
        assert (await client.get(path)).json()["session_id"] == session_id


def quoted(text, safe):
    from urllib.parse import quote  # noqa: PLC0415 - next to its one use

    return quote(text, safe=safe).encode()


async def test_an_unknown_session_is_a_problem(client):
    assert_problem(await client.get("/v1/sessions/nobody"), 404, "session_not_found")


@pytest.mark.parametrize("path", ["/v1/sessions/", "/v1/sessions/" + "x" * 257, "/v1/sessions/a%00b"])
async def test_a_session_id_that_cannot_be_is_a_problem(client, path):
    body = assert_problem(await client.get(path), 422, "invalid_request")
    assert body["errors"][0]["field"] == "session_id"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [("GET", "/nowhere", 404, "not_found"), ("GET", "/v1/events", 405, "method_not_allowed")],
)
async def test_the_frameworks_errors_are_problems_too(client, method, path, status, code):
    response = await client.request(method, path)
    assert_problem(response, status, code)
    assert ("allow" in response.headers) == (status == 405)


async def test_a_field_at_fault_is_named_and_its_value_is_not_echoed(client):
    response = await client.post("/v1/events", json=EVENT | {"price": -1, "item_id": "secret" * 100})
    body = assert_problem(response, 422, "invalid_event")
    assert {error["field"] for error in body["errors"]} == {"price", "item_id"}
    assert "secret" not in response.text


@pytest.mark.parametrize("token", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_none_are_problems(client, token):
    content = '{"session_id": "s", "event_name": "page_view", "price": ' + token + "}"
    response = await client.post("/v1/events", content=content, headers={"content-type": "application/json"})
    assert assert_problem(response, 422, "invalid_event")["errors"][0]["field"] == "price"


async def test_a_name_with_a_lone_surrogate_can_still_be_named(client):
    content = b'{"session_id": "s", "event_name": "page_view", "\\ud800": 1}'
    response = await client.post("/v1/events", content=content, headers={"content-type": "application/json"})
    assert_problem(response, 422, "invalid_event")


async def test_a_body_of_another_type_or_encoding_is_a_problem(client):
    response = await client.post("/v1/events", content=b"session_id=1")
    assert_problem(response, 415, "unsupported_media_type")
    response = await client.post("/v1/events", json=EVENT, headers={"content-encoding": "br"})
    assert_problem(response, 415, "unsupported_content_encoding")
    response = await client.post("/v1/events", content=b"", headers={"content-type": "application/json"})
    assert_problem(response, 400, "invalid_json")


async def test_the_body_limit_is_exact_and_holds_without_a_declared_length(store):
    async with running(store) as client:
        fitting = json.dumps(EVENT).encode().ljust(65536)
        headers = {"content-type": "application/json"}
        assert (await client.post("/v1/events", content=fitting, headers=headers)).status_code == 200
        too_large = fitting + b" "
        assert_problem(await client.post("/v1/events", content=too_large, headers=headers), 413, "body_too_large")

        async def in_parts():
            yield too_large[:1000]
            yield too_large[1000:]

        assert_problem(await client.post("/v1/events", content=in_parts(), headers=headers), 413, "body_too_large")


async def test_an_event_whose_caller_was_told_that_it_is_too_late_is_not_folded(store):
    async with running(store, request_timeout_s=0.05, redis_timeout_s=0.05) as client:
        store.gate.clear()
        # Given one event whose batch has begun, and a second that waits for its batch
        begun, waiting = await asyncio.gather(
            client.post("/v1/events", json=EVENT | {"item_id": "begun"}),
            client.post("/v1/events", json=EVENT | {"item_id": "waiting"}),
        )
        for response in (begun, waiting):
            assert_problem(response, 503, "deadline_exceeded")
            assert response.headers["retry-after"] == "1"
        store.gate.set()
        # Then a third is the first event of the session
        assert (await client.post("/v1/events", json=EVENT | {"item_id": "third"})).json()["events"] == 1
        (history,) = await store.load_histories(["s-1"])
        assert [event.item_id for event in history] == ["third"]


async def test_a_body_that_does_not_come_is_a_problem(store):
    async with running(store, request_timeout_s=0.05, redis_timeout_s=0.05) as client:

        async def never():
            yield b"{"
            await asyncio.sleep(30)

        headers = {"content-type": "application/json"}
        # httpx's transport reads the body inside the application's call, as a server does.
        assert_problem(await client.post("/v1/events", content=never(), headers=headers), 408, "body_timeout")


async def test_past_the_queues_length_the_caller_is_told_to_come_again(store):
    async with running(store, max_queue=1) as client:
        store.gate.clear()
        tasks = [asyncio.create_task(client.post("/v1/events", json=EVENT | {"item_id": str(i)})) for i in range(10)]
        await until(lambda: sum(task.done() for task in tasks) >= 8)
        store.gate.set()
        responses = await asyncio.gather(*tasks)
        refused = [response for response in responses if response.status_code != 200]
        # One waits, and one more was taken into a batch if that began before the others came.
        assert len(refused) in (8, 9)
        for response in refused:
            assert_problem(response, 503, "overloaded")
            assert response.headers["retry-after"] == "1"


async def test_without_the_store_events_and_readiness_are_503_but_the_process_is_alive(client, store):
    store.broken = True
    response = await client.post("/v1/events", json=EVENT)
    assert_problem(response, 503, "store_unavailable")
    assert response.headers["retry-after"] == "1"
    assert_problem(await client.get("/v1/sessions/s-1"), 503, "store_unavailable")
    body = assert_problem(await client.get("/readyz"), 503, "not_ready")
    assert body["checks"] == {"redis": "store_unavailable", "model": "ok"}
    assert (await client.get("/healthz")).status_code == 200
    store.broken = False
    assert (await client.get("/readyz")).json()["checks"] == {"redis": "ok", "model": "ok"}


async def test_a_failure_nobody_foresaw_is_a_problem_with_the_id_it_was_logged_under(client, store, capsys):
    async def load(session_ids):
        raise KeyError("internals")

    store.load = load
    response = await client.get("/v1/sessions/s-1", headers={"x-request-id": "my-request"})
    body = assert_problem(response, 500, "internal_error")
    assert body["request_id"] == response.headers["x-request-id"] == "my-request"
    assert "internals" not in response.text
    # And an event's batch that crashes is answered the same way
    assert_problem(await client.post("/v1/events", json=EVENT), 500, "internal_error")


@pytest.mark.parametrize("request_id", ["x" * 65, "a b", "<script>", ""])
async def test_a_request_id_that_is_none_is_replaced(client, request_id):
    response = await client.get("/healthz", headers={"x-request-id": request_id})
    assert response.headers["x-request-id"] not in ("", request_id)


async def test_the_model_is_described_without_its_long_vocabularies(client):
    body = (await client.get("/v1/model")).json()
    assert body["fingerprint"] == FakeModel().fingerprint
    assert body["device"] == "cpu"
    assert body["manifest"] == {"fingerprint": "fake", "items_count": 2}


async def test_metrics_count_what_happened(client):
    await client.post("/v1/events", json=EVENT | {"event_name": "unheard_of"})
    await client.post("/v1/events", json=EVENT | {"price": -1})
    await client.get("/v1/sessions/s-1")
    await client.get("/a/path/nobody/knows")
    text = (await client.get("/metrics")).text
    for line in (
        'willbuy_requests_total{method="POST",route="/v1/events",status="200"} 1.0',
        'willbuy_requests_total{method="POST",route="/v1/events",status="422"} 1.0',
        'willbuy_requests_total{method="GET",route="/v1/sessions/{session_id:path}",status="200"} 1.0',
        'willbuy_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'willbuy_errors_total{code="invalid_event"} 1.0',
        "willbuy_unseen_names_total 1.0",
        "willbuy_events_folded_total 1.0",
        "willbuy_sessions_started_total 1.0",
        "willbuy_batch_size_count 1.0",
        "willbuy_queue_length 0.0",
    ):
        assert line in text.splitlines()


async def test_stopping_answers_what_waits_then_closes_the_store(store):
    # So that a batch takes one event of the session at a time
    async with running(store, dedupe_window=4) as client:
        store.gate.clear()
        tasks = [asyncio.create_task(client.post("/v1/events", json=EVENT)) for _ in range(3)]
        while "willbuy_queue_length 2.0" not in (await client.get("/metrics")).text.splitlines():  # noqa: ASYNC110 - see `until`
            await asyncio.sleep(0.001)
        asyncio.get_running_loop().call_later(0.01, store.gate.set)
    assert [task.result().json()["events"] for task in tasks] == [1, 2, 3]
    assert store.closed


async def test_openapi_names_each_operation_once_as_a_generated_client_would(client):
    document = (await client.get("/openapi.json")).json()
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert {"post_event", "post_events", "get_session", "list_sessions", "get_stats"} <= set(names)
    assert len(set(names)) == len(names)
    assert [server["url"] for server in document["servers"]] == ["/"]


async def test_openapi_documents_bodies_examples_and_every_problem(client):
    document = (await client.get("/openapi.json")).json()
    schemas = document["components"]["schemas"]
    operation = document["paths"]["/v1/events"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    assert content["example"] == EVENT_EXAMPLE
    assert "session_id" in schemas["EventIn"]["required"]
    assert schemas["EventIn"]["properties"]["price"]["description"]
    assert "/v1/sessions/{session_id}" in document["paths"]
    # Every reference leads somewhere
    for reference in set(references(document)):
        assert reference.removeprefix("#/components/schemas/") in schemas
    # Every code that an event can be answered with is named, but those that mean a fault of the service
    elsewhere = {
        *("session_not_found", "history_gone", "invalid_request", "outcome_conflict", "board_busy", "too_many_streams"),
        *("reload_disabled", "reload_in_progress", "artifact_refused", "rule_not_found", "webhook_not_found"),
    }
    of_a_batch = document["paths"]["/v1/events/batch"]["post"]["responses"]
    described = json.dumps(operation["responses"]) + json.dumps(of_a_batch)
    for error in all_errors(WillbuyError):
        if error.status != 500 and error.code not in elsewhere:
            assert f"`{error.code}`" in described


def references(value):
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else [])
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from references(part)


def all_errors(base):
    for error in base.__subclasses__():
        if "code" in vars(error):
            yield error
        yield from all_errors(error)


def test_error_codes_are_unique():
    codes = [error.code for error in all_errors(WillbuyError)]
    assert len(codes) == len(set(codes)) > 10
