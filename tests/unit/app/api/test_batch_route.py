"""`POST /v1/events/batch`, `DELETE` and `?trace=true` over a model whose answers are known and a store in memory."""

import asyncio
import gzip
import json
import math
from contextlib import asynccontextmanager

import httpx
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from support.fakes import FakeModel
from support.memory_store import MemoryStore

from app.errors import InvalidJsonError, InvalidRequestError, StoreUnavailableError, TooManyEventsError
from app.main import create_app
from app.scoring.parsing import parse_events
from app.settings import Settings

pytestmark = pytest.mark.anyio

NOW_MS = 1_795_342_600_000
JSON = {"content-type": "application/json"}
NDJSON = {"content-type": "application/x-ndjson"}


def event(session_id="s", **fields):
    return {"session_id": session_id, "event_name": "page_view"} | fields


@pytest.fixture
def store():
    return MemoryStore(session_idle_s=1800, now_ms=lambda: NOW_MS)


@asynccontextmanager
async def running(store, model=None, **settings):
    chosen = Settings(artifact="unused.pt", open_access=True, **settings)
    app = create_app(chosen, model=model or FakeModel(), store=store, now_ms=lambda: NOW_MS)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://willbuy") as client:
            yield client


@pytest.fixture
async def client(store):
    async with running(store) as client:
        yield client


async def post(client, events, *, lines=False):
    if lines:
        content = b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in events)
        return await client.post("/v1/events/batch", content=content, headers=NDJSON)
    return await client.post("/v1/events/batch", json=events)


async def results_of(client, events, *, lines=False):
    response = await post(client, events, lines=lines)
    assert response.status_code == 200
    return response.json()["results"]


def assert_problem(response, status, code):
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["code"] == code


@pytest.mark.parametrize("lines", [False, True], ids=["array", "lines"])
async def test_each_event_gets_the_answer_that_it_would_have_got_alone(client, store, lines):
    events = [event(f"s-{number % 7}", event_id=str(number), item_id=str(number)) for number in range(50)]
    results = await results_of(client, events, lines=lines)
    alone_store = MemoryStore(session_idle_s=1800, now_ms=lambda: NOW_MS)
    async with running(alone_store) as alone:
        expected = [(await alone.post("/v1/events", json=one)).json() for one in events]
    assert [result.keys() for result in results] == [{"status", "score"}] * 50
    assert [result["score"] for result in results] == expected
    ids = [f"s-{number}" for number in range(7)]
    assert await store.load_histories(ids) == await alone_store.load_histories(ids)


async def test_what_is_wrong_with_one_event_is_its_own_problem(client):
    events = [
        event(item_id="first"),
        event(price=-1),
        7,
        event(timestamp=NOW_MS + 10**9),
        event(item_id="poison"),
        event(event_name="purchase"),
    ]
    results = await results_of(client, events)
    assert [result["status"] for result in results] == [200, 422, 422, 422, 500, 200]
    assert results[1]["problem"]["code"] == "invalid_event"
    assert results[1]["problem"]["errors"][0]["field"] == "price"
    assert results[2]["problem"]["errors"][0]["code"] == "not_an_object"
    assert results[3]["problem"]["errors"][0]["code"] == "timestamp_out_of_bounds"
    assert results[4]["problem"]["code"] == "prediction_failed"
    assert results[5]["score"]["events"] == 1
    text = (await client.get("/metrics")).text
    assert 'willbuy_errors_total{code="invalid_event"} 3.0' in text.splitlines()


async def test_a_line_that_is_no_json_is_its_own_problem_and_blank_lines_are_none(client):
    content = (
        json.dumps(event()).encode() + b'\r\n\n  \n{"a":\n\xff\n{"a":1,"a":2}\n' + json.dumps(event()).encode() + b"\n"
    )
    response = await client.post("/v1/events/batch", content=content, headers=NDJSON)
    results = response.json()["results"]
    assert [result["status"] for result in results] == [200, 400, 400, 400, 200]
    assert {result["problem"]["code"] for result in results[1:4]} == {"invalid_json"}
    assert results[4]["score"]["events"] == 2


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [(b"", 400, "invalid_json"), (b"[{]", 400, "invalid_json"), (b"{}", 422, "invalid_request")],
)
async def test_an_array_that_is_none_is_a_problem_of_the_request(client, content, status, code):
    assert_problem(await client.post("/v1/events/batch", content=content, headers=JSON), status, code)


@pytest.mark.parametrize("headers", [{"content-type": "application/json"}, {"content-type": "application/x-ndjson"}])
async def test_a_batch_without_events_is_a_problem(client, headers):
    # What a sender that lost the body, or never had one, must not take for success
    response = await client.post("/v1/events/batch", content=b"", headers=headers)
    assert_problem(response, 400, "invalid_json")
    empty = b"[ ]" if headers == {"content-type": "application/json"} else b" \n\n"
    assert_problem(await client.post("/v1/events/batch", content=empty, headers=headers), 422, "invalid_request")


async def test_other_types_and_compressed_bodies_are_refused(client):
    response = await client.post("/v1/events/batch", content=b"[]", headers={"content-type": "text/plain"})
    assert_problem(response, 415, "unsupported_media_type")
    response = await client.post("/v1/events/batch", content=b"[]", headers=JSON | {"content-encoding": "br"})
    assert_problem(response, 415, "unsupported_content_encoding")
    # And lines are for batches alone
    assert_problem(await client.post("/v1/events", content=b"{}", headers=NDJSON), 415, "unsupported_media_type")


@pytest.mark.parametrize("limits", [{"max_batch_events": 3}, {"max_queue": 3}], ids=["setting", "queue"])
@pytest.mark.parametrize("lines", [False, True], ids=["array", "lines"])
async def test_more_events_than_the_limit_are_refused_whole(store, limits, lines):
    async with running(store, **limits) as client:
        assert len(await results_of(client, [event()] * 3, lines=lines)) == 3
        assert_problem(await post(client, [event("t")] * 4, lines=lines), 413, "too_many_events")
    assert await store.load(["t"]) == [None]


async def test_the_body_has_a_limit_of_its_own(store, monkeypatch):
    monkeypatch.setattr(Settings, "max_body_bytes", 1024)
    async with running(store, max_batch_events=2) as client:
        fitting = json.dumps([event()]).encode().ljust(2048)
        assert (await client.post("/v1/events/batch", content=fitting, headers=JSON)).status_code == 200
        response = await client.post("/v1/events/batch", content=fitting + b" ", headers=JSON)
        assert_problem(response, 413, "body_too_large")
        response = await client.post("/v1/events", content=fitting, headers=JSON)
        assert_problem(response, 413, "body_too_large")


async def test_a_compressed_batch_has_the_limit_of_one_that_is_not(store):
    compressed = JSON | {"content-encoding": "gzip"}
    async with running(store, max_batch_events=2) as client:
        for spare, status in ((0, 200), (1, 413)):
            content = gzip.compress(json.dumps([event()]).encode().ljust(2 * Settings.max_body_bytes + spare))
            response = await client.post("/v1/events/batch", content=content, headers=compressed)
            assert response.status_code == status
    assert_problem(response, 413, "body_too_large")


async def test_an_event_of_a_batch_has_the_limit_of_one_alone(client):
    results = await results_of(client, [event(), event(item_id="x" * Settings.max_body_bytes), event()])
    assert [result["status"] for result in results] == [200, 413, 200]
    assert results[1]["problem"]["code"] == "body_too_large"


async def test_a_sender_that_takes_too_long_is_told_so(store):
    async def slowly():
        yield b"["
        await asyncio.Event().wait()

    async with running(store, request_timeout_s=0.1, redis_timeout_s=0.1) as client:
        assert_problem(await client.post("/v1/events/batch", content=slowly(), headers=JSON), 408, "body_timeout")


async def test_a_batch_that_is_sent_again_counts_once(client, store):
    # As many events of a session as are remembered; one more is refused, not folded
    events = [event(event_id=str(number)) for number in range(65)]
    first, second = [await results_of(client, events) for _ in range(2)]
    assert [result["status"] for result in first] == [200] * 64 + [422]
    assert first[64]["problem"]["code"] == "too_many_session_events"
    assert [result["score"] | {"duplicate": True} for result in first[:64]] == [
        result["score"] for result in second[:64]
    ]
    assert len((await store.load_histories(["s"]))[0]) == 64


async def test_a_duplicate_within_a_batch_gets_the_same_answer(client):
    first, again, other = await results_of(client, [event(event_id="e"), event(event_id="e"), event()])
    assert again["score"] == first["score"] | {"duplicate": True}
    assert other["score"]["events"] == 2


async def test_a_batch_that_finds_too_little_room_is_refused_whole(store):
    gate = asyncio.Event()
    load = store.load

    async def gated(session_ids):
        await gate.wait()
        return await load(session_ids)

    store.load = gated
    async with running(store, max_queue=4, dedupe_window=4) as client:
        running_and_waiting = [asyncio.create_task(client.post("/v1/events", json=event("s"))) for _ in range(3)]
        while "willbuy_queue_length 2.0" not in (await client.get("/metrics")).text.splitlines():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)
        response = await post(client, [event("t")] * 3)
        assert_problem(response, 503, "overloaded")
        assert response.headers["retry-after"] == "1"
        gate.set()
        assert all(response.status_code == 200 for response in await asyncio.gather(*running_and_waiting))
    assert await load(["t"]) == [None]


async def test_what_is_not_ready_in_time_is_its_own_problem_and_is_not_folded(store, monkeypatch):
    monkeypatch.setattr(Settings, "max_batch_size", 1)
    load = store.load

    async def slow_from_t_on(session_ids):
        if session_ids[0] > "s":
            await asyncio.sleep(1.5)
        return await load(session_ids)

    store.load = slow_from_t_on
    async with running(store, request_timeout_s=1, redis_timeout_s=0.5) as client:
        results = await results_of(client, [event(session) for session in "stuv"])
    assert [result["status"] for result in results] == [200, 503, 503, 503]
    assert [result["problem"]["code"] for result in results[1:]] == ["deadline_exceeded"] * 3
    # Of those, two had been taken into a batch, and one never was
    assert await load(["t", "u", "v"]) == [None] * 3


async def test_without_the_store_each_event_is_told_and_no_fault_of_the_service_is_logged(store, capsys):
    async def load(session_ids):
        return [StoreUnavailableError("gone")] * len(session_ids)

    store.load = load
    async with running(store) as client:
        results = await results_of(client, [event(), event("t")])
    assert [result["problem"]["code"] for result in results] == ["store_unavailable"] * 2
    assert "events_failed" not in capsys.readouterr().err


async def test_a_failure_nobody_foresaw_is_told_without_its_text_and_logged_once(store, capsys):
    async def load(session_ids):
        raise KeyError("internals")

    store.load = load
    async with running(store) as client:
        response = await post(client, [event(), event("t")])
    for result in response.json()["results"]:
        assert result["status"] == 500
        assert result["problem"]["code"] == "internal_error"
    assert "internals" not in response.text
    assert capsys.readouterr().err.count("events_failed") == 1


async def test_a_batch_makes_no_future_and_no_task_for_each_of_its_events(client, monkeypatch):
    await results_of(client, [event("warm")])
    loop = asyncio.get_running_loop()
    made: list[str] = []

    def counted(name, real):
        def make(*args, **kwargs):
            made.append(name)
            return real(*args, **kwargs)

        return make

    for name in ("create_future", "create_task"):
        monkeypatch.setattr(loop, name, counted(name, getattr(loop, name)))
    # Enough for a commit in two halves, as that of the many is
    await results_of(client, [event(f"few-{number}") for number in range(40)])
    few = len(made)
    await results_of(client, [event(f"many-{number}") for number in range(200)])
    # The batcher's own wait for what comes next may begin before or after the answer is read.
    assert abs(len(made) - 2 * few) <= 1


@hypothesis_settings(deadline=None, max_examples=300)
@given(
    body=st.one_of(
        st.binary(max_size=60),
        st.lists(st.sampled_from([b'{"session_id":"s","event_name":"x"}', b"", b" ", b"{", b"[1]", b"null"])).map(
            b"\n".join
        ),
        st.lists(st.sampled_from([event(), 1, None, [], {"a": 1}])).map(lambda value: json.dumps(value).encode()),
    ),
    is_lines=st.booleans(),
)
def test_any_body_is_events_or_a_problem(body, is_lines):
    try:
        events = asyncio.run(parse_events(body, is_lines=is_lines, max_events=5, max_event_bytes=65536))
    except (InvalidJsonError, InvalidRequestError, TooManyEventsError):
        return
    assert len(events) <= 5
    if is_lines:
        assert len(events) == sum(bool(line.strip()) for line in body.split(b"\n"))


async def test_a_deleted_session_is_gone_and_begins_anew(client):
    await results_of(client, [event(), event()])
    for _ in range(2):
        response = await client.delete("/v1/sessions/s")
        assert response.status_code == 204
        assert response.content == b""
    assert_problem(await client.get("/v1/sessions/s"), 404, "session_not_found")
    assert (await client.post("/v1/events", json=event())).json()["events"] == 1
    assert "willbuy_sessions_deleted_total 2.0" in (await client.get("/metrics")).text.splitlines()


async def test_without_the_store_nothing_is_said_to_be_deleted(client, store):
    async def delete(session_id):
        raise StoreUnavailableError("gone")

    store.delete = delete
    assert_problem(await client.delete("/v1/sessions/s"), 503, "store_unavailable")


async def test_a_trace_is_the_probability_after_each_event(client):
    events = [event(event_name="Product Viewed", item_id=str(i), timestamp=NOW_MS - 1000 + i) for i in range(3)]
    scores = [result["score"] for result in await results_of(client, [*events, event(event_name="purchase")])]
    session = (await client.get("/v1/sessions/s?trace=true")).json()
    trace = session.pop("trace")
    assert session.pop("trace_model") == FakeModel().fingerprint
    assert session == (await client.get("/v1/sessions/s?trace=false")).json()
    assert [point["probability"] for point in trace] == [score["probability"] for score in scores[:3]]
    assert trace[1] == {
        "event_name": "view_item",
        "timestamp": "2026-11-22T10:16:39.001000Z",
        "item_id": "1",
        "probability": scores[1]["probability"],
        "delta": trace[1]["delta"],
        "interventions": [],
    }
    assert trace[0]["delta"] is None
    before, after = (scores[place]["probability"] for place in range(2))
    assert trace[1]["delta"]["points"] == pytest.approx(100 * (after - before), abs=1e-4)
    odds = [math.log(p / (1 - p)) for p in (before, after)]
    assert trace[1]["delta"]["log_odds"] == pytest.approx(odds[1] - odds[0], abs=1e-4)


async def test_why_sums_to_the_change_of_the_last_event_and_has_words(client, store):
    added = event(event_name="add_to_cart", price=59.9, timestamp=NOW_MS - 21_000)
    scores = [result["score"] for result in await results_of(client, [added, event(timestamp=NOW_MS - 1000)])]
    session = (await client.get("/v1/sessions/s?why=true")).json()
    assert "trace" not in session
    why = session["why"]
    assert (why["event"], why["event_name"]) == (2, "page_view")
    assert [why["before"], why["after"]] == pytest.approx([score["probability"] for score in scores])
    for name in ("points", "log_odds"):
        assert sum(reason[name] for reason in why["reasons"]) == pytest.approx(why["change"][name])
    assert why["reasons"][0]["text"] == f"event page_view: {why['change']['points']:+.1f} points"
    both = (await client.get("/v1/sessions/s?why=true&trace=true")).json()
    assert (both["why"], len(both["trace"])) == (why, 2)
    assert_problem(await client.get("/v1/sessions/other?why=true"), 404, "session_not_found")
    await results_of(client, [event("bought", event_name="purchase")])
    assert (await client.get("/v1/sessions/bought?why=true")).json()["why"] is None
    store.sessions["s"].history.clear()
    assert_problem(await client.get("/v1/sessions/s?why=true"), 410, "history_gone")


async def test_a_trace_of_another_models_session_is_the_current_models(store):
    async with running(store, FakeModel("a")) as client:
        scores = [result["score"] for result in await results_of(client, [event(), event()])]
    async with running(store, FakeModel("b")) as client:
        session = (await client.get("/v1/sessions/s?trace=true")).json()
    (history,) = await store.load_histories(["s"])
    expected = [FakeModel("b").expected(history[: length + 1]) for length in range(2)]
    assert [point["probability"] for point in session["trace"]] == expected
    assert session["trace_model"] == FakeModel("b").fingerprint
    # Reading changes nothing
    assert session["probability"] == scores[1]["probability"]
    assert session["model"] == FakeModel("a").fingerprint


async def test_a_trace_without_a_session_or_without_events_or_with_a_bad_history(client, store):
    assert_problem(await client.get("/v1/sessions/s?trace=true"), 404, "session_not_found")
    await results_of(client, [event(event_name="purchase"), event("bad")])
    assert (await client.get("/v1/sessions/s?trace=true")).json()["trace"] == []
    store.sessions["bad"].history.clear()
    assert_problem(await client.get("/v1/sessions/bad?trace=true"), 410, "history_gone")
    assert_problem(await client.get("/v1/sessions/bad?trace=perhaps"), 422, "invalid_request")


async def test_a_trace_waits_for_its_turn_no_longer_than_a_request_may(store):
    class SlowModel(FakeModel):
        def traces(self, histories):
            asyncio.run(asyncio.sleep(0.4))
            return super().traces(histories)

    async with running(store, SlowModel(), request_timeout_s=0.1, redis_timeout_s=0.1) as client:
        await results_of(client, [event()])
        traces = [client.get("/v1/sessions/s?trace=true") for _ in range(3)]
        responses = await asyncio.gather(*traces)
    assert sorted(response.status_code for response in responses) == [200, 503, 503]
