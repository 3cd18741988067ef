"""What real senders do, against a real service and a real Redis."""

import gzip
import json
import os
import signal
import socket
import time
from urllib.parse import quote

import httpx
import pytest
from support.raw_http import parsed
from support.service import Service

from app.client import Client

EVENT = {"session_id": "s-1", "event_name": "view_item"}


@pytest.fixture(scope="module")
def shared(shared_valkey, artifact, tmp_path_factory):
    service = Service(
        tmp_path_factory.mktemp("senders") / "service.log",
        {"artifact": artifact, "redis_url": shared_valkey.url},
    )
    service.start()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def client(shared):
    with httpx.Client(base_url=shared.base_url, timeout=60) as client:
        yield client


def post(client, **changes):
    return client.post("/v1/events", json=EVENT | changes)


@pytest.mark.parametrize("wrong", ["\ud83d", "\x00", "\n", "\x7f", "\x85"])
@pytest.mark.parametrize("field", [*EVENT, "event_id", "item_id", "item_category", "properties.device", "properties"])
def test_one_rule_for_all_text(client, field, wrong) -> None:
    text = f"a{wrong}"
    changes: dict[str, object] = {field: text}
    if field == "properties":
        changes = {"properties": {text: 1}}
    elif field == "properties.device":
        changes = {"properties": {"device": text}}
    body = json.dumps(EVENT | changes)
    headers = {"content-type": "application/json"}
    response = client.post("/v1/events", content=body, headers=headers)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"].startswith(field)
    batch = client.post("/v1/events/batch", content=f"[{body},{json.dumps(EVENT)}]", headers=headers).json()
    assert [item["status"] for item in batch["results"]] == [422, 200]
    lines = client.post(
        "/v1/events/batch", content=f"{body}\n{json.dumps(EVENT)}", headers={"content-type": "application/jsonl"}
    ).json()
    assert [item["status"] for item in lines["results"]] == [422, 200]


@pytest.mark.parametrize("nothing", [None, ""])
def test_null_and_an_empty_text_are_absent(client, nothing) -> None:
    optional = ("event_id", "timestamp", "item_id", "item_category", "price", "quantity", "properties")
    for name in optional:
        assert post(client, **{name: nothing}).status_code == 200, name
    assert post(client, properties={"device": nothing, "other": 1}).status_code == 200
    many = {f"p{number}": nothing for number in range(100)} | {"device": "x"}
    assert post(client, properties=many).status_code == 200
    assert post(client, session_id=nothing).status_code == 422
    assert post(client, event_name=nothing).status_code == 422
    # No id of an event is no duplicate
    assert not post(client, event_id=nothing).json()["duplicate"]


@pytest.mark.parametrize("value", ["undefined", "NULL", "  ", "(not set)", "NaN", "{{client_id}}", "[object Object]"])
def test_ids_that_stand_for_nothing_are_refused(client, value) -> None:
    for field in ("session_id", "event_id"):
        response = post(client, **{field: value})
        assert response.status_code == 422
        assert [(error["field"], error["code"]) for error in response.json()["errors"]] == [(field, "placeholder_id")]

    lines = json.dumps(EVENT | {"session_id": value})
    batch = client.post("/v1/events/batch", content=lines, headers={"content-type": "application/x-ndjson"}).json()
    assert batch["results"][0]["problem"]["errors"][0]["code"] == "placeholder_id"
    path = f"/v1/sessions/{quote(value, safe='')}"
    outcome = client.post(f"{path}/outcome", json={"outcome": "none"})
    for response in (client.get(path), client.get(path, params={"trace": "true"}), client.delete(path), outcome):
        assert response.status_code == 422
        assert response.json()["code"] == "invalid_request"
        assert response.json()["errors"][0]["code"] == "placeholder_id"


def test_a_setting_accepts_them(service, valkey) -> None:
    lenient = service(redis_url=valkey.url, allow_placeholder_ids="true")
    for value in ("null", " "):
        assert httpx.post(f"{lenient.base_url}/v1/events", json=EVENT | {"session_id": value}).status_code == 200
        path = f"{lenient.base_url}/v1/sessions/{quote(value)}"
        assert httpx.get(path).json()["session_id"] == value
        assert httpx.post(f"{path}/outcome", json={"outcome": "none"}).status_code == 200
        assert httpx.delete(path).status_code == 204


OTHERS = {
    "event_name": "purchase",
    "item_id": "SKU-2",
    "item_category": "hats",
    "price": 1.5,
    "quantity": 2,
    "properties": {"device": "other"},
    "value": 9.5,
}


@pytest.mark.parametrize("field", OTHERS)
def test_an_event_id_with_another_body_is_refused_and_stores_nothing(client, field) -> None:
    session_id = f"reused-{field}"
    first = post(client, session_id=session_id, event_id="e", item_id="SKU-1", price=1).json()
    other = {"session_id": session_id, "event_id": "e", "item_id": "SKU-1", "price": 1, field: OTHERS[field]}
    refused = post(client, **other)
    assert (refused.status_code, refused.json()["code"]) == (422, "event_id_reused")
    after = EVENT | {"session_id": session_id, "event_id": "f"}
    batch = client.post("/v1/events/batch", json=[EVENT | other, after]).json()["results"]
    assert batch[0]["problem"]["code"] == "event_id_reused"
    assert (batch[1]["score"]["events"], batch[1]["score"]["outcome"]) == (2, "open")
    again = post(client, session_id=session_id, event_id="e", item_id="SKU-1", price=1).json()
    assert again == first | {"duplicate": True}


def test_the_same_event_otherwise_written_is_the_same(client) -> None:
    now_ms = int(time.time() * 1000)
    one = {"event_id": "e", "session_id": "alike", "timestamp": now_ms, "price": 60, "properties": {"a": 1, "b": "x"}}
    assert not post(client, **one).json()["duplicate"]
    for change in (
        # Many senders write the time of sending
        {"timestamp": now_ms + 1},
        {"price": 60.0, "properties": {"b": "x", "a": 1.0}},
        {"properties": {"a": 1, "b": "x", "c": None}, "session_id": " alike"},
    ):
        assert post(client, **one | change).json()["duplicate"], change


def test_one_request_with_one_id_and_two_bodies(client) -> None:
    events = [EVENT | {"session_id": "twice", "event_id": "e", "item_id": name} for name in ("one", "two", "one")]
    results = client.post("/v1/events/batch", json=events).json()["results"]
    assert [item["status"] for item in results] == [200, 422, 200]
    assert results[2]["score"]["duplicate"]


@pytest.mark.parametrize("quotes", ["", '"'])
def test_an_idempotency_key_is_the_id_of_an_event_that_has_none(client, quotes) -> None:
    event = EVENT | {"session_id": f"keyed{len(quotes)}"}
    headers = {"Idempotency-Key": f"{quotes}8e03978e-40d5{quotes}"}
    answers = [client.post("/v1/events", json=event, headers=headers).json() for _ in range(2)]
    assert [answer["duplicate"] for answer in answers] == [False, True]
    # The key is an id like any other, and the body's own goes first
    assert post(client, **event | {"event_id": "8e03978e-40d5"}).json()["duplicate"]
    assert not client.post("/v1/events", json=event | {"event_id": "own"}, headers=headers).json()["duplicate"]
    for wrong in ("", '""', "x" * 129, "null"):
        refused = client.post("/v1/events", json=event, headers={"Idempotency-Key": wrong})
        assert refused.status_code == (200 if wrong == "" else 422), wrong


def test_an_item_that_stands_for_nothing_is_absent(client) -> None:
    answer = post(client, session_id="item-1", item_id="undefined").json()
    assert answer["warnings"] == ["item_id: 'undefined' stands for no item; it counts as absent"]
    assert client.get("/v1/sessions/item-1", params={"trace": "true"}).json()["trace"][0]["item_id"] is None
    assert post(client, session_id="item-2", item_id=None).json()["probability"] == answer["probability"]


@pytest.mark.parametrize(
    ("session_id", "spellings"),
    [
        ("id-1", ["id-1", " id-1", "id-1\ufeff", "\u200bid-1\u00a0"]),
        ("12", ["12", "12.0", "12.", " 12.00 "]),
        ("\u00e9-1", ["e\u0301-1", "\u00e9-1"]),
        ("0", ["-0", "0", "0.0"]),
    ],
    ids=["blanks", "numbers", "accents", "zero"],
)
def test_spellings_of_one_id_are_one_session_wherever_the_id_enters(client, session_id, spellings) -> None:
    events = 0
    for spelling in spellings:
        event = EVENT | {"session_id": spelling}
        in_lines = {"content-type": "application/x-ndjson"}
        batches = [
            client.post("/v1/events/batch", json=[event]),
            client.post("/v1/events/batch", content=json.dumps(event), headers=in_lines),
        ]
        answers = [batch.json()["results"][0]["score"] for batch in batches]
        answers.append(post(client, session_id=spelling).json())
        # The parser that names every fault reads this one, because of the null
        answers.append(post(client, session_id=spelling, properties={"device": None}).json())
        with Client(str(client.base_url), deadline_s=30) as ours:
            answers.append(ours.send(event).model_dump())
        for answer in answers:
            events += 1
            assert (answer["session_id"], answer["events"]) == (session_id, events)
    for spelling in spellings:
        path = f"/v1/sessions/{quote(spelling, safe='')}"
        assert client.get(path).json()["events"] == events
        assert client.post(f"{path}/outcome", json={"outcome": "none"}).json()["outcome"] == "none"
    # A request has at most 64 events of one session, however it is spelt
    many = [EVENT | {"session_id": spelling} for spelling in spellings for _ in range(40)]
    results = client.post("/v1/events/batch", json=many).json()["results"]
    assert [item["status"] for item in results] == [200] * 64 + [results[-1]["status"]] * (len(many) - 64)
    assert results[-1]["problem"]["code"] == "too_many_session_events"
    with Client(str(client.base_url), deadline_s=30) as ours:
        assert all(sent.score is not None for sent in ours.send_batch(many))
    assert client.delete(f"/v1/sessions/{quote(spellings[-1], safe='')}").status_code == 204
    assert client.get(f"/v1/sessions/{quote(session_id, safe='')}").status_code == 404


def test_a_purchase_by_another_name_is_one_and_what_looks_like_one_is_reported(client, shared) -> None:
    assert post(client, session_id="b-1", event_name="Order Completed").json()["outcome"] == "purchase"
    assert post(client, session_id="b-2", event_name="checkout_completed").json()["outcome"] == "purchase"
    for _ in range(3):
        answer = post(client, session_id="b-3", event_name="Bestellung bestätigt").json()
        assert answer["outcome"] == "open"
        assert any("reads like a purchase" in warning for warning in answer["warnings"])
    assert "willbuy_purchase_like_names_total 3.0" in client.get("/metrics").text.splitlines()
    # Once a minute
    assert shared.output().count("purchase_like_name") == 1


def test_heads_and_allowed_methods(client) -> None:
    for path in ("/healthz", "/readyz"):
        assert client.head(path).status_code == 200
        assert client.head(path).content == b""
    for path, allowed in {
        "/healthz": {"GET", "HEAD"},
        "/v1/events": {"POST"},
        "/v1/sessions": {"GET"},
        "/v1/sessions/x": {"GET", "DELETE"},
        "/v1/model/reload": {"POST"},
    }.items():
        response = client.put(path)
        assert response.status_code == 405
        assert set(response.headers["allow"].split(", ")) == allowed, path


def test_an_outcome_is_not_a_session_that_can_be_erased(client) -> None:
    assert post(client, session_id="X").status_code == 200
    assert post(client, session_id="X/outcome").status_code == 200
    response = client.delete("/v1/sessions/X/outcome")
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert client.get("/v1/sessions/X%2Foutcome").status_code == 200
    assert client.delete("/v1/sessions/X%2Foutcome").status_code == 204
    assert client.get("/v1/sessions/X%2Foutcome").status_code == 404
    assert client.get("/v1/sessions/X").status_code == 200


@pytest.mark.parametrize(
    "media_type",
    ["application/x-ndjson", "application/ndjson", "application/jsonl", "APPLICATION/JSONL; charset=utf-8"],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_lines_by_any_name_with_a_bom_and_compressed(client, media_type, compressed) -> None:
    body = b"\xef\xbb\xbf" + "\r\n".join([json.dumps(EVENT)] * 3).encode()
    headers = {"content-type": media_type} | ({"content-encoding": "gzip"} if compressed else {})
    content = gzip.compress(body) if compressed else body
    response = client.post("/v1/events/batch", content=content, headers=headers)
    assert [item["status"] for item in response.json()["results"]] == [200] * 3


def test_compressed_bodies_are_bounded_on_both_sides(client) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    event = json.dumps(EVENT).encode()
    halves = gzip.compress(event[:10]) + gzip.compress(event[10:])
    for content, status in (
        (gzip.compress(event), 200),
        (halves, 200),
        (gzip.compress(event + b" " * 70_000), 413),
        (gzip.compress(b" " * 50_000_000), 413),
        (os.urandom(70_000), 413),
        (event, 400),
        (gzip.compress(event)[:-9], 400),
        (gzip.compress(b"") * 100, 400),
        (b"", 400),
    ):
        assert client.post("/v1/events", content=content, headers=headers).status_code == status
    assert client.post("/v1/events", content=event, headers=headers | {"content-encoding": "br"}).status_code == 415


@pytest.mark.parametrize(("factor", "unit"), [(1, "seconds"), (10**6, "microseconds")])
def test_times_in_another_unit_are_named(client, factor, unit) -> None:
    response = post(client, timestamp=int(time.time()) * factor)
    assert response.status_code == 422
    assert f"look like {unit}" in response.json()["detail"]
    outcome = client.post("/v1/sessions/s-1/outcome", json={"outcome": "none", "timestamp": int(time.time()) * factor})
    assert f"look like {unit}" in outcome.json()["detail"]


def test_the_examples_of_the_description_are_accepted(client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    found = 0
    for path, operations in paths.items():
        for media_type, content in operations.get("post", {}).get("requestBody", {}).get("content", {}).items():
            if "example" not in content:
                continue
            example = content["example"]
            body = example if isinstance(example, str) else json.dumps(example)
            response = client.post(path, content=body, headers={"content-type": media_type})
            assert response.status_code == 200, response.text
            assert all(item["status"] == 200 for item in response.json().get("results", []))
            found += 1
    # One event, batches as an array and as lines, and one of each vendor.
    assert found == 7


def test_hostile_batches_are_answered_and_others_meanwhile(client) -> None:
    headers = {"content-type": "application/json"}
    event = json.dumps(EVENT)
    for content, status, problem in (
        (json.dumps([EVENT | {"properties": {f"k{n}": [] for n in range(250_000)}}]), None, None),
        (f"[{event},{json.dumps({f'k{n}': [] for n in range(250_000)})}]", None, None),
        (json.dumps({f"k{n}": [] for n in range(250_000)}), 422, "invalid_request"),
        ("[" * 3_000_000, 400, "invalid_json"),
        ("[" + "1," * 1_500_000 + "1]", 413, "too_many_events"),
        ('[{"session_id":' + "1" * 3_000_000 + "}]", 200, None),
        ('[{"session_id":"s","event_name":"v","item_id":"\\ud83d"},' + "1," * 1_000_000 + "1]", 413, "too_many_events"),
    ):
        response = client.post("/v1/events/batch", content=content, headers=headers)
        assert response.status_code in ({200, 413} if status is None else {status})
        if problem is not None:
            assert response.json()["code"] == problem
        assert len(response.content) < 20_000
    lines = {"content-type": "application/x-ndjson"}
    response = client.post("/v1/events/batch", content=b"x" * 3_000_000 + b"\n" + event.encode(), headers=lines)
    assert [item["status"] for item in response.json()["results"]] == [413, 200]
    assert client.post("/v1/events/batch", content=b"x\n" * 1_500_000, headers=lines).status_code == 413
    assert client.post("/v1/events/batch", content=b"\n" * 3_000_000, headers=lines).status_code == 422
    assert post(client).status_code == 200


# While the process does not run


def raw_request(event) -> bytes:
    body = json.dumps(event).encode()
    head = b"POST /v1/events HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answer_on(connection):
    received = b""
    while True:
        part = connection.recv(65536)
        received += part
        answer = next(iter(parsed(received)), None) if b"\r\n\r\n" in received else None
        if not part or (answer is not None and len(answer.body) == int(answer.headers["content-length"])):
            return answer


def test_a_body_that_lies_in_the_socket_is_no_slow_one_and_what_is_too_old_is_not_stored(service, valkey) -> None:
    paused, other = (service(redis_url=valkey.url, request_timeout_s=1, redis_timeout_s=1) for _ in range(2))
    assert httpx.post(f"{paused.base_url}/v1/events", json=EVENT | {"session_id": "old"}).status_code == 200
    sent = raw_request(EVENT | {"session_id": "old"})
    halves, whole, left = (socket.create_connection(("127.0.0.1", paused.port), timeout=60) for _ in range(3))
    halves.sendall(sent[:-20])
    # Read before the stop: the service answers another request after it
    assert httpx.get(f"{paused.base_url}/healthz").status_code == 200
    os.kill(paused.pid, signal.SIGSTOP)
    try:
        halves.sendall(sent[-20:])
        whole.sendall(sent)
        left.sendall(sent)
        left.close()
        begun = time.monotonic()
        # When another replica erases the session, and the deadline of all three passes
        assert httpx.delete(f"{other.base_url}/v1/sessions/old").status_code == 204
        wait_until(lambda: time.monotonic() > begun + 1.5)
    finally:
        os.kill(paused.pid, signal.SIGCONT)
    # Then each answer asks for a retry, none says that the body was slow, and the session stays erased
    for connection in (halves, whole):
        answer = answer_on(connection)
        assert (answer.status, json.loads(answer.body)["code"]) == (503, "deadline_exceeded")
        connection.close()
    assert httpx.get(f"{other.base_url}/v1/sessions/old").status_code == 404


@pytest.mark.parametrize("path", ["/v1/events", "/v1/events/batch"])
def test_a_caller_that_leaves_withdraws_what_is_not_stored(service, start_redis, path) -> None:
    redis = start_redis()
    running = service(redis_url=redis.url, request_timeout_s=20, redis_timeout_s=20)
    assert httpx.get(f"{running.base_url}/readyz").status_code == 200
    assert httpx.post(f"{running.base_url}/v1/events", json=EVENT | {"session_id": "warm"}).status_code == 200
    event = EVENT | {"session_id": "gone"}
    body = json.dumps([event] if path.endswith("batch") else event).encode()
    head = b"POST %b HTTP/1.1\r\nHost: shop\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    redis.pause()
    try:
        with socket.create_connection(("127.0.0.1", running.port), timeout=60) as connection:
            connection.sendall(head % (path.encode(), len(body)) + body)
            # The service has read the request when it answers a later one
            assert httpx.get(f"{running.base_url}/healthz").status_code == 200
        # And has noticed the end of that connection when it counts an answer without a reader
        wait_until(lambda: 'status="499"' in httpx.get(f"{running.base_url}/metrics").text)
    finally:
        redis.resume()
    assert httpx.post(f"{running.base_url}/v1/events", json=EVENT | {"session_id": "warm"}).status_code == 200
    assert httpx.get(f"{running.base_url}/v1/sessions/gone").status_code == 404


def test_no_answer_is_later_than_the_deadline_though_redis_is_slow(service, start_redis, tmp_path) -> None:
    redis = start_redis()
    running = service(redis_url=redis.url, request_timeout_s=1, redis_timeout_s=1)
    assert httpx.post(f"{running.base_url}/v1/events", json=EVENT).status_code == 200
    redis.pause()
    try:
        with httpx.Client(base_url=running.base_url, timeout=30) as client:
            for method, where, options in (
                ("POST", "/v1/events", {"json": EVENT}),
                ("POST", "/v1/events/batch", {"json": [EVENT]}),
                ("POST", "/v1/sessions/s-1/outcome", {"json": {"outcome": "none"}}),
                ("GET", "/v1/sessions/s-1", {}),
                ("DELETE", "/v1/sessions/s-1", {}),
                ("GET", "/v1/sessions", {}),
            ):
                response = client.request(method, where, **options)
                item = response.json()["results"][0] if where.endswith("batch") else {"status": response.status_code}
                assert item["status"] == 503, where
    finally:
        redis.resume()
