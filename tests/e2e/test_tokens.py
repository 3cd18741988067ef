"""Tokens for browsers, against real processes with a real Valkey."""

import time

import httpx
import pytest
import redis
from support.keys import make_key, write_keys

DESK = make_key("sessions:read", name="desk")
SHOP = make_key("events:write", name="shop")
MINE, OTHER = "mine/of the shop", "other"


@pytest.fixture
def keys(tmp_path):
    return write_keys(tmp_path / "keys.toml", DESK, SHOP)


@pytest.fixture
def shop(service, valkey, keys):
    """A service with two sessions."""
    replica = service(redis_url=valkey.url, api_keys_file=keys)
    with httpx.Client(base_url=replica.base_url, timeout=30) as client:
        for session_id in (MINE, OTHER):
            event = {"session_id": session_id, "event_name": "view_item"}
            assert client.post("/v1/events", json=event, headers=SHOP.headers).status_code == 200
        yield client


def token_for(client, **wanted):
    made = client.post("/v1/tokens", json=wanted, headers=DESK.headers)
    assert made.status_code == 200, made.text
    assert made.headers["cache-control"] == "no-store"
    return made.json()["token"]


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_token_of_a_session_reads_that_session_and_nothing_else(shop) -> None:
    token = token_for(shop, session_id=f" {MINE}")
    # By header and by query, with the trace, under the id as the service reads it
    assert shop.get(f"/v1/sessions/{MINE}", headers=bearer(token)).json()["session_id"] == MINE
    traced = shop.get(f"/v1/sessions/{MINE}", params={"trace": "true", "token": token})
    assert len(traced.json()["trace"]) == 1
    for method, path in [
        ("GET", f"/v1/sessions/{OTHER}"),
        ("DELETE", f"/v1/sessions/{MINE}"),
        ("POST", f"/v1/sessions/{MINE}/outcome"),
        ("GET", "/v1/sessions"),
        ("GET", "/v1/stats"),
        ("GET", "/v1/stream"),
        ("GET", "/v1/model"),
        ("POST", "/v1/tokens"),
    ]:
        refused = shop.request(method, path, headers=bearer(token))
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), path
    # Events have a way of their own, which knows no tokens
    event = {"session_id": MINE, "event_name": "view_item"}
    assert shop.post("/v1/events", json=event, headers=bearer(token)).status_code == 401
    assert shop.post("/v1/events/batch", json=[event], headers=bearer(token)).status_code == 403


def test_a_token_of_the_board_opens_the_stream_as_a_browser_does_and_no_session(shop) -> None:
    token = token_for(shop)
    assert len(shop.get("/v1/sessions", params={"token": token, "limit": 1}).json()["sessions"]) == 1
    assert shop.get("/v1/stats", headers=bearer(token)).status_code == 200
    with shop.stream("GET", "/v1/stream", params={"token": token}) as stream:
        assert stream.status_code == 200
        assert next(line for line in stream.iter_lines() if line.startswith("event:"))
    assert shop.get(f"/v1/sessions/{MINE}", headers=bearer(token)).status_code == 403


def test_a_token_ends_with_its_lifetime_and_so_does_its_stream(shop) -> None:
    token = token_for(shop, lifetime_s=2)
    with shop.stream("GET", "/v1/stream", params={"token": token}) as stream:
        assert stream.status_code == 200
        # The stream ends by itself
        for _ in stream.iter_lines():
            pass
    until(lambda: shop.get("/v1/stats", headers=bearer(token)).status_code == 401)
    assert shop.get("/v1/stats", params={"token": token}).json()["code"] == "unauthorized"


def test_a_token_ends_with_the_key_that_it_was_made_with(shop, keys) -> None:
    token = token_for(shop)
    assert shop.get("/v1/stats", headers=bearer(token)).status_code == 200
    write_keys(keys, SHOP)
    until(lambda: shop.get("/v1/stats", headers=bearer(token)).status_code == 401)


def test_every_replica_knows_a_token_and_redis_does_not_have_it_in_clear(shop, service, valkey, keys) -> None:
    token = token_for(shop, session_id=MINE)
    other = service(redis_url=valkey.url, api_keys_file=keys)
    assert httpx.get(f"{other.base_url}/v1/sessions/{MINE}", headers=bearer(token)).status_code == 200
    assert token not in other.output()
    with redis.Redis(port=valkey.port) as admin:
        (key,) = admin.scan_iter("wb:*token:*", count=10_000)
        assert token.encode() not in key + admin.get(key)
        assert 0 < admin.pttl(key) <= 300_000


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"lifetime_s": 0}, "lifetime_s"),
        ({"lifetime_s": 3601}, "lifetime_s"),
        ({"session": MINE}, "session"),
        ({"session_id": "undefined"}, "session_id"),
        ([], "body"),
    ],
)
def test_a_token_that_cannot_be_had_is_refused_by_the_field(shop, body, named) -> None:
    refused = shop.post("/v1/tokens", json=body, headers=DESK.headers)
    assert refused.status_code == 422
    (error,) = refused.json()["errors"]
    assert named in error["field"]
    # Only an event has properties.
    assert "properties" not in error["message"]


def test_who_may_not_read_makes_no_token_and_a_made_up_one_is_unknown(shop) -> None:
    assert shop.post("/v1/tokens", json={}, headers=SHOP.headers).status_code == 403
    assert shop.post("/v1/tokens", json={}).status_code == 401
    for made_up in ("wbt_", "wbt_" + "x" * 43, "\udcff"):
        assert shop.get("/v1/stats", params={"token": made_up.encode("utf-8", "surrogateescape")}).status_code == 401


def test_with_open_access_a_page_with_a_token_works_as_well(service, valkey) -> None:
    replica = service(redis_url=valkey.url)
    with httpx.Client(base_url=replica.base_url, timeout=30) as client:
        token = client.post("/v1/tokens", json={}).json()["token"]
        assert client.get("/v1/sessions", params={"token": token}).status_code == 200


def test_without_redis_a_token_cannot_be_checked_and_the_answer_says_so(service, start_redis, keys) -> None:
    server = start_redis("valkey-8.1")
    replica = service(redis_url=server.url, api_keys_file=keys, redis_timeout_s=0.2)
    with httpx.Client(base_url=replica.base_url, timeout=30) as client:
        token = token_for(client)
        server.stop()
        refused = client.get("/v1/stats", headers=bearer(token))
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert client.post("/v1/tokens", json={}, headers=DESK.headers).status_code == 503
