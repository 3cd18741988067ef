"""`willbuy doctor`: checks what the service would start with, by the service's own checks, and says what to do."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import ValidationError

from app.auth.keys import AccessError
from app.auth.setup import read_access
from app.monitoring.health import Readiness
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.settings import Settings, faults_of, removed_settings, unknown_settings
from app.store.facts import OLDEST_VERSION, ServerFacts, read_facts
from app.store.redis.connection import open_client
from app.wiring import check_redis_options, connection_options, open_models, open_rule_file, open_store
from model.clock import now_ms
from model.own_redis import running_url

# Memory of a live session of ten events (docs/scaling.md).
SESSION_BYTES: Final = 1525
# Memory that sessions may fill; the rest is for the log of outcomes, buffers and fragmentation.
_SHARE_FOR_SESSIONS: Final = 0.7
_LARGEST_SKEW_S: Final = 2.0
_GB: Final = 1e9

State = Literal["ok", "warning", "error"]

# By the error word of Redis, or of the connection.
_ADVICE: Final = {
    "NOPERM": "give the Redis user the commands of docs/operate.md#the-user-of-the-service",
    "NOAUTH": "put user and password into WILLBUY_REDIS_URL",
    "WRONGPASS": "correct user and password in WILLBUY_REDIS_URL",
    "READONLY": "name the primary in WILLBUY_REDIS_URL; redis+sentinel:// follows it",
    "OOM": "give Redis more memory, or shorten WILLBUY_SESSION_IDLE_S",
    "MISCONF": "free disk space where Redis writes its snapshots",
    "CERTIFICATE": "name the authority in WILLBUY_REDIS_CA_FILE",
    "TLS": "use rediss:// exactly where the server speaks TLS",
    "REFUSED": "start Redis, or correct host and port in WILLBUY_REDIS_URL",
    "UNKNOWN_HOST": "correct the host in WILLBUY_REDIS_URL",
    "TIMEOUT": "check the network to Redis; WILLBUY_REDIS_TIMEOUT_S bounds each wait",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        check: what was looked at.
        state: `error`: the service does not start, refuses events, or loses them.
        detail: what was found.
        advice: what to do; empty where nothing is.
    """

    check: str
    state: State
    detail: str
    advice: str = ""


async def examine(sessions: int | None = None) -> list[Finding]:
    """Return the findings on the environment's settings, and on the files and servers that they name.

    Args:
        sessions: live sessions to expect; None: say how many fit.
    """
    try:
        settings = Settings()
    except ValidationError as exc:
        advice = "correct the variable; docs/reference/settings.md has its values"
        return [Finding("settings", "error", fault, advice) for fault in faults_of(exc)]
    findings = [
        Finding("settings", "warning", f"{name} is ignored: {hint}", "remove or correct the variable")
        for name, hint in (removed_settings() | unknown_settings()).items()
    ]
    findings = findings or [Finding("settings", "ok", "all are valid")]
    findings += [_key_file(settings), *_artifact_and_rules(settings)]
    if "WILLBUY_REDIS_URL" not in os.environ:
        url = running_url()
        if url is None:
            detail = "WILLBUY_REDIS_URL is not set: `willbuy serve` starts a server whose data ends with it"
            return [*findings, Finding("redis", "warning", detail, "name a server in WILLBUY_REDIS_URL")]
        settings = settings.model_copy(update={"redis_url": type(settings.redis_url)(url)})
    return [*findings, *await _redis(settings, sessions)]


def _key_file(settings: Settings) -> Finding:
    try:
        access = read_access(settings)
    except AccessError as exc:
        return Finding("keys", "error", str(exc), "make a key: willbuy key new --name shop --scope events:write")
    if access.is_open:
        detail = "open access: everybody who reaches the port may ask"
        return Finding("keys", "warning", detail, "name a key file in WILLBUY_API_KEYS_FILE before you open the port")
    return Finding("keys", "ok", f"{settings.api_keys_file} can be used")


def _artifact_and_rules(settings: Settings) -> Iterator[Finding]:
    logger = build_logger(log_level="error")
    try:
        models = open_models(settings, None, Metrics(), logger)
        models.current.warm_up()
    except ValueError as exc:
        yield Finding("artifact", "error", str(exc), "name the file that `willbuy train` wrote in WILLBUY_ARTIFACT")
        return
    yield Finding("artifact", "ok", f"{settings.artifact} loads: model {models.current.fingerprint}")
    if settings.interventions_file is None:
        return
    try:
        open_rule_file(settings, models, now_ms=now_ms, logger=logger)
    except ValueError as exc:
        yield Finding("rules", "error", str(exc), "try the file: willbuy interventions check FILE SESSIONS")
        return
    yield Finding("rules", "ok", f"{settings.interventions_file} can be used")


async def _redis(settings: Settings, sessions: int | None) -> list[Finding]:
    try:
        check_redis_options(settings)
    except ValueError as exc:
        return [Finding("redis", "error", str(exc), "correct the setting that the message names")]
    store = open_store(settings, Metrics(), build_logger(log_level="error"))
    client = open_client(settings.redis_url.get_secret_value(), connection_options(settings))
    try:
        readiness = Readiness(store, takes_events=lambda: True, is_draining=lambda: False)
        state = (await readiness.checks())["redis"]
        if state != "ok":
            cause = readiness.causes.get("redis", state)
            advice = _ADVICE.get(cause, "see WillbuyBreakerOpen in docs/runbook.md")
            return [Finding("redis", "error", f"{settings.masked_redis_url}: {cause}", advice)]
        findings = [Finding("redis", "ok", f"{settings.masked_redis_url} runs all commands of an event")]
        policy = (await readiness.warnings()).get("redis")
        if policy is None:
            findings.append(Finding("redis policy", "ok", "noeviction"))
        else:
            findings.append(
                Finding("redis policy", "error", policy, "redis-cli config set maxmemory-policy noeviction")
            )
        servers = await read_facts(client)
    finally:
        await client.close()
        await store.close()
    for server in servers:
        findings += [_version(server), _persistence(server), _clock(server)]
    return [*findings, *_memory(servers, sessions)]


def _version(server: ServerFacts) -> Finding:
    if server.version < OLDEST_VERSION:
        return Finding("redis version", "error", server.name, "use Redis 6.2 or later, or Valkey")
    return Finding("redis version", "ok", server.name)


def _persistence(server: ServerFacts) -> Finding:
    if server.write_failed:
        return Finding("redis persistence", "error", "its last write to disk failed", _ADVICE["MISCONF"])
    if server.appends:
        return Finding("redis persistence", "ok", "append-only file")
    advice = "redis-cli config set appendonly yes, and in its configuration"
    if server.snapshots is False:
        return Finding("redis persistence", "warning", "none: a restart loses all live sessions", advice)
    detail = "no append-only file: a crash loses what came after the last snapshot"
    return Finding("redis persistence", "warning", detail, advice)


def _clock(server: ServerFacts) -> Finding:
    detail = f"Redis' clock is {abs(server.ahead_s):.1f} s {'ahead' if server.ahead_s > 0 else 'behind'}"
    if abs(server.ahead_s) > _LARGEST_SKEW_S:
        return Finding("clock", "warning", detail, "run a time service on both machines: timedatectl set-ntp true")
    return Finding("clock", "ok", detail)


def _memory(servers: Sequence[ServerFacts], sessions: int | None) -> list[Finding]:
    if not servers:
        return [
            Finding("redis memory", "warning", "Redis tells neither memory nor version", "allow the user INFO and TIME")
        ]
    findings = []
    if any(server.limit_bytes is None for server in servers):
        advice = "redis-cli config set maxmemory 2gb, below the memory of its machine or container"
        findings.append(Finding("redis memory", "warning", "no maxmemory: the kernel may end Redis", advice))
    room = sum(max(0, (server.limit_bytes or server.machine_bytes) - server.used_bytes) for server in servers)
    fit = int(room * _SHARE_FOR_SESSIONS / SESSION_BYTES)
    detail = f"{room / _GB:.1f} GB are free: room for {fit:,} more live sessions of ten events"
    if sessions is not None and sessions > fit:
        needed = sessions * SESSION_BYTES / _SHARE_FOR_SESSIONS / _GB
        advice = f"give Redis {needed:.1f} GB more than it uses now (docs/scaling.md)"
        return [*findings, Finding("redis memory", "error", f"{detail}, not for {sessions:,}", advice)]
    return [*findings, Finding("redis memory", "ok", detail)]
