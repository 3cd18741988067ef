"""Closes idle sessions and publishes closed ones, in the background of every replica.

At an interval each replica asks every shard for sessions to close or to publish. The replica that finds some holds a
lease on the shard while there is work, and for three intervals after. The lease only saves work: the scripts keep each
step from happening twice (`app.store.outcomes`). While no replica runs, nothing is closed: sessions that end meanwhile
stay for the grace time, and the next replica closes them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final
from uuid import uuid4

from structlog.typing import FilteringBoundLogger

from app.errors import StoreError
from app.monitoring.metrics import Metrics
from app.outcomes.published import session_json
from app.runtime.periodic import PeriodicTask
from app.store.outcomes import ClosedSession, OutcomeStore, Unreadable, Written

# A replica that missed so many sweeps counts as dead, and another takes over its shards.
_SWEEPS_TO_LEASE: Final = 3
_LAST_SWEEP_S: Final = 2.0


class SessionSweeper:
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
        self._task = PeriodicTask(
            self._sweep,
            name="session-sweeper",
            every_s=every_s,
            logger=logger,
            failed="closer_failed",
            on_failure=lambda _failure: metrics.closer_failures.inc(),
        )

    def start(self) -> None:
        """Begin; call once, inside the event loop."""
        self._task.start()

    async def close(self) -> None:
        """Stop after the sweep that runs, so that published sessions are counted; bounded where Redis hangs."""
        await self._task.close(last_turn_s=_LAST_SWEEP_S)

    async def run_once(self) -> bool:
        """Sweep once; return whether there is more to do.

        Raises:
            StoreUnavailableError: the store is gone; a later sweep does the rest.
        """
        due = await self._store.due(self._replica, lease_s=self._lease_s)
        idle = {shard: found.idle for shard, found in due.items() if found.idle}
        count = await self._store.close_idle(idle)
        if count.lost:
            self._metrics.outcomes_lost.inc(count.lost)
            self._logger.warning("outcomes_lost", sessions=count.lost)
        await self._publish({shard: found.closed for shard, found in due.items() if found.closed})
        return count.closed > 0 or any(found.is_more for found in due.values())

    async def _publish(self, closed: Mapping[int, Sequence[ClosedSession | Unreadable]]) -> None:
        written: dict[int, list[Written]] = {}
        for shard, sessions in closed.items():
            written[shard] = [_written(session) for session in sessions]
            # Encoding long sessions takes a while; events go first.
            await asyncio.sleep(0)
        moved = await self._store.publish(written)
        published = [
            session
            for shard, sessions in closed.items()
            for session, is_ours in zip(sessions, moved.get(shard, [False] * len(sessions)), strict=True)
            if is_ours
        ]
        readable = [session for session in published if isinstance(session, ClosedSession)]
        for session in readable:
            self._metrics.outcomes.labels("purchase" if session.bought else "none", session.closed_by).inc()
        if len(readable) < len(published):
            self._metrics.outcomes_lost.inc(len(published) - len(readable))
            self._logger.error("closed_sessions_unreadable", sessions=len(published) - len(readable))
        if readable:
            await self._on_closed(readable)

    async def _sweep(self) -> bool:
        try:
            return await self.run_once()
        except StoreError as exc:
            # Readiness and every answer show that Redis is away.
            self._logger.debug("closer_waits", reason=exc.code)
            return False


def _written(session: ClosedSession | Unreadable) -> Written:
    json = b"" if isinstance(session, Unreadable) else session_json(session)
    return Written(session.entry, session.session_id, json)
