"""Redis away, hanging and back, against a real process: 503 at once, nothing lost, recovery without help."""

import time

import httpx
import pytest

# What an answer may take without Redis; the deadline of a request is two seconds.
AT_ONCE_S = 1.5


@pytest.fixture
def redis_to_kill(start_redis):
    return start_redis("valkey-8.1", appendonly=True)


def post(service, **changes):
    body = {"session_id": "s-1", "event_name": "page_view"} | changes
    started = time.monotonic()
    response = httpx.post(f"{service.base_url}/v1/events", json=body, timeout=10)
    return response, time.monotonic() - started


def assert_unavailable(service):
    response, seconds = post(service)
    assert response.status_code == 503
    assert response.json()["code"] == "store_unavailable"
    assert response.headers["retry-after"] == "1"
    assert seconds < AT_ONCE_S
    ready = httpx.get(f"{service.base_url}/readyz")
    assert ready.status_code == 503
    assert ready.json()["checks"]["redis"] == "store_unavailable"
    assert httpx.get(f"{service.base_url}/healthz").status_code == 200


def wait_until_ready(service):
    deadline = time.monotonic() + 20
    while httpx.get(f"{service.base_url}/readyz").status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_redis_at_the_start_it_starts_and_recovers(service, redis_to_kill):
    redis_to_kill.kill()
    replica = service(redis_url=redis_to_kill.url)
    assert_unavailable(replica)
    redis_to_kill.start()
    wait_until_ready(replica)
    assert post(replica)[0].json()["events"] == 1


def test_a_redis_that_dies_and_comes_back_has_lost_nothing(service, redis_to_kill):
    replica = service(redis_url=redis_to_kill.url)
    first, _ = post(replica, event_id="e1")
    redis_to_kill.kill()
    assert_unavailable(replica)
    redis_to_kill.start()
    wait_until_ready(replica)
    # Then the event that was answered is still there, also as a duplicate, and the next one follows it
    again, _ = post(replica, event_id="e1")
    assert again.json() == first.json() | {"duplicate": True}
    assert post(replica, event_id="e2")[0].json()["events"] == 2


def test_a_redis_that_restarts_between_two_events_is_not_noticed(service, redis_to_kill):
    replica = service(redis_url=redis_to_kill.url)
    assert post(replica)[0].json()["events"] == 1
    redis_to_kill.kill()
    redis_to_kill.start()
    # Connections are stale and the script is unknown, and the caller sees neither
    assert post(replica)[0].json()["events"] == 2


def test_a_redis_that_hangs_is_503_at_once_and_folds_at_most_once(service, redis_to_kill):
    replica = service(redis_url=redis_to_kill.url)
    assert post(replica, event_id="e1")[0].json()["events"] == 1
    redis_to_kill.pause()
    assert_unavailable(replica)
    response, _ = post(replica, event_id="e2")
    assert response.status_code == 503
    redis_to_kill.resume()
    wait_until_ready(replica)
    assert post(replica, event_id="e2")[0].json()["events"] == 2
    assert post(replica, event_id="e2")[0].json()["events"] == 2


def test_the_password_of_the_url_is_never_logged(service, start_redis):
    server = start_redis("valkey-8.1")
    replica = service(redis_url=server.url.replace("//", "//user:hunter2@"))
    assert_unavailable(replica)
    assert "hunter2" not in replica.output()
    assert "user:***@127.0.0.1" in replica.output()
