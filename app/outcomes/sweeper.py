"""Closes sessions that idled out, and takes closed ones on; in the background of every replica.

Every few seconds each shard is asked what there is to do. The first replica that finds something looks after the shard
from then on, until it has nothing to do for a while or dies; that saves work and is not needed for correctness, which
the scripts keep (`app.store.outcomes`). Without any replica nothing is closed: sessions that end meanwhile wait for
the grace time, and are closed when one comes back.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final
from uuid import uuid4

from structlog.typing import FilteringBoundLogger

from app.errors import StoreError
from app.monitoring.metrics import Metrics
from app.outcomes.published import session_json
from app.store.outcomes import ClosedSession, OutcomeStore, Unreadable, Written

# A replica that missed so many turns is taken for dead, and another looks after its shards.
_TURNS_TO_LEASE: Final = 3
_LAST_TURN_S: Final = 2.0


class SessionSweeper:
    """One replica's closer.

    Args:
        store: where sessions are closed.
        every_s: how often it looks.
        on_closed: told of each session that this replica has taken on.
        metrics: where it is counted.
        logger: where failures are told.
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
        self._every_s = every_s
        self._on_closed = on_closed
        self._metrics = metrics
        self._logger = logger
        self._replica = uuid4().hex
        self._stopping = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; call once, inside the event loop."""
        self._runner = asyncio.create_task(self._run(), name="closer")

    async def close(self) -> None:
        """Stop after the turn that runs; what is left is another replica's."""
        if self._runner is None:
            return
        self._stopping.set()
        # What was moved on already is still to be counted. A Redis that does not answer is not waited for.
        await asyncio.wait([self._runner], timeout=_LAST_TURN_S)
        self._runner.cancel()
        await asyncio.gather(self._runner, return_exceptions=True)

    async def run_once(self) -> bool:
        """Do what there is to do once; return whether there is more.

        Raises:
            StoreUnavailableError: the store is gone; whatever was not done is done by a later turn.
        """
        due = await self._store.due(self._replica, lease_s=_TURNS_TO_LEASE * self._every_s)
        idle = {shard: found.idle for shard, found in due.items() if found.idle}
        count = await self._store.close_idle(idle)
        if count.lost:
            self._metrics.outcomes_lost.inc(count.lost)
            self._logger.warning("outcomes_lost", sessions=count.lost)
        await self._take_on({shard: found.closed for shard, found in due.items() if found.closed})
        return count.closed > 0 or any(found.is_more for found in due.values())

    async def _take_on(self, closed: Mapping[int, Sequence[ClosedSession | Unreadable]]) -> None:
        written: dict[int, list[Written]] = {}
        for shard, sessions in closed.items():
            written[shard] = [_written(session) for session in sessions]
            # Writing long sessions takes a while; events go first.
            await asyncio.sleep(0)
        moved = await self._store.publish(written)
        taken = [
            session
            for shard, sessions in closed.items()
            for session, is_ours in zip(sessions, moved.get(shard, [False] * len(sessions)), strict=True)
            if is_ours
        ]
        readable = [session for session in taken if isinstance(session, ClosedSession)]
        for session in readable:
            self._metrics.outcomes.labels("purchase" if session.bought else "none", session.closed_by).inc()
        if len(readable) < len(taken):
            self._metrics.outcomes_lost.inc(len(taken) - len(readable))
            self._logger.error("closed_sessions_unreadable", sessions=len(taken) - len(readable))
        if readable:
            await self._on_closed(readable)

    async def _run(self) -> None:
        while not self._stopping.is_set():
            is_more = False
            try:
                is_more = await self.run_once()
            except StoreError as exc:
                # Redis is away; whoever asks for events hears of it.
                self._logger.debug("closer_waits", reason=exc.code)
            except Exception:
                self._metrics.closer_failures.inc()
                self._logger.exception("closer_failed")
            if not is_more:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), self._every_s)


def _written(session: ClosedSession | Unreadable) -> Written:
    json = b"" if isinstance(session, Unreadable) else session_json(session)
    return Written(session.entry, session.session_id, json)
