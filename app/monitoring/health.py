"""Health of one replica: the checks behind `/readyz`, and the gauges that a background loop keeps current."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from structlog.typing import FilteringBoundLogger

from app.errors import ShuttingDownError, StoreError, StoreUnavailableError
from app.monitoring.metrics import Metrics
from app.runtime.periodic import Background, PeriodicTask

_EVERY_S: Final = 1.0
# Each worker of each replica asks Redis, so not every turn does: neither value changes within seconds.
_READY_EVERY: Final = 5
_SESSIONS_EVERY: Final = 15
# At the first turn and then once a minute.
_POLICY_EVERY: Final = 60
NO_EVICTION: Final = "noeviction"


class ProbedStore(Protocol):
    """The part of the session store that readiness needs."""

    async def ping(self) -> None:
        """Raise `StoreError` unless the store does what events need."""
        ...

    async def eviction_policy(self) -> str:
        """Return what the store does when its memory is full; `noeviction` is the only right one."""
        ...


class Readiness:
    """Checks everything that events need.

    Args:
        store: where sessions are.
        takes_events: returns whether submitted events are handled.
        is_draining: returns whether the replica is shutting down.

    Attributes:
        others: further checks by name; each returns `ok` or the reason why it fails.
    """

    def __init__(
        self, store: ProbedStore, *, takes_events: Callable[[], bool], is_draining: Callable[[], bool]
    ) -> None:
        self._store = store
        self._takes_events = takes_events
        self._is_draining = is_draining
        self.others: dict[str, Callable[[], Awaitable[str]]] = {}
        self.causes: dict[str, str] = {}
        """The server's error word for each check that failed in the last call of `checks`."""

    async def checks(self) -> dict[str, str]:
        """Return each check by name, with `ok` or the reason why it fails; waits for Redis, within its time-out."""
        self.causes = {}
        checks = {"redis": "ok", "model": "ok" if self._takes_events() else "not taking events"}
        try:
            await self._store.ping()
        except StoreError as exc:
            checks["redis"] = exc.code
            if isinstance(exc, StoreUnavailableError) and exc.cause:
                self.causes["redis"] = exc.cause
        for name, check in self.others.items():
            checks[name] = await check()
        if self._is_draining():
            checks["replica"] = ShuttingDownError.code
        return checks

    async def warnings(self) -> dict[str, str]:
        """Return what does not stop events and needs an operator all the same, by the check it belongs to."""
        with contextlib.suppress(StoreError):  # `checks` shows that Redis is away
            policy = await self._store.eviction_policy()
            if policy != NO_EVICTION:
                return {"redis": f"maxmemory-policy is {policy}: Redis may evict sessions. Set it to {NO_EVICTION}."}
        return {}


def failing(checks: dict[str, str]) -> list[str]:
    """Return the names of the checks that are not `ok`."""
    return [name for name, state in checks.items() if state != "ok"]


class HealthMonitor(Background):
    """Keeps gauges current: the watched ones, the event loop's delay, readiness, and live sessions.

    Args:
        live_sessions: counts the live sessions in the store.
        readiness: whether events can be answered.
        metrics: where the gauges are.
        logger: where defects are logged.
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
        self._turn = 0
        self._due_s: float | None = None
        self._task = PeriodicTask(
            self._run_once, name="health", every_s=_EVERY_S, logger=logger, failed="vitals_failed"
        )

    async def close(self) -> None:
        """Stop; the replica shows as not ready from now on."""
        await super().close()
        self._metrics.ready.set(0)

    async def update(self, turn: int = 0) -> None:
        """Update the gauges of a turn; turn 0 updates all. A gauge whose value cannot be read keeps the last one."""
        self._metrics.sample()
        if turn % _READY_EVERY == 0:
            self._metrics.ready.set(not failing(await self._readiness.checks()))
        if turn % _POLICY_EVERY == 0:
            warnings = await self._readiness.warnings()
            self._metrics.redis_evicts.set(bool(warnings))
            for check, text in warnings.items():
                self._logger.error("redis_evicts", check=check, detail=text)
        if turn % _SESSIONS_EVERY == 0:
            with contextlib.suppress(StoreError):  # readiness shows that Redis is away
                self._metrics.live_sessions.set(await self._live_sessions())

    async def _run_once(self) -> None:
        loop = asyncio.get_running_loop()
        if self._due_s is not None:
            self._metrics.loop_delay_seconds.observe(max(0.0, loop.time() - self._due_s))
        turn, self._turn = self._turn, self._turn + 1
        try:
            await self.update(turn)
        finally:
            self._due_s = loop.time() + _EVERY_S
