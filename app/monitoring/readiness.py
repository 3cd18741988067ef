"""Whether a replica can answer events: what `/readyz` says, and what the metric of that name shows."""

from collections.abc import Callable

from app.errors import ShuttingDownError, StoreError
from app.store.interface import StateStore


class Readiness:
    """Looks at everything that events need.

    Args:
        store: where sessions are.
        takes_events: returns whether submitted events are handled.
        is_draining: returns whether the replica is shutting down.
    """

    def __init__(self, store: StateStore, *, takes_events: Callable[[], bool], is_draining: Callable[[], bool]) -> None:
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
