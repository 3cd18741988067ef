"""One run: load, faults on schedule, and the oracle's verdict at the end."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Final

from redis.asyncio import Redis, RedisCluster
from support.artifacts import write_artifact
from support.redis_keys import board_key
from support.redis_servers import RedisServer
from support.redis_topologies import RedisCluster as ClusterServers

from app.errors import StoreError
from app.store.history_codec import Entry
from app.store.interventions import DECISIONS_KEPT, START
from app.store.record_codec import Record
from app.store.redis.connection import ConnectionOptions
from app.store.sessions import RedisStore
from faults.decisions import IDLE_S, are_settled, judge_decisions, write_rules
from faults.driver import Driver
from faults.faults import Fault
from faults.fleet import Fleet
from faults.kafka import KafkaDriver, consume_command, start_broker
from faults.ledger import Ledger
from faults.oracle import Oracle
from faults.report import Report, counts_of
from faults.workload import SessionPlan, session_plans
from model.predictor import StateDtype, load_predictor
from model.redis_keys import SHARDS

REQUEST_TIMEOUT_S: Final = 2.0
REDIS_TIMEOUT_S: Final = 0.5
# A client waits so much longer than the service's deadline, because test machines are busy.
SLACK_S: Final = 3.0
# How late the idle rule may be on a busy machine before the oracle judges.
_IDLE_PATIENCE_S: Final = 10.0
_WEEK_S: Final = 7 * 86_400


@dataclass(frozen=True, slots=True)
class Campaign:
    """The parameters of a run.

    Attributes:
        title: name in the report.
        binary: binary of the Redis or Valkey server.
        schedule: the faults, one after another.
        sessions: fewest sessions; the load also continues until the last fault has ended.
        shoppers: sessions played at the same time.
        think_s: mean time between two steps of a session.
        pause_s: time between two faults.
        state_dtype: the service's setting of this name.
        settings: further settings of the service.
        appendonly: whether Redis writes every command to disk before it answers.
        has_cluster: whether Redis is a cluster of three primaries with a replica for each.
        has_standby: whether Redis has a replica, which `faults.fail_over` makes the primary.
        may_lose: whether Redis itself may lose acknowledged writes, so that losses are counted and are no failure.
        breakage: the guarantee that the service lacks, for a negative control.
        has_kafka: whether a topic has the events, of `willbuy consume`; otherwise requests have them.
    """

    title: str
    binary: Path
    schedule: Sequence[Fault]
    sessions: int
    shoppers: int = 60
    replicas: int = 3
    think_s: float = 0.25
    pause_s: float = 0.5
    seed: int = 0
    state_dtype: StateDtype = "float32"
    settings: Mapping[str, object] = field(default_factory=dict)
    appendonly: bool = True
    has_cluster: bool = False
    has_standby: bool = False
    may_lose: bool = False
    breakage: str | None = None
    has_kafka: bool = False


@dataclass(slots=True)
class _Run:
    plans: Iterator[SessionPlan]
    driver: Driver | KafkaDriver
    started: int = 0
    faults_over: bool = False
    faults: list[tuple[str, float]] = field(default_factory=list)


async def run(campaign: Campaign, directory: Path) -> Report:
    """Run a campaign with all its files below `directory` and return its result."""
    artifacts = (
        write_artifact(directory / "first.pt", seed=0),
        write_artifact(directory / "second.pt", seed=1, hidden_size=16),
    )
    kafka = start_broker() if campaign.has_kafka else None
    fleet = Fleet(
        RedisServer(campaign.binary, directory / "redis", appendonly=campaign.appendonly),
        directory,
        artifacts=artifacts,
        replicas=campaign.replicas,
        settings={
            "request_timeout_s": REQUEST_TIMEOUT_S,
            "redis_timeout_s": REDIS_TIMEOUT_S,
            "state_dtype": campaign.state_dtype,
            "max_event_age_s": _WEEK_S,
            "log_level": "warning",
            "interventions_file": write_rules(directory / "rules.toml"),
            **campaign.settings,
        },
        standby=RedisServer(campaign.binary, directory / "standby") if campaign.has_standby else None,
        cluster=ClusterServers(campaign.binary, directory, replicas=3) if campaign.has_cluster else None,
        breakage=campaign.breakage,
        kafka=kafka,
        command=("serve",) if kafka is None else consume_command(kafka, directory),
    )
    ledger = Ledger()
    patience_s = REQUEST_TIMEOUT_S + SLACK_S
    began_s = time.monotonic()
    try:
        await fleet.start()
        faults = await _load(campaign, fleet, ledger, patience_s)
        oracle = Oracle(
            [load_predictor(path, state_dtype=campaign.state_dtype) for path in artifacts], campaign.state_dtype
        )
        decisions = await _judge(oracle, fleet, ledger, directory / "rules.toml")
    finally:
        await fleet.close()
    oracle.judge_requests(ledger, fleet.pauses, fleet.terminations, patience_s)
    facts = {
        "server": campaign.binary.name,
        "replicas": campaign.replicas,
        "seed": campaign.seed,
        "state_dtype": campaign.state_dtype,
        **campaign.settings,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began_s, 1),
    }
    return Report(campaign.title, facts, counts_of(ledger) | {"decisions": decisions}, faults, oracle.verdict)


async def _load(campaign: Campaign, fleet: Fleet, ledger: Ledger, patience_s: float) -> list[tuple[str, float]]:
    driver = (
        Driver(
            fleet.clients,
            ledger,
            seed=campaign.seed,
            patience_s=patience_s,
            think_s=campaign.think_s,
            most_in_flight=2 * campaign.shoppers,
        )
        if fleet.kafka is None
        else KafkaDriver(fleet.kafka, ledger, seed=campaign.seed, think_s=campaign.think_s)
    )
    # One second ago, because no event may be ahead of the service's clock.
    going = _Run(session_plans(campaign.seed, int(time.time() * 1000) - 1000), driver)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(campaign.shoppers):
            tasks.create_task(_shop(going, campaign.sessions))
        tasks.create_task(_break_and_mend(going, campaign, fleet))
    if isinstance(driver, KafkaDriver):
        await asyncio.to_thread(driver.collect)
    return going.faults


async def _shop(going: _Run, sessions: int) -> None:
    while going.started < sessions or not going.faults_over:
        going.started += 1
        await going.driver.play(next(going.plans))


async def _break_and_mend(going: _Run, campaign: Campaign, fleet: Fleet) -> None:
    random = Random(campaign.seed)
    for fault in campaign.schedule:
        await asyncio.sleep(campaign.pause_s)
        began_s = time.monotonic()
        await fault(fleet, random)
        going.faults.append((fault.__name__, time.monotonic() - began_s))
    going.faults_over = True


async def _judge(oracle: Oracle, fleet: Fleet, ledger: Ledger, rules: Path) -> int:
    """Read all stored data, without the proxy, run the oracle, and return the number of decisions of rules."""
    store = RedisStore(fleet.store_url, session_idle_s=1800, options=ConnectionOptions(timeout_s=60))
    ids = list(ledger.sessions)
    try:
        records = dict(zip(ids, await store.load(ids), strict=True))
        histories = dict(zip(ids, await store.load_histories(ids), strict=True))
        sessions = await _settled(store, [name for name in ids if isinstance(records[name], Record)])
        pages = await store.decisions.read(dict.fromkeys(range(SHARDS), START), most=DECISIONS_KEPT)
    finally:
        await store.close()
    handed = [entry.decision for page in pages.values() for entry in page.entries]
    decisions = judge_decisions(oracle.verdict, rules, ledger, sessions, handed)
    oracle.judge_sessions(ledger, records, histories)
    port = fleet.redis.port if fleet.cluster is None else fleet.cluster.nodes[0].port
    oracle.judge_board(records, await board_of(f"redis://127.0.0.1:{port}", is_cluster=fleet.cluster is not None))
    return decisions


async def _settled(store: RedisStore, ids: Sequence[str]) -> dict[str, tuple[Record, list[Entry]]]:
    """Return sessions with their decisions, once the idle rule has had its time."""
    deadline_s = time.monotonic() + IDLE_S + _IDLE_PATIENCE_S
    while True:
        sessions = {}
        for name in ids:
            try:
                found = await store.load_entries(name)
            except StoreError:
                continue  # the oracle tells
            if found is not None:
                sessions[name] = found
        if are_settled(sessions) or time.monotonic() > deadline_s:
            return sessions
        await asyncio.sleep(0.5)


async def board_of(url: str, *, is_cluster: bool = False) -> dict[str, float]:
    """Return the live board of all shards: session ids with their scores."""
    # Typed for every kind of reply; these are pairs of bytes and float.
    client: Any = RedisCluster.from_url(url) if is_cluster else Redis.from_url(url)
    try:
        shards = [await client.zrange(board_key(shard), 0, -1, withscores=True) for shard in range(SHARDS)]
    finally:
        await client.aclose()
    return {member.decode(): score for shard in shards for member, score in shard}
