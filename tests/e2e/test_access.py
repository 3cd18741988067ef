"""Who gets in, against real processes with a real Valkey."""

import json
import time

import httpx
import pytest
from support.keys import make_key, write_keys
from support.service import Service

from app.client import Client, ProblemError

EVENT = {"session_id": "visitor-4711", "event_name": "page_view"}
PASSWORD = "a-password-of-redis"


@pytest.fixture
def locked_redis(start_redis):
    """A server with a password."""
    return start_redis("valkey-8.1", options=("--requirepass", PASSWORD))


def until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_service_that_nobody_said_who_may_use_does_not_start(artifact, valkey, tmp_path) -> None:
    service = Service(
        tmp_path / "log", {"artifact": artifact, "redis_url": valkey.url, "open_access": "false"}, workers=1
    )
    service.launch()
    assert service.wait() != 0
    assert service.tracebacks() == []
    (line,) = [line for line in service.output().splitlines() if '"start_failed"' in line]
    assert "WILLBUY_API_KEYS_FILE" in line
    assert "WILLBUY_OPEN_ACCESS" in line


def test_a_shop_with_its_key_does_what_the_key_allows(service, valkey, tmp_path) -> None:
    shop, desk = make_key("events:write", name="shop"), make_key("sessions:read", name="desk")
    path = write_keys(tmp_path / "keys.toml", shop, desk)
    replica = service(redis_url=valkey.url, api_keys_file=path)
    with Client(replica.base_url, api_key=shop.key, deadline_s=30) as client:
        assert client.send(EVENT).events == 1
        with pytest.raises(ProblemError, match="forbidden"):
            client.session("visitor-4711")
    with Client(replica.base_url, api_key=desk.key, deadline_s=30) as client:
        assert client.session("visitor-4711").events == 1
    with Client(replica.base_url, deadline_s=30) as client, pytest.raises(ProblemError, match="unauthorized"):
        client.send(EVENT)


@pytest.mark.slow
def test_every_worker_follows_the_file(service, valkey, tmp_path) -> None:
    old, new = make_key("events:write"), make_key("events:write")
    path = write_keys(tmp_path / "keys.toml", old)
    replica = service(redis_url=valkey.url, api_keys_file=path, workers=2)

    def statuses(key):
        # A connection each, so that all workers are asked
        return {
            httpx.post(f"{replica.base_url}/v1/events", json=EVENT, headers=key.headers).status_code for _ in range(8)
        }

    assert statuses(old) == {200}
    write_keys(path, old, new)
    until(lambda: statuses(new) == {200})
    assert statuses(old) == {200}
    write_keys(path, new)
    until(lambda: statuses(old) == {401})
    assert statuses(new) == {200}


def test_without_redis_a_limited_key_is_told_so_at_once_and_not_kept_waiting(service, start_redis, tmp_path) -> None:
    server = start_redis()
    limited = make_key("events:write", events_per_s=1000)
    replica = service(redis_url=server.url, api_keys_file=write_keys(tmp_path / "keys.toml", limited))
    assert httpx.post(f"{replica.base_url}/v1/events", json=EVENT, headers=limited.headers).status_code == 200
    server.kill()
    for _ in range(20):
        response = httpx.post(f"{replica.base_url}/v1/events", json=EVENT, headers=limited.headers, timeout=30)
        assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")
    metrics = httpx.get(f"{replica.base_url}/metrics").text
    (failures,) = [line for line in metrics.splitlines() if line.startswith("willbuy_rate_limit_failures_total ")]
    assert float(failures.split()[1]) >= 20


def test_the_log_has_no_secret_and_no_whole_session_id(service, locked_redis, tmp_path) -> None:
    # Given a service that knows a password and is asked with good and bad keys
    key, stranger = make_key("events:write", "sessions:read", name="shop"), make_key("events:write")
    path = write_keys(tmp_path / "keys.toml", key)
    url = f"redis://:{PASSWORD}@127.0.0.1:{locked_redis.port}/0"
    replica = service(redis_url=url, api_keys_file=path, log_level="debug")
    with httpx.Client(base_url=replica.base_url) as client:
        # When it is used, misused, and left without its Redis
        assert client.post("/v1/events", json=EVENT, headers=key.headers).status_code == 200
        assert client.get("/v1/sessions/visitor-4711?trace=true", headers=key.headers).status_code == 200
        assert client.post("/v1/events", json=EVENT, headers=stranger.headers).status_code == 401
        assert client.post("/v1/events", content=b"{", headers=key.headers).status_code == 415
        assert client.delete("/v1/sessions/visitor-4711", headers=key.headers).status_code == 204
        write_keys(path, key, stranger)
        until(lambda: "api_keys_read" in replica.output())
        path.write_text(f"{key.key}\n[[keys]\n")
        until(lambda: "api_keys_refused" in replica.output())
        locked_redis.kill()
        assert client.post("/v1/events", json=EVENT, headers=key.headers).status_code == 503
    assert replica.stop() == 0
    # Then
    log = replica.output()
    for secret in (PASSWORD, key.key, stranger.key, key.entry.sha256, "visitor-4711"):
        assert secret not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    (erased,) = [line for line in lines if line["event"] == "session_erased"]
    assert erased["key"] == "shop"
    assert len(erased["session_id"]) == 12


def test_a_password_that_is_wrong_is_not_logged_either(service, locked_redis, tmp_path) -> None:
    replica = service(redis_url=f"redis://:not-{PASSWORD}@127.0.0.1:{locked_redis.port}/0", log_level="debug")
    response = httpx.post(f"{replica.base_url}/v1/events", json=EVENT)
    assert response.status_code == 503
    assert PASSWORD not in response.text
    assert replica.stop() == 0
    assert PASSWORD not in replica.output()
