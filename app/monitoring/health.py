"""Health of one replica: what `/readyz` answers, and the gauges that a background loop keeps current."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from structlog.typing import FilteringBoundLogger

from app.errors import ShuttingDownError, StoreError
from app.monitoring.metrics import Metrics

_EVERY_S: Final = 1.0
# In turns: each worker of each replica asks Redis, and none of this changes within seconds.
_READY_EVERY: Final = 5
_SESSIONS_EVERY: Final = 15


class ProbedStore(Protocol):
    """The part of the session store that readiness needs."""

    async def ping(self) -> None:
        """Raise `StoreError` unless the store answers."""
        ...


class Readiness:
    """Looks at everything that events need.

    Args:
        store: where sessions are.
        takes_events: returns whether submitted events are handled.
        is_draining: returns whether the replica is shutting down.
    """

    def __init__(
        self, store: ProbedStore, *, takes_events: Callable[[], bool], is_draining: Callable[[], bool]
    ) -> None:
        self._store = store
        self._takes_events = takes_events
        self._is_draining = is_draining

    async def checks(self) -> dict[str, str]:
        """Return what was looked at, each with `ok` or what is wrong; takes as long as Redis does, bounded."""
        checks = {"redis": "ok", "model": "ok" if self._takes_events() else "not taking events"}
        try:
            await self._store.ping()
        except StoreError as exc:
            checks["redis"] = exc.code
        if self._is_draining():
            checks["replica"] = ShuttingDownError.code
        return checks


def failing(checks: dict[str, str]) -> list[str]:
    """Return the names of those that are not `ok`."""
    return [name for name, state in checks.items() if state != "ok"]


class HealthMonitor:
    """Keeps the gauges true: what is watched, the event loop's delay, readiness, and live sessions.

    Args:
        live_sessions: counts the live sessions in the store.
        readiness: whether events can be answered.
        metrics: where it is shown.
        logger: where defects are told.
    """

    def __init__(
        self,
        live_sessions: Callable[[], Awaitable[int]],
        readiness: Readiness,
        *,
        metrics: Metrics,
        logger: FilteringBoundLogger,
    ) -> None:
        self._live_sessions = live_sessions
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
                self._metrics.live_sessions.set(await self._live_sessions())

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
