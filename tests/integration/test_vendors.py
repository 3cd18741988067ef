"""`POST /v1/ingest/...` with a real Redis: shapes as the vendors send them, signatures, statuses, sessions, rejects."""

import asyncio
import base64
import gzip
import hashlib
import hmac
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from redis import Redis
from support.fakes import FakeModel
from support.keys import make_key, write_keys

from app.errors import ConflictError
from app.main import create_app
from app.settings import Settings
from model.events import FIELD_NAMES
from training.data.prepare import prepare

pytestmark = pytest.mark.anyio

SEGMENT, RUDDERSTACK, SNOWPLOW, GA4 = (f"/v1/ingest/{name}" for name in ("segment", "rudderstack", "snowplow", "ga4"))
ROUTES = [SEGMENT, RUDDERSTACK, SNOWPLOW, GA4]
KEY = make_key("events:write", name="vendor")
READER = make_key("sessions:read", name="reader")
NOW = datetime.now(UTC).replace(microsecond=0)


def at(minutes: float = 0) -> str:
    """A time so many minutes after an hour ago."""
    return (NOW + timedelta(minutes=minutes - 60)).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def track(number: int, minutes: float = 0, **more: Any) -> dict[str, Any]:
    """A call as Segment's webhook has it."""
    return {
        "version": 1,
        "type": "track",
        "messageId": f"api-{number}",
        "anonymousId": "a-1",
        "userId": None,
        "event": "Product Viewed",
        "properties": {"product_id": "SKU-1", "category": "shoes", "price": "59.90", "currency": "EUR"},
        "context": {"device": {"type": "ios"}, "locale": "de-DE", "library": {"name": "analytics.js"}},
        "timestamp": at(minutes),
        "receivedAt": at(minutes),
    } | more


def enriched(number: int, minutes: float = 0, **more: Any) -> dict[str, Any]:
    """An event as Snowbridge's transformation to JSON has it."""
    return {
        "app_id": "shop",
        "platform": "web",
        "event": "unstruct",
        "event_name": "snowplow_ecommerce_action",
        "event_id": f"00000000-0000-4000-8000-{number:012}",
        "collector_tstamp": at(minutes),
        "derived_tstamp": at(minutes),
        "domain_userid": "u-1",
        "domain_sessionid": "s-1",
        "dvce_type": "Computer",
        "unstruct_event_com_snowplowanalytics_snowplow_ecommerce_snowplow_ecommerce_action_1": {"type": "product_view"},
        "contexts_com_snowplowanalytics_snowplow_ecommerce_product_1": [{"id": "SKU-1", "price": 59.9}],
    } | more


def collected(*events: dict[str, Any], minutes: float = 0, **more: Any) -> dict[str, Any]:
    """A request as the Measurement Protocol has it."""
    micros = int((NOW + timedelta(minutes=minutes - 60)).timestamp() * 1_000_000)
    return {"client_id": "1034.55", "timestamp_micros": micros, "events": list(events)} | more


def hit(name: str, session_id: str | None = "1795342500", **params: Any) -> dict[str, Any]:
    session = {} if session_id is None else {"session_id": session_id}
    return {"name": name, "params": {**session, "engagement_time_msec": 100, **params}}


EXAMPLES = {SEGMENT: track(1), RUDDERSTACK: track(1), SNOWPLOW: [enriched(1)], GA4: collected(hit("page_view"))}


@asynccontextmanager
async def running(url: str, *, model: FakeModel | None = None, **settings: Any):
    chosen = {"artifact": "unused.pt", "redis_url": url, **settings}
    if "api_keys_file" not in chosen:
        chosen["open_access"] = True
    app = create_app(Settings(**chosen), model=model or FakeModel())
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://willbuy") as client:
            client.services = app.state.services  # type: ignore[attr-defined]  # for what no route shows
            yield client


@pytest.fixture
async def client(valkey):
    async with running(valkey.url) as client:
        yield client


async def sent(client, path: str, body: Any, **options: Any) -> dict[str, Any]:
    response = await client.post(path, json=body, **options)
    assert response.status_code == 200, response.text
    return response.json()


def counts(answer: dict[str, Any]) -> tuple[int, int, int, int]:
    return answer["accepted"], answer["duplicates"], answer["ignored"], answer["rejected"]


async def sessions(client) -> dict[str, int]:
    # Each board is another one than the last, which may be cached.
    client.boards = getattr(client, "boards", 100) + 1
    found = (await client.get(f"/v1/sessions?limit={client.boards}")).json()["sessions"]
    return {one["session_id"]: one["events"] for one in found}


@pytest.mark.parametrize("path", ROUTES)
async def test_a_request_is_taken_once_however_often_it_comes(client, path) -> None:
    assert counts(await sent(client, path, EXAMPLES[path])) == (1, 0, 0, 0)
    assert counts(await sent(client, path, EXAMPLES[path])) == (0, 1, 0, 0)
    assert list((await sessions(client)).values()) == [1]


LOGS = {
    "segment": [
        {"type": "page", "messageId": "p", "anonymousId": "a-1", "timestamp": at(), "properties": {"path": "/"}},
        {"type": "identify", "messageId": "i", "anonymousId": "a-1", "timestamp": at(), "traits": {"email": "x"}},
        track(1, 1),
        track(2, 2, event="Order Completed", properties={"revenue": 25, "products": [{"sku": "S-2", "price": 5}, {}]}),
        # After more than half an hour the visitor has another session.
        track(3, 33, anonymousId=None, userId="u-7"),
        track(4, 40, event="Product List Viewed", properties={}),
    ],
    "snowplow": [
        enriched(1),
        enriched(2, 1, event="struct", event_name="event", se_action="add_to_cart", ti_sku="SKU-2", ti_price="5,5"),
        enriched(3, 2, domain_sessionid=None, domain_sessionidx=3),
        enriched(4, 3, event="transaction", event_name="transaction", tr_total=20.5),
    ],
    "ga4": [
        collected(hit("view_item_list"), hit("view_item", items=[{"item_id": "SKU-1", "price": 59.9}, {}])),
        collected(
            hit("purchase", transaction_id="T", value=120, items=[{"item_id": "SKU-1", "quantity": "2"}]), minutes=5
        ),
    ],
}


@pytest.mark.parametrize("vendor", LOGS)
async def test_a_log_and_requests_give_the_same_sessions(client, vendor, tmp_path) -> None:
    # Given the same records as a log and as requests, one of them twice
    records: list[Any] = LOGS[vendor]
    log = tmp_path / "records.jsonl"
    log.write_text("\n".join(map(json.dumps, [*records, records[0]])))
    dataset = prepare(log, tmp_path / "out", keep_open_sessions=True)
    for record in [*records, records[0]]:
        await sent(client, f"/v1/ingest/{vendor}", record)
    # Then events of the same sessions are the same, and so are outcomes
    names = [*FIELD_NAMES, *(f"property.{name}" for name in ("device", "locale", "items"))]
    rows = dataset.scan().collect()
    logged = {
        (row["timestamp_ms"], row["event_name"]): {
            name.removeprefix("property."): row[name] for name in names if row.get(name) is not None
        }
        for row in rows.iter_rows(named=True)
    }
    served, groups, closed = {}, set(), 0
    found = (await client.get("/v1/sessions?limit=100")).json()["sessions"]
    ids = {one["session_id"] for one in found} | {
        key.decode().rpartition(":s:")[2] for key in keys_of(client) if b":s:" in key
    }
    for session_id in ids:
        record, events = await client.services.store.load_session(session_id)
        closed += record.outcome.word == "purchase"
        groups.add(frozenset(one.timestamp_ms for one in events))
        for one in events:
            fields = {name: getattr(one, name) for name in FIELD_NAMES if getattr(one, name) is not None}
            served[one.timestamp_ms, one.event_name] = fields | {
                name: value for name, value in one.properties.items() if name in ("device", "locale", "items")
            }
    assert served == logged
    by_session = rows.group_by("session_id").agg("timestamp_ms")
    assert groups == {frozenset(times) for times in by_session["timestamp_ms"].to_list()}
    assert closed == dataset.counts.sessions.buyers == 1


def keys_of(client) -> list[bytes]:
    """Return the keys in Redis, without those by which the store tries its commands when it starts."""
    with Redis.from_url(client.services.settings.redis_url.get_secret_value()) as redis:
        return [key for key in redis.scan_iter() if b":probe:" not in key]


async def test_a_batch_counts_each_call_for_itself(client) -> None:
    calls = [
        track(1),
        {"type": "identify", "userId": "u"},
        "no call",
        track(2, 1, event=" "),
        track(3, 2, anonymousId="undefined"),
    ]
    calls += [track(4, 3, timestamp="yesterday"), track(5, 4, event="Cart\u0007Viewed"), track(6, 5)]
    for body, order in [
        ({"batch": calls, "sentAt": at(9)}, 0),
        ([{**one, "messageId": "x"} if isinstance(one, dict) else one for one in calls], 1),
    ]:
        answer = await sent(client, SEGMENT, body)
        assert (answer["ignored"], answer["rejected"]) == (1, 5), order
        assert [one["index"] for one in answer["rejects"]] == [2, 3, 4, 5, 6]
        assert {one["code"] for one in answer["rejects"]} == {"invalid_event"}
    # And what was wrong can be looked at, by who may read
    rejects = (await client.get("/v1/ingest/rejects", params={"limit": 5})).json()["rejects"]
    assert [one["vendor"] for one in rejects] == ["segment"] * 5
    assert any("undefined" in one["record"] and "stands for no id" in one["detail"] for one in rejects)
    metrics = (await client.get("/metrics")).text
    assert 'willbuy_vendor_events_total{result="invalid_event",vendor="segment"} 10.0' in metrics


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[{]",
        b"\xff\xfe",
        b'"text"',
        b"7",
        b"[[[]]]",
        b"[" * 60_000,
        b'{"a":' * 5000,
        b'{"events":{}}',
        b"[null,{}]",
    ],
    ids=[
        "empty",
        "open",
        "broken",
        "bytes",
        "text",
        "number",
        "lists",
        "deep-list",
        "deep-object",
        "events",
        "nothing",
    ],
)
async def test_a_body_that_cannot_be_read_is_no_error_that_the_vendor_repeats(client, path, body) -> None:
    for encoded, headers in [(body, {}), (gzip.compress(body), {"content-encoding": "gzip"})]:
        answer = await client.post(path, content=encoded, headers={"content-type": "application/json", **headers})
        assert answer.status_code == 200, answer.text
        assert counts(answer.json())[0] == 0
        assert counts(answer.json())[3] >= 1


async def test_limits_hold(client, valkey) -> None:
    large = track(1, properties={"note": "x" * 70_000})
    answer = await sent(client, SEGMENT, [large, track(2)])
    assert counts(answer) == (1, 0, 0, 1)
    assert answer["rejects"][0]["code"] == "body_too_large"
    too_many = await client.post(SEGMENT, json=[{"type": "identify"}] * 1001)
    assert (too_many.status_code, too_many.json()["code"]) == (413, "too_many_events")
    too_large = await client.post(
        SEGMENT, content=b"[" + b" " * 5_000_000 + b"]", headers={"content-type": "application/json"}
    )
    assert (too_large.status_code, too_large.json()["code"]) == (413, "body_too_large")
    form = await client.post(SEGMENT, content=b"a=1", headers={"content-type": "application/x-www-form-urlencoded"})
    assert form.status_code == 415
    of_one_session = await sent(client, SEGMENT, [track(number, number / 100, anonymousId="b") for number in range(70)])
    assert counts(of_one_session) == (64, 0, 0, 6)
    async with running(valkey.url, redis_key_prefix="other:", max_queue=2) as small:
        full = await small.post(SEGMENT, json=[track(number) for number in range(5)])
        assert (full.status_code, full.json()["code"]) == (503, "overloaded")


async def test_without_redis_the_vendor_is_told_to_send_again(start_redis) -> None:
    server = start_redis()
    async with running(server.url) as client:
        assert counts(await sent(client, SEGMENT, track(1))) == (1, 0, 0, 0)
        server.kill()
        for path in ROUTES:
            answer = await client.post(path, json=EXAMPLES[path])
            assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
            assert answer.headers["retry-after"]
        # But a body without an event needs no Redis
        assert counts(await sent(client, SEGMENT, {"type": "identify"})) == (0, 0, 1, 0)
        assert counts(await sent(client, SEGMENT, "no call")) == (0, 0, 0, 1)


async def test_two_replicas_put_a_visitors_events_into_one_session_each_once(redis_server) -> None:
    # Given ten visitors, each with events of two sessions; every request comes to both replicas at once
    calls = [
        track(visitor * 10 + number, minutes, anonymousId=f"v-{visitor}")
        for visitor in range(10)
        for number, minutes in enumerate((0, 10, 20, 55))
    ]
    async with running(redis_server.url) as one, running(redis_server.url) as other:
        answers = await asyncio.gather(*(sent(client, SEGMENT, call) for call in calls for client in (one, other)))
        assert sum(answer["accepted"] for answer in answers) == len(calls)
        assert sum(answer["duplicates"] for answer in answers) == len(calls)
        assert sorted((await sessions(one)).values()) == [1] * 10 + [3] * 10


async def test_a_late_event_joins_the_session_of_its_time_and_again_so(client) -> None:
    # Given two sessions, of which the first has an event that comes last
    first, last, late = track(1, 0), track(2, 50), track(3, 20)
    for call in (first, last, late, late, first, last):
        await sent(client, SEGMENT, call)
    assert sorted((await sessions(client)).values()) == [1, 2]
    # One between both joins the nearer one
    await sent(client, SEGMENT, track(4, 40))
    assert sorted((await sessions(client)).values()) == [2, 2]
    # The idle time itself is still one session, as `prepare` has it; more than that is another
    await sent(client, SEGMENT, [track(11, 0, anonymousId="b"), track(12, 30, anonymousId="b")])
    assert sorted((await sessions(client)).values()) == [2, 2, 2]


async def test_a_request_is_folded_in_the_order_of_its_times_with_a_purchase_last(client) -> None:
    bought = track(3, 5, event="Order Completed")
    answer = await sent(client, SEGMENT, [bought, "no call", track(2, 5), track(1, 0)])
    assert counts(answer) == (3, 0, 0, 1)
    assert answer["rejects"][0]["index"] == 1
    (session_id,) = {key.decode().rpartition(":s:")[2] for key in keys_of(client) if b":s:" in key}
    record, events = await client.services.store.load_session(session_id)
    assert record.outcome.word == "purchase"
    assert [one.event_name for one in events] == ["view_item", "view_item"]
    assert events[0].timestamp_ms < events[1].timestamp_ms


async def test_an_event_of_ga4_without_a_session_belongs_to_its_visitors(client) -> None:
    await sent(client, GA4, collected(hit("page_view", None)))
    await sent(client, GA4, collected(hit("view_item", None), minutes=10))
    await sent(client, GA4, collected(hit("view_item"), minutes=10))
    assert sorted((await sessions(client)).values()) == [1, 2]
    # As a browser's beacon sends it
    body = json.dumps(collected(hit("scroll"), minutes=11))
    for headers in ({"content-type": "text/plain;charset=UTF-8"}, {}):
        assert (await client.post(GA4, content=body, headers=headers)).status_code == 200


async def test_event_data_of_a_tag_managers_server_are_events(client) -> None:
    flat = {"event_name": "view_item", "client_id": "1034.55", "ga_session_id": "7", "items": [{"item_id": "SKU-1"}]}
    assert counts(await sent(client, GA4, [flat])) == (1, 0, 0, 0)
    named = {f"x-sp-{name}": value for name, value in enriched(9).items()}
    assert counts(await sent(client, SNOWPLOW, named)) == (1, 0, 0, 0)
    assert await sessions(client) == {"1034.55:7": 1, "s-1": 1}


async def test_what_a_batch_says_once_holds_for_each_of_its_calls(client) -> None:
    without = {name: value for name, value in track(1).items() if name != "context"}
    await sent(client, SEGMENT, {"batch": [without, track(2, 1)], "context": {"device": {"type": "tablet"}}})
    (session_id,) = await sessions(client)
    _, events = await client.services.store.load_session(session_id)
    assert [event.properties["device"] for event in events] == ["tablet", "ios"]


async def test_a_setting_accepts_ids_that_stand_for_nothing(client, valkey) -> None:
    call = track(1, anonymousId="undefined")
    assert counts(await sent(client, SEGMENT, call)) == (0, 0, 0, 1)
    async with running(valkey.url, allow_placeholder_ids=True) as lenient:
        assert counts(await sent(lenient, SEGMENT, call)) == (1, 0, 0, 0)


async def test_an_answer_shows_five_rejects_and_counts_all(client) -> None:
    answer = await sent(client, SEGMENT, [{"type": "unheard"}] * 7)
    assert (answer["rejected"], len(answer["rejects"])) == (7, 5)
    assert len((await client.get("/v1/ingest/rejects", params={"limit": 50})).json()["rejects"]) == 5


async def test_an_event_whose_session_others_keep_changing_is_to_be_sent_again(client, monkeypatch) -> None:
    async def overtaken(events: list[Any], **_: Any) -> list[Exception]:
        return [ConflictError("Others came first.") for _ in events]

    monkeypatch.setattr(client.services.batcher, "submit_many", overtaken)
    answer = await client.post(SEGMENT, json=track(1))
    assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")


class Renaming(FakeModel):
    """A model of a log in which a product view of the vendor was a page view."""

    def canonical_name(self, event_name: str) -> str:
        return "page_view" if event_name == "product_view" else super().canonical_name(event_name)


async def test_the_meaning_that_a_name_had_in_the_models_log_goes_first(valkey) -> None:
    for model, meaning in [(FakeModel(), "view_item"), (Renaming(), "page_view")]:
        async with running(valkey.url, model=model) as client:
            await sent(client, SNOWPLOW, enriched(1, domain_sessionid=meaning))
            _, (event,) = await client.services.store.load_session(meaning)
            assert event.event_name == meaning


def signed(body: str, secret: str) -> str:
    return hmac.new(secret.encode(), body.encode(), hashlib.sha1).hexdigest()


async def test_segments_signature_is_as_good_as_its_key(valkey, tmp_path, capfd) -> None:
    secrets = {"old": 'old " secret', "new": "new-secret"}
    signing = [make_key("events:write", name=name, segment_secret=text) for name, text in secrets.items()]
    reading = make_key("sessions:read", name="reading", segment_secret="read-secret")
    json_type = {"content-type": "application/json"}
    one, two = json.dumps(track(1)), json.dumps(track(2))
    keys = write_keys(tmp_path / "keys.toml", KEY, reading, *signing)
    async with running(valkey.url, api_keys_file=keys) as client:

        async def status(body: str, signature: str | bytes, path: str = SEGMENT) -> int:
            headers = {**json_type, "x-signature": signature}
            return (await client.post(path, content=body.encode(), headers=headers)).status_code

        assert await status(one, signed(one, secrets["new"])) == 200
        assert await status(one, signed(one, secrets["old"]).upper()) == 200
        # Of a list, Segment signs the first call
        assert await status(f"[{one},{two}]", signed(one, secrets["new"])) == 200
        for signature in (signed(two, secrets["new"]), signed(one, "other"), signed(one, "read-secret"), "", b"\xe9"):
            assert await status(one, signature) == 401
        assert await status(f"[{two},{one}]", signed(one, secrets["new"])) == 401
        assert await status(one, signed(one, secrets["new"]), RUDDERSTACK) == 401
        # A key goes before a signature
        headers = {**json_type, "x-signature": "wrong", "authorization": f"Bearer {KEY.key}"}
        assert (await client.post(SEGMENT, content=one, headers=headers)).status_code == 200
        broken = {**json_type, "x-signature": signed("x", secrets["new"]), "content-encoding": "gzip"}
        assert (await client.post(SEGMENT, content=b"x", headers=broken)).status_code == 401
    async with running(valkey.url, api_keys_file=write_keys(tmp_path / "others.toml", KEY)) as client:
        headers = {**json_type, "x-signature": signed(one, "")}
        assert (await client.post(SEGMENT, content=one, headers=headers)).status_code == 401
    # And no secret is shown
    shown = "".join(capfd.readouterr()) + repr(signing) + str(signing[0].entry)
    assert not any(secret in shown for secret in secrets.values())


async def test_keys_come_as_the_vendors_can_send_them(valkey, tmp_path) -> None:
    keys = write_keys(tmp_path / "keys.toml", KEY, READER)
    async with running(valkey.url, api_keys_file=keys) as client:

        async def status(path: str, **headers: str) -> int:
            return (await client.post(path, json=EXAMPLES[path.partition("?")[0]], headers=headers)).status_code

        basic = base64.b64encode(f"willbuy:{KEY.key}".encode()).decode()
        for path in ROUTES:
            assert await status(path) == 401
            assert await status(path, authorization=f"Bearer {KEY.key}") == 200
            assert await status(path, **{"x-api-key": KEY.key}) == 200
            assert await status(path, authorization=f"Basic {basic}") == 200
            assert await status(path, authorization="Basic not-base64") == 401
            assert await status(path, authorization=f"Bearer {READER.key}") == 403
        assert await status(f"{GA4}?measurement_id=G-1&api_secret={KEY.key}") == 200
        assert await status(f"{GA4}?measurement_id=G-1&api_secret=wrong") == 401
        assert await status(f"{SEGMENT}?api_secret={KEY.key}") == 401
        # Elsewhere a password is no key
        batch = await client.post("/v1/events/batch", json=[], headers={"authorization": f"Basic {basic}"})
        assert batch.status_code == 401
        looking = {"authorization": f"Bearer {KEY.key}"}
        assert (await client.get("/v1/ingest/rejects", headers=looking)).status_code == 403
        looking = {"authorization": f"Bearer {READER.key}"}
        assert (await client.get("/v1/ingest/rejects", headers=looking)).status_code == 200


async def test_each_event_of_a_limited_key_counts(valkey, tmp_path) -> None:
    slow = make_key("events:write", name="slow", events_per_s=0.5)
    signing = make_key("events:write", name="signing", events_per_s=0.5, segment_secret="new-secret")
    json_type = {"content-type": "application/json"}
    async with running(valkey.url, api_keys_file=write_keys(tmp_path / "keys.toml", slow, signing)) as client:
        body = json.dumps([track(1), track(2), track(3)])
        right = {**json_type, "x-signature": signed(json.dumps(track(1)), "new-secret")}
        for _ in range(6):
            # A forged signature uses up nothing
            forged = await client.post(SEGMENT, content=body, headers={**json_type, "x-signature": "0" * 40})
            assert forged.status_code == 401
        for headers in ({**json_type, **slow.headers}, right):
            statuses = [(await client.post(SEGMENT, content=body, headers=headers)).status_code for _ in range(2)]
            assert statuses == [200, 429]


async def test_the_last_rejects_are_kept_for_a_day(client) -> None:
    for _ in range(25):
        await sent(client, SEGMENT, [{"type": "track", "event": "x" * 3000}] * 6)
    rejects = (await client.get("/v1/ingest/rejects", params={"limit": 100})).json()["rejects"]
    assert len(rejects) == 100
    assert max(len(one["record"]) for one in rejects) == 2000
    with Redis.from_url(client.services.settings.redis_url.get_secret_value()) as redis:
        assert 0 < redis.pttl("wb:{00}:rejects") <= 86_400_000
        # And a visitor is forgotten some time after the session
        await sent(client, SEGMENT, track(1))
        (key,) = redis.keys("*:visitor:*")
        assert 0 < redis.pttl(key) <= (1800 + 3600) * 1000
