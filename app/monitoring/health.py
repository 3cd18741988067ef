"""Gauges that nothing counts as it happens: looked at now and then, in the background of every replica."""

import asyncio
import contextlib
from typing import Final

from structlog.typing import FilteringBoundLogger

from app.errors import StoreError
from app.monitoring.metrics import Metrics
from app.monitoring.readiness import Readiness, failing
from app.store.interface import StateStore

_EVERY_S: Final = 1.0
# In turns: each worker of each replica asks Redis, and none of this changes within seconds.
_READY_EVERY: Final = 5
_SESSIONS_EVERY: Final = 15


class Vitals:
    """Keeps the gauges true: what is watched, the event loop's delay, readiness, and live sessions.

    Args:
        store: where live sessions are counted.
        readiness: whether events can be answered.
        metrics: where it is shown.
        logger: where defects are told.
    """

    def __init__(
        self, store: StateStore, readiness: Readiness, *, metrics: Metrics, logger: FilteringBoundLogger
    ) -> None:
        self._store = store
        self._readiness = readiness
        self._metrics = metrics
        self._logger = logger
        self._runner: asyncio.Task[None] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Begin to look; call once, inside the event loop."""
        self._runner = asyncio.create_task(self._run(), name="vitals")

    async def close(self) -> None:
        """Stop; the replica is shown as not ready from now on."""
        # Beside the cancellation, which a driver that is cleaning up may swallow.
        self._is_closed = True
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)
        self._metrics.ready.set(0)

    async def look(self, turn: int = 0) -> None:
        """Bring the gauges of a turn up to date; all of them with turn 0. What cannot be read stays as it was."""
        self._metrics.sample()
        if turn % _READY_EVERY == 0:
            self._metrics.ready.set(not failing(await self._readiness.checks()))
        if turn % _SESSIONS_EVERY == 0:
            with contextlib.suppress(StoreError):  # readiness tells
                self._metrics.live_sessions.set((await self._store.board.spread(())).live)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        turn = 0
        while not self._is_closed:
            try:
                await self.look(turn)
            except Exception:
                self._logger.exception("vitals_failed")
            turn += 1
            due_s = loop.time() + _EVERY_S
            await asyncio.sleep(_EVERY_S)
            self._metrics.loop_delay_seconds.observe(max(0.0, loop.time() - due_s))
