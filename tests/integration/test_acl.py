"""The Redis user of docs/operate.md: enough for the whole service, and everything less is named by readiness."""

import re
import subprocess
import sys

import httpx
import pytest
import redis
from support.keys import make_key, write_keys
from support.paths import ROOT

PASSWORD = "of/the#service"
EVENT = {"session_id": "s-1", "event_name": "view_item", "item_id": "SKU-1"}


def documented_user():
    """Return the words of the command that docs/operate.md gives."""
    page = (ROOT / "docs/operate.md").read_text()
    (command,) = re.findall(r"^ACL SETUSER willbuy .*?(?=^```)", page, re.MULTILINE | re.DOTALL)
    return command.replace(">PASSWORD", f">{PASSWORD}").split()


@pytest.fixture
def server(start_redis):
    """A server of one's own with the user, as tests change what the user may do."""
    started = start_redis()
    with redis.Redis(port=started.port) as admin:
        admin.execute_command(*documented_user())
        yield started, admin


def url_of(started):
    return started.url.replace("//", "//willbuy:of%2Fthe%23service@")


def test_the_documented_user_is_enough_for_the_whole_traffic(server, service, tmp_path):
    started, admin = server
    running = service(
        redis_url=url_of(started), session_idle_s=1, outcome_grace_s=60, watch_artifact_s=0, shadow_share=0
    )
    with httpx.Client(base_url=running.base_url, timeout=30) as client:
        ready = client.get("/readyz")
        assert ready.status_code == 200, ready.text
        assert "warnings" not in ready.json()
        assert client.post("/v1/events", json=EVENT | {"event_id": "e"}).status_code == 200
        batch = client.post("/v1/events/batch", json=[EVENT | {"session_id": name} for name in "abcdef"])
        assert all("score" in result for result in batch.json()["results"])
        assert client.get("/v1/sessions/s-1?trace=true").status_code == 200
        assert client.get("/v1/sessions?limit=5").json()["sessions"]
        assert client.get("/v1/stats").status_code == 200
        bought = client.post("/v1/events", json=EVENT | {"session_id": "buyer", "event_name": "purchase"})
        assert bought.json()["outcome"] == "purchase"
        assert client.post("/v1/sessions/a/outcome", json={"outcome": "none"}).status_code == 200
        assert client.delete("/v1/sessions/b").status_code == 204
        with client.stream("GET", "/v1/stream") as stream:
            next(stream.iter_lines())
        # The sweeper closes what idles out
        while 'willbuy_outcomes_total{closed_by="idle",outcome="none"}' not in client.get("/metrics").text:
            pass
    collected = tmp_path / "collected"
    run = subprocess.run(
        [sys.executable, "-m", "app", "collect", "--redis-url", url_of(started), "--out", str(collected), "--once"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    assert [*collected.glob("*.parquet")]
    refused = [entry for entry in admin.acl_log() if entry["username"] == "willbuy"]
    assert refused == []
    assert "redis_failed" not in running.output()


def test_the_rate_limit_needs_no_other_user(server, service, tmp_path):
    started, admin = server
    made = make_key("events:write", events_per_s=1000)
    path = write_keys(tmp_path / "keys.toml", made)
    running = service(redis_url=url_of(started), api_keys_file=path, key_events_per_s=1000)
    answer = httpx.post(f"{running.base_url}/v1/events", json=EVENT, headers=made.headers)
    assert answer.status_code == 200, answer.text
    assert [entry for entry in admin.acl_log() if entry["username"] == "willbuy"] == []


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (["-eval", "-evalsha"], "NOPERM"),
        (["-eval"], "NOPERM"),
        (["-time"], "NOPERM"),
        (["-mget"], "NOPERM"),
        (["-xadd"], "NOPERM"),
        (["-zadd"], "NOPERM"),
        (["resetkeys", "~other:*"], "NOPERM"),
        (["resetpass", ">another"], "WRONGPASS"),
        (["off"], "WRONGPASS"),
    ],
)
def test_what_the_user_may_not_do_is_named_by_readiness_log_and_metrics(server, service, change, cause):
    started, admin = server
    admin.execute_command("ACL", "SETUSER", "willbuy", *change)
    running = service(redis_url=url_of(started))
    for _ in range(3):
        answer = httpx.get(f"{running.base_url}/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"]["redis"] == "store_unavailable"
        assert answer.json()["causes"] == {"redis": cause}
    metrics = httpx.get(f"{running.base_url}/metrics").text
    assert f'willbuy_store_failures_total{{cause="{cause}"}}' in metrics
    assert running.output().count("redis_failed") == 1
    assert "of/the#service" not in running.output() + metrics


@pytest.mark.parametrize("kind", ["NOAUTH", "READONLY", "OOM", "REFUSED"])
def test_a_server_that_does_not_serve_is_named(start_redis, service, kind):
    started = start_redis(options=("--requirepass", "secret-of-the-server") if kind == "NOAUTH" else ())
    url = started.url
    if kind == "READONLY":
        started.command("REPLICAOF", "127.0.0.1", "1")
    elif kind == "OOM":
        started.command("CONFIG", "SET", "maxmemory", "1")
    elif kind == "REFUSED":
        started.stop()
    running = service(redis_url=url)
    answer = httpx.get(f"{running.base_url}/readyz")
    assert answer.status_code == 503
    assert answer.json()["causes"] == {"redis": kind}
    assert kind in running.output()


@pytest.mark.parametrize("may_config", [True, False])
def test_an_eviction_policy_is_said_loudly(server, service, may_config):
    started, admin = server
    admin.config_set("maxmemory-policy", "allkeys-lru")
    if not may_config:
        admin.execute_command("ACL", "SETUSER", "willbuy", "-config|get")
    running = service(redis_url=url_of(started))
    answer = httpx.get(f"{running.base_url}/readyz")
    assert answer.status_code == 200
    assert "allkeys-lru" in answer.json()["warnings"]["redis"]
    assert "redis_evicts" in running.output()
    assert "willbuy_redis_evicts 1.0" in httpx.get(f"{running.base_url}/metrics").text
    assert "redis_failed" not in running.output()
