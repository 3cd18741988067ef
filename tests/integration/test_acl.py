"""The Redis user of docs/operate.md: enough for the whole service, and everything less is named by readiness."""

import asyncio
import re
import socket
import subprocess
import sys
import time

import httpx
import polars as pl
import pytest
import redis
from support.keys import make_key, write_keys
from support.paths import ROOT
from support.redis_acl import PASSWORD, documented_user, url_of
from support.tls import behind_tls, make_certificate
from support.webhook_secrets import new_secret

from app.auth.scopes import Scope

OUTCOMES = re.compile(r"^willbuy_outcomes_total\{.*\} (.*)$", re.MULTILINE)
EVENT = {"session_id": "s-1", "event_name": "view_item", "item_id": "SKU-1"}


@pytest.fixture
def server(start_redis):
    """A server of one's own with the user, as tests change what the user may do."""
    started = start_redis()
    with redis.Redis(port=started.port) as admin:
        admin.execute_command(*documented_user())
        yield started, admin


def run_traffic(base_url, headers=None, *, with_rules=False):
    """Call everything that needs Redis, and wait until the outcomes of all sessions are published."""
    with httpx.Client(base_url=base_url, timeout=30, headers=headers) as client:
        ready = client.get("/readyz")
        assert ready.status_code == 200, ready.text
        assert "warnings" not in ready.json()
        first = client.post("/v1/events", json=EVENT | {"event_id": "e"})
        assert first.status_code == 200
        if with_rules:
            assert first.json()["interventions"]
        batch = client.post("/v1/events/batch", json=[EVENT | {"session_id": name} for name in "abcdef"])
        assert all("score" in result for result in batch.json()["results"])
        assert client.get("/v1/sessions/s-1?trace=true").status_code == 200
        assert client.get("/v1/sessions?limit=5").json()["sessions"]
        assert client.get("/v1/stats").status_code == 200
        bought = client.post("/v1/events", json=EVENT | {"session_id": "buyer", "event_name": "purchase"})
        assert bought.json()["outcome"] == "purchase"
        assert client.post("/v1/sessions/a/outcome", json={"outcome": "none"}).status_code == 200
        assert client.delete("/v1/sessions/b").status_code == 204
        for call in ({"type": "page", "anonymousId": "a"}, {"type": "page"}):
            assert client.post("/v1/ingest/segment", json=call).status_code == 200
        assert client.get("/v1/ingest/rejects").json()["rejects"]
        with client.stream("GET", "/v1/stream") as stream:
            next(stream.iter_lines())
        # The sweeper closes what idles out, and publishes that
        sessions = client.get("/v1/sessions?limit=100").json()["sessions"]
        while sum(map(float, OUTCOMES.findall(client.get("/metrics").text))) < len(sessions):
            time.sleep(0.1)
        if with_rules:
            run_rules(client)


def run_rules(client):
    """Call everything that rules and webhooks need; the receiver of the webhook is not there."""
    sold = {"session_id": "sold", "event_name": "view_item"}
    assert client.post("/v1/events", json=sold).json()["interventions"]
    assert client.post("/v1/events", json=sold | {"event_name": "purchase", "value": 12.5}).status_code == 200
    while not (webhook := client.get("/v1/interventions").json()["webhooks"][0])["waiting"]:
        time.sleep(0.1)
    while 'result="connect"' not in client.get("/metrics").text:
        time.sleep(0.1)
    for on in (False, True):
        assert client.post("/v1/interventions/capped/switch", json={"on": on}).status_code == 200
    assert client.get(f"/v1/webhooks/{webhook['name']}/dead").status_code == 200
    for body in ({}, {"ids": ["msg_1"]}):
        assert client.post(f"/v1/webhooks/{webhook['name']}/resend", json=body).status_code == 200
    rule = client.get("/v1/interventions").json()["rules"][0]
    while not rule["treatment"]["revenue"]:
        time.sleep(0.1)
        rule = client.get("/v1/interventions").json()["rules"][0]


def collect(url, out, *options):
    command = [sys.executable, "-m", "app", "collect", "--redis-url", url, "--out", str(out), "--once", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_documented_user_is_enough_for_the_whole_traffic(server, service, tmp_path):
    started, admin = server
    rules = tmp_path / "rules.toml"
    (tmp_path / "secret").write_text(new_secret())
    rules.write_text(
        '[[rules]]\nname = "capped"\ncap_per_hour = 1000\n'
        '[[webhooks]]\nurl = "https://127.0.0.1:1/"\nsecret_file = "secret"\nallow_private = true\n'
    )
    running = service(
        redis_url=url_of(started),
        session_idle_s=1,
        outcome_grace_s=60,
        watch_artifact_s=0,
        shadow_share=0,
        interventions_file=rules,
    )
    run_traffic(running.base_url, with_rules=True)
    collected = tmp_path / "collected"
    run = collect(url_of(started), collected)
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


def test_services_with_different_prefixes_share_a_redis_without_seeing_each_other(server, service, tmp_path):
    """Each has a user that may touch only keys of its prefix, so that a key without the prefix would be refused."""
    started, admin = server
    prefixes = {"berlin": "shop-b:", "wien": "shop/w#"}
    key = make_key(*Scope, events_per_s=100)
    limited = make_key("events:write", name="limited", events_per_s=0.1)
    path = write_keys(tmp_path / "keys.toml", key, limited)
    running = {}
    for name, prefix in prefixes.items():
        admin.execute_command(*documented_user(name, prefix))
        running[name] = service(
            redis_url=url_of(started, name),
            redis_key_prefix=prefix,
            api_keys_file=path,
            session_idle_s=2,
            outcome_grace_s=60,
        )
    berlin, wien = (running[name].base_url for name in prefixes)
    only = {"session_id": "only in Berlin", "event_name": "view_item"}
    assert httpx.post(f"{berlin}/v1/events", json=only, headers=key.headers).json()["events"] == 1
    assert httpx.post(f"{wien}/v1/events", json=only, headers=key.headers).json()["events"] == 1
    assert httpx.delete(f"{wien}/v1/sessions/only in Berlin", headers=key.headers).status_code == 204
    assert httpx.get(f"{berlin}/v1/sessions/only in Berlin", headers=key.headers).status_code == 200
    assert httpx.get(f"{wien}/v1/sessions", headers=key.headers).json()["sessions"] == []
    assert httpx.post(f"{berlin}/v1/events", json=EVENT, headers=limited.headers).status_code == 200
    assert httpx.post(f"{berlin}/v1/events", json=EVENT, headers=limited.headers).status_code == 429
    assert httpx.post(f"{wien}/v1/events", json=EVENT, headers=limited.headers).status_code == 200
    for url in (berlin, wien):
        assert httpx.get(f"{url}/v1/stats", headers=key.headers).json()["replicas"] == 1
        run_traffic(url, key.headers)
    keys = [key.decode() for key in admin.scan_iter()]
    assert {next((one for one in prefixes.values() if key.startswith(one)), key) for key in keys} == {
        *prefixes.values()
    }
    for name, prefix in prefixes.items():
        run = collect(url_of(started, name), tmp_path / name, "--redis-key-prefix", prefix)
        assert run.returncode == 0, run.stderr
        sessions = pl.read_parquet(tmp_path / name / "*.parquet")["session_id"].str.replace(r"@\d+$", "").unique()
        assert {"c", "buyer"} <= {*sessions}
        assert ("only in Berlin" in sessions) is (name == "berlin")
    assert admin.acl_log() == []


def test_collect_refuses_a_prefix_that_no_service_can_have(tmp_path):
    run = collect("redis://127.0.0.1:1/0", tmp_path / "out", "--redis-key-prefix", "a{b}:")
    assert run.returncode == 1
    assert "--redis-key-prefix: expected 1 to 64 printable ASCII characters" in run.stderr.replace("\n", " ")
    assert "Traceback" not in run.stderr


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
    assert PASSWORD not in running.output() + metrics


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


async def named(running, cause):
    """Wait until readiness, the log and the metrics name a cause; one answer may be of the time before."""
    async with httpx.AsyncClient(base_url=running.base_url, timeout=30) as client:
        while (answer := await client.get("/readyz")).json().get("causes") != {"redis": cause}:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)
        assert answer.status_code == 503
        assert (await client.post("/v1/events", json=EVENT)).status_code == 503
        metrics = (await client.get("/metrics")).text
    assert f'willbuy_store_failures_total{{cause="{cause}"}}' in metrics
    (line,) = [line for line in running.output().splitlines() if "redis_failed" in line and cause in line]
    return line


@pytest.mark.anyio
async def test_a_server_whose_script_does_not_end_is_named(start_redis, service):
    started = start_redis(options=("--lua-time-limit", "5"))
    running = service(redis_url=started.url)
    with socket.create_connection(("127.0.0.1", started.port)) as endless:
        endless.sendall(b"EVAL 'while true do end' 0\r\n")
        try:
            await named(running, "BUSY")
        finally:
            started.command("SCRIPT", "KILL")
    async with httpx.AsyncClient(base_url=running.base_url, timeout=30) as client:
        while (await client.get("/readyz")).status_code != 200:  # noqa: ASYNC110 - of another process
            await asyncio.sleep(0.05)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["unknown authority", "another host"])
async def test_a_certificate_that_is_not_trusted_is_named(valkey, service, tmp_path, kind):
    certificate = make_certificate(tmp_path)
    async with behind_tls(valkey, certificate) as port:
        # The certificate is of 127.0.0.1
        is_strange = kind == "unknown authority"
        host, settings = ("127.0.0.1", {}) if is_strange else ("localhost", {"redis_ca_file": certificate[0]})
        running = await asyncio.to_thread(service, redis_url=f"rediss://{host}:{port}/0", **settings)
        assert "certificate" in (await named(running, "CERTIFICATE")).lower()


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
