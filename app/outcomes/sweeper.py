"""Closes idle sessions and publishes closed ones, in the background of every replica.

At an interval each replica asks every shard for sessions to close or to publish. The replica that finds some holds a
lease on the shard while there is work, and for three intervals after. The lease only saves work: the scripts keep each
step from happening twice (`app.store.outcomes`). While no replica runs, nothing is closed: sessions that end meanwhile
stay for the grace time, and the next replica closes them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final
from uuid import uuid4

from structlog.typing import FilteringBoundLogger

from app.errors import StoreError, StoreUnavailableError
from app.monitoring.metrics import Metrics
from app.outcomes.published import session_json
from app.runtime.periodic import Background, PeriodicTask
from app.store.outcomes import SHARDS_AT_ONCE, ClosedSession, OutcomeStore, Unreadable, Written
from model.redis_keys import SHARDS

# A replica that missed so many sweeps counts as dead, and another takes over its shards.
_SWEEPS_TO_LEASE: Final = 3
_LAST_SWEEP_S: Final = 2.0
# Seconds of rest for each second of work.
_REST: Final = 2.0
# So many shards in a row that fail alone: Redis is away, and a later sweep tries again.
_FAILURES_IN_A_ROW: Final = 3
_LOG_EVERY_S: Final = 60.0


class SessionSweeper(Background):
    """One replica's sweeper.

    Args:
        store: where sessions are closed.
        every_s: interval of the sweeps.
        on_closed: called with the sessions that this replica has published.
        metrics: where sessions and failures are counted.
        logger: where failures are logged.
    """

    def __init__(
        self,
        store: OutcomeStore,
        *,
        every_s: float,
        on_closed: Callable[[Sequence[ClosedSession]], Awaitable[None]],
        metrics: Metrics,
        logger: FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._lease_s = _SWEEPS_TO_LEASE * every_s
        self._on_closed = on_closed
        self._metrics = metrics
        self._logger = logger
        self._replica = uuid4().hex
        self._quiet_until_s = float("-inf")
        self._task = PeriodicTask(
            self._sweep,
            name="session-sweeper",
            every_s=every_s,
            logger=logger,
            failed="closer_failed",
            on_failure=lambda _failure: metrics.closer_failures.inc(),
        )

    async def close(self) -> None:
        """Stop after the sweep that runs, so that published sessions are counted; bounded where Redis hangs."""
        await self._task.close(last_turn_s=_LAST_SWEEP_S)

    async def run_once(self) -> bool:
        """Sweep once; return whether there is more to do.

        Shards are swept in groups. After a failure each shard of the group is swept alone, one session at a time, so
        that one very large session stops no other.

        Raises:
            StoreUnavailableError: Redis failed for a group and for each of its shards; a later sweep does the rest.
        """
        is_more = False
        failure: StoreError | None = None
        for first in range(0, SHARDS, SHARDS_AT_ONCE):
            shards = range(first, min(first + SHARDS_AT_ONCE, SHARDS))
            try:
                is_more |= await self._sweep_shards(shards)
            except StoreError as exc:
                self._note(exc, shards)
                if not await self._sweep_each(shards):
                    failure = exc
        if failure is not None:
            raise failure
        return is_more

    async def _sweep_each(self, shards: Sequence[int]) -> bool:
        """Sweep shards one after another; return whether one succeeded. Gives up after some failures in a row."""
        succeeded, failed = False, 0
        for shard in shards:
            try:
                await self._sweep_shards([shard], one=True)
                succeeded, failed = True, 0
            except StoreError as exc:
                failed += 1
                self._note(exc, [shard])
            if failed == _FAILURES_IN_A_ROW:
                break
        return succeeded

    async def _sweep_shards(self, shards: Sequence[int], *, one: bool = False) -> bool:
        """Close and publish sessions of some shards; return whether there is more to do."""
        started_s = time.perf_counter()
        due = await self._store.due(self._replica, lease_s=self._lease_s, shards=shards, one=one)
        if not due:
            return False
        count = await self._store.close_idle({shard: found.idle for shard, found in due.items() if found.idle})
        if count.lost:
            self._metrics.outcomes_lost.inc(count.lost)
            self._logger.warning("outcomes_lost", sessions=count.lost)
        await self._publish({shard: found.closed for shard, found in due.items() if found.closed})
        if failures := {shard: found.failure for shard, found in due.items() if found.failure is not None}:
            # One node of a cluster.
            self._note(next(iter(failures.values())), [*failures])
            await self._sweep_each([*failures])
        # A backlog takes at most a third of the process's time; the rest is for events.
        await asyncio.sleep(_REST * (time.perf_counter() - started_s))
        return count.closed > 0 or count.left > 0 or any(found.is_more for found in due.values())

    async def _publish(self, closed: Mapping[int, Sequence[ClosedSession | Unreadable]]) -> None:
        written: dict[int, list[Written]] = {}
        for shard, sessions in closed.items():
            written[shard] = []
            for session in sessions:
                written[shard].append(_written(session))
                # Encoding a long session takes a while; events go first.
                await asyncio.sleep(0)
        moved = await self._store.publish(written)
        if missing := [shard for shard in written if shard not in moved]:
            self._note(StoreUnavailableError("Closed sessions could not be published."), missing)
        published = [
            session
            for shard, sessions in closed.items()
            for session, is_ours in zip(sessions, moved.get(shard, [False] * len(sessions)), strict=True)
            if is_ours
        ]
        readable = [session for session in published if isinstance(session, ClosedSession)]
        for session in readable:
            self._metrics.outcomes.labels(session.outcome, session.closed_by).inc()
        if len(readable) < len(published):
            self._metrics.outcomes_lost.inc(len(published) - len(readable))
            self._logger.error("closed_sessions_unreadable", sessions=len(published) - len(readable))
        known = [session for session in readable if session.is_known]
        if len(known) < len(readable):
            self._logger.warning("outcomes_unknown", sessions=len(readable) - len(known), reason="evicted keys")
        if known:
            await self._on_closed(known)

    async def _sweep(self) -> bool:
        try:
            return await self.run_once()
        except StoreError:
            # Counted and logged.
            return False

    def _note(self, error: StoreError, shards: Sequence[int]) -> None:
        """Count a failure, and log it at most once a minute."""
        self._metrics.closer_failures.inc()
        if (now_s := time.monotonic()) >= self._quiet_until_s:
            self._quiet_until_s = now_s + _LOG_EVERY_S
            cause = error.__cause__ or error
            self._logger.warning(
                "closer_failed", reason=error.code, error=f"{type(cause).__name__}: {cause}", shards=list(shards)
            )


def _written(session: ClosedSession | Unreadable) -> Written:
    if isinstance(session, Unreadable):
        return Written(session.entry, session.session_id, b"")
    groups: dict[str, str] = {}
    # Without a known outcome a session says nothing about a rule.
    decisions = list(session.decisions) if session.is_known else []
    for decision in decisions:
        # Of a rule that repeats, the first decision is the session's group.
        groups.setdefault(decision.rule, decision.group.word)
    value = (session.value or 0.0) if session.bought else None
    decided_ms = decisions[0].decided_ms if decisions else 0
    currency = session.currency if groups and session.value is not None else None
    return Written(session.entry, session.session_id, session_json(session), groups, value, decided_ms, currency)
