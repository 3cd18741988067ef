"""`willbuy doctor`: a sound installation passes; each fault that it is for is found, with what to do."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from support.keys import make_key, write_keys
from support.paths import ROOT
from support.redis_acl import documented_user, url_of
from typer.testing import CliRunner

from app.cli import cli
from app.doctor import SESSION_BYTES
from app.store.facts import ServerFacts, read_facts

Doctor = Callable[..., tuple[int, dict[str, dict[str, str]]]]


@pytest.fixture(scope="module")
def server(start_redis):
    """A server as operators should have it."""
    started = start_redis(appendonly=True, options=("--maxmemory", "100mb"))
    with redis.Redis(port=started.port) as admin:
        admin.execute_command(*documented_user())
    return started


@pytest.fixture(scope="module")
def environment(server, artifact, tmp_path_factory) -> dict[str, str]:
    keys = write_keys(tmp_path_factory.mktemp("keys") / "keys.toml", make_key("events:write"))
    return {
        "WILLBUY_ARTIFACT": str(artifact),
        "WILLBUY_REDIS_URL": url_of(server),
        "WILLBUY_API_KEYS_FILE": str(keys),
        "WILLBUY_REDIS_TIMEOUT_S": "2",
    }


@pytest.fixture
def doctor(environment) -> Doctor:
    def run(changes: Mapping[str, Any] | None = None, *options: str) -> tuple[int, dict[str, dict[str, str]]]:
        done = CliRunner().invoke(cli, ["doctor", "--json", *options], env={**environment, **(changes or {})})
        findings = json.loads(done.stdout)
        assert all(finding["advice"] for finding in findings if finding["state"] != "ok")
        # Of several findings of a check, the worst.
        findings.sort(key=lambda finding: ("ok", "warning", "error").index(finding["state"]))
        return done.exit_code, {finding["check"]: finding for finding in findings}

    return run


def test_a_sound_installation_passes(doctor) -> None:
    status, found = doctor(None, "--sessions", "20000")

    assert {name: one["state"] for name, one in found.items()} == dict.fromkeys(
        (
            *("settings", "keys", "artifact", "redis", "redis policy", "redis version", "redis persistence", "clock"),
            "redis memory",
        ),
        "ok",
    )
    assert status == 0


def test_people_get_a_line_each_and_what_to_do(environment) -> None:
    done = CliRunner().invoke(cli, ["doctor"], env={**environment, "WILLBUY_SESION_IDLE_S": "60"})

    assert done.exit_code == 0
    first, advice, *_ = done.stdout.splitlines()
    assert first == "warning settings: WILLBUY_SESION_IDLE_S is ignored: did you mean WILLBUY_SESSION_IDLE_S?"
    former = CliRunner().invoke(cli, ["doctor"], env={**environment, "WILLBUY_MAX_STREAMS": "60"})
    assert former.output.splitlines()[0] == "warning settings: WILLBUY_MAX_STREAMS is ignored: constant: 256"
    assert advice.strip() == "-> remove or correct the variable"


@pytest.mark.parametrize(
    ("changes", "check", "told"),
    [
        ({"WILLBUY_MAX_QUEUE": "0"}, "settings", "WILLBUY_MAX_QUEUE"),
        ({"WILLBUY_API_KEYS_FILE": None}, "keys", "there are no API keys"),
        ({"WILLBUY_API_KEYS_FILE": "/nowhere.toml"}, "keys", "/nowhere.toml"),
        ({"WILLBUY_ARTIFACT": "/nowhere.pt"}, "artifact", "/nowhere.pt"),
        ({"WILLBUY_ARTIFACT_SHA256": "0" * 64}, "artifact", "SHA-256"),
        ({"WILLBUY_INTERVENTIONS_FILE": "/nowhere.toml"}, "rules", "/nowhere.toml"),
        ({"WILLBUY_REDIS_URL": "redis://127.0.0.1:1/0"}, "redis", "REFUSED"),
        (
            {"WILLBUY_REDIS_CA_FILE": "/nowhere.pem", "WILLBUY_REDIS_URL": "rediss://h"},
            "redis",
            "WILLBUY_REDIS_CA_FILE",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_keeps_the_service_from_working_is_an_error(doctor, changes, check, told) -> None:
    status, found = doctor(changes)

    assert (status, found[check]["state"]) == (1, "error")
    assert told in found[check]["detail"]


def test_a_redis_user_without_the_commands_is_named(doctor, server) -> None:
    with redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", "narrow", "on", ">secret", "~*", "+@all", "-evalsha", "-eval")
    status, found = doctor({"WILLBUY_REDIS_URL": server.url.replace("//", "//narrow:secret@")})

    assert (status, found["redis"]["state"]) == (1, "error")
    assert found["redis"]["detail"].endswith("NOPERM")
    assert "docs/operate.md#the-user-of-the-service" in found["redis"]["advice"]
    assert "secret" not in json.dumps(found)


def test_a_server_for_trials_has_warnings_and_an_eviction_policy_is_an_error(doctor, start_redis) -> None:
    server = start_redis("redis-6.2", options=("--maxmemory-policy", "allkeys-lru"))
    status, found = doctor({"WILLBUY_REDIS_URL": server.url})

    assert status == 1
    assert found["redis policy"]["state"] == "error"
    assert found["redis policy"]["advice"] == "redis-cli config set maxmemory-policy noeviction"
    assert found["redis persistence"] == {
        "check": "redis persistence",
        "state": "warning",
        "detail": "none: a restart loses all live sessions",
        "advice": "redis-cli config set appendonly yes, and in its configuration",
    }
    assert found["redis version"]["detail"].startswith("Redis 6.2")


def test_memory_is_held_against_the_expected_sessions(doctor) -> None:
    status, found = doctor(None, "--sessions", "1000000")

    assert (status, found["redis memory"]["state"]) == (1, "error")
    assert "not for 1,000,000" in found["redis memory"]["detail"]
    assert f"{SESSION_BYTES:,} bytes a live session" in (ROOT / "docs/scaling.md").read_text()


SOUND = ServerFacts(
    name="Valkey 8.1.4",
    version=(7, 2, 4),
    used_bytes=1_000_000_000,
    limit_bytes=3_000_000_000,
    machine_bytes=64_000_000_000,
    appends=True,
    snapshots=True,
    write_failed=False,
    ahead_s=0.0,
)
# Of ten events each, in 0.7 of two gigabytes.
FITS = int(0.7 * 2e9 / SESSION_BYTES)


@pytest.mark.parametrize(
    ("servers", "check", "state", "told"),
    [
        ([SOUND], "redis memory", "ok", f"2.0 GB are free: room for {FITS:,} more"),
        ([SOUND, SOUND], "redis memory", "ok", "4.0 GB are free"),
        ([SOUND, replace(SOUND, used_bytes=4_000_000_000)], "redis memory", "ok", "2.0 GB are free"),
        ([SOUND, replace(SOUND, limit_bytes=None)], "redis memory", "warning", "no maxmemory"),
        ([replace(SOUND, ahead_s=2.5)], "clock", "warning", "2.5 s ahead"),
        ([replace(SOUND, ahead_s=-2.5)], "clock", "warning", "2.5 s behind"),
        ([replace(SOUND, ahead_s=-1.5)], "clock", "ok", "1.5 s behind"),
        ([replace(SOUND, write_failed=True)], "redis persistence", "error", "its last write to disk failed"),
        ([replace(SOUND, appends=False)], "redis persistence", "warning", "after the last snapshot"),
        # A managed server does not say.
        ([replace(SOUND, appends=False, snapshots=None)], "redis persistence", "warning", "after the last snapshot"),
        ([replace(SOUND, appends=False, snapshots=False)], "redis persistence", "warning", "loses all live sessions"),
        ([replace(SOUND, version=(6, 2))], "redis version", "ok", "Valkey"),
        ([replace(SOUND, version=(6, 0, 20))], "redis version", "error", "Valkey"),
        ([], "redis memory", "warning", "neither memory nor version"),
    ],
)
def test_what_servers_say_is_judged(doctor, monkeypatch, servers, check, state, told) -> None:
    async def facts(_client):
        return servers

    monkeypatch.setattr("app.doctor.read_facts", facts)
    status, found = doctor()

    assert (found[check]["state"], status) == (state, state == "error")
    assert told in found[check]["detail"]


class Replies:
    """A server that answers with texts, after a second each."""

    def __init__(self, info: str, clock_s: int, saved: object) -> None:
        self.now_s = 100.0
        self._replies = {"INFO": info.encode(), "TIME": (str(clock_s).encode(), b"500000"), "CONFIG": saved}

    async def server_shards(self):
        return [0]

    async def execute(self, commands):
        self.now_s += 2.0
        return [self._replies[command.arguments[0]] for command in commands]


@pytest.mark.parametrize(
    ("info", "saved", "expected"),
    [
        ("aof_enabled:1", [b"save", b"60 1"], {"appends": True, "snapshots": True, "write_failed": False}),
        ("aof_enabled:0", [b"save", b""], {"appends": False, "snapshots": False}),
        ("", RuntimeError("unknown command"), {"snapshots": None}),
        ("", [], {"snapshots": None}),
        ("aof_last_write_status:err", [], {"write_failed": True}),
        ("rdb_last_bgsave_status:err", [], {"write_failed": True}),
        ("redis_version:7.2.4\r\nvalkey_version:8.1.4", [], {"name": "Valkey 8.1.4", "version": (7, 2, 4)}),
        ("maxmemory:0\r\nused_memory:7", [], {"limit_bytes": None, "used_bytes": 7}),
    ],
)
@pytest.mark.anyio
async def test_facts_are_read_from_what_a_server_says(monkeypatch, info, saved, expected) -> None:
    server: Any = Replies(info, 101, saved)
    monkeypatch.setattr("app.store.facts.time", SimpleNamespace(time=lambda: server.now_s))

    (found,) = await read_facts(server)

    assert {name: getattr(found, name) for name in expected} == expected
    # Half of the two seconds that the answer took: asked at 100, read at 102, and the server said 101.5.
    assert found.ahead_s == 0.5


def test_a_clock_that_is_off_is_a_warning(doctor, monkeypatch) -> None:
    monkeypatch.setattr("app.store.facts.time", SimpleNamespace(time=lambda: time.time() - 30))
    status, found = doctor()

    assert (status, found["clock"]["state"]) == (0, "warning")
    assert found["clock"]["detail"] == "Redis' clock is 30.0 s ahead"


def test_open_access_and_no_redis_url_are_for_trials(doctor, tmp_path) -> None:
    changes = {"WILLBUY_API_KEYS_FILE": None, "WILLBUY_OPEN_ACCESS": "true", "WILLBUY_REDIS_URL": None}
    status, found = doctor({**changes, "XDG_RUNTIME_DIR": str(tmp_path)})

    assert status == 0
    assert (found["keys"]["state"], found["redis"]["state"]) == ("warning", "warning")
    assert "whose data ends with it" in found["redis"]["detail"]
