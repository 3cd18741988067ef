"""CPU time of the store's `load` and `commit`, by the client of `app.store.redis` and by redis-py's own pipeline.

    python -m benchmarks.redis_client [rounds]

Starts a separate Valkey or Redis server. Both clients alternate within each round, so that other work on the machine
affects both; the ratios are medians over rounds. With redis-py 8.1, hiredis 3.5 and CPython 3.11, 11 rounds on two
cores, the pipeline took 2.2, 2.0 and 1.8 times as long at 1, 8 and 64 sessions a batch.
"""

import asyncio
import sys
import time
from collections.abc import Sequence
from itertools import count
from statistics import median
from typing import Any, Final
from unittest.mock import patch

import uvloop
from redis.asyncio import Redis

from app.store.interface import Commit
from app.store.record_codec import Answers, Outcome, Record
from app.store.redis.connection import Command, ConnectionOptions
from app.store.redis.server import Reply
from app.store.sessions import RedisStore
from benchmarks.hotpath.redis_server import running_redis
from model.events import Event

_BATCHES: Final = {1: 600, 8: 300, 64: 100}
_ROUNDS: Final = 11
_STATE_BYTES: Final = 600
_TIMEOUT_S: Final = 10.0
_DRIVEN: Final = "app.store.redis"
_PIPELINE: Final = "redis.asyncio.Redis.pipeline"
_versions = count(1)


class _PipelineClient:
    """`app.store.redis.connection.RedisClient` by redis-py's pipeline."""

    max_shards_per_script = 16

    def __init__(self, url: str, _options: ConnectionOptions) -> None:
        self._redis: Any = Redis.from_url(url, protocol=2)

    async def get(self, shards: Sequence[int], keys: Sequence[str]) -> list[Reply]:
        (values,) = await self.execute([Command(shards[0], ("MGET", *keys))])
        found: list[Reply] = values
        return found

    async def execute(self, commands: Sequence[Command], *, wait_replicas: int = 0) -> list[Reply]:  # noqa: ARG002 - the protocol's
        pipeline = self._redis.pipeline(transaction=False)
        for _, arguments in commands:
            pipeline.execute_command(*arguments)
        replies: list[Reply] = await pipeline.execute(raise_on_error=False)
        return replies

    async def ping(self) -> Exception | None:
        await self._redis.ping()
        return None

    async def close(self) -> None:
        await self._redis.aclose()


async def _measure(url: str, rounds: int) -> None:
    options = ConnectionOptions(timeout_s=_TIMEOUT_S)
    stores = {_DRIVEN: RedisStore(url, session_idle_s=1800, options=options)}
    with patch("app.store.sessions.open_client", _PipelineClient):
        stores[_PIPELINE] = RedisStore(url, session_idle_s=1800, options=options)
    try:
        for sessions, batches in _BATCHES.items():
            taken_us: dict[str, list[float]] = {name: [] for name in stores}
            for _ in range(rounds):
                for name, store in stores.items():
                    taken_us[name].append(await _cpu_us(store, [f"{name}-{at}" for at in range(sessions)], batches))
            ratios = [other / ours for ours, other in zip(taken_us[_DRIVEN], taken_us[_PIPELINE], strict=True)]
            sys.stdout.write(
                f"{sessions:>3} sessions a batch: {_DRIVEN} {median(taken_us[_DRIVEN]):.0f} us, "
                f"{_PIPELINE} {median(taken_us[_PIPELINE]):.0f} us, "
                f"ratio {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})\n"
            )
    finally:
        for store in stores.values():
            await store.close()


async def _cpu_us(store: RedisStore, session_ids: Sequence[str], batches: int) -> float:
    """Return this process's CPU time per batch of one `load` and one `commit`, in microseconds."""
    started_s = time.process_time()
    for _ in range(batches):
        records = await store.load(session_ids)
        commits = [_commit(session_id, record) for session_id, record in zip(session_ids, records, strict=True)]
        assert all(result is True for result in await store.commit(commits))  # noqa: S101 - a benchmark's own check
    return (time.process_time() - started_s) / batches * 1e6


def _commit(session_id: str, stored: object) -> Commit:
    """Return a commit of one event whose record replaces the stored one."""
    now_ms = int(time.time() * 1000)
    record = Record(
        version=next(_versions).to_bytes(8, "big"),
        model="00" * 8,
        probability=0.5,
        events=1,
        first_seen_ms=now_ms,
        last_seen_ms=now_ms,
        last_event_ms=now_ms,
        outcome=Outcome.OPEN,
        outcome_ms=0,
        answers=Answers(),
        state=bytes(_STATE_BYTES),
    )
    expected = stored.version if isinstance(stored, Record) else None
    return Commit(session_id, expected, record, (Event("page_view", now_ms),))


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else _ROUNDS
    with running_redis() as redis, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_measure(redis.url, rounds))


if __name__ == "__main__":
    main()
