"""Failures of Redis by their cause: each is counted, and each cause is logged once a minute."""

import time
from collections.abc import Callable
from typing import Final

from structlog.typing import FilteringBoundLogger

from app.monitoring.metrics import Metrics

_LOG_EVERY_S: Final = 60.0


class StoreFailures:
    """Counts and logs failures.

    Args:
        metrics: where they are counted.
        logger: where they are logged.
        clock_s: a monotonic clock, in seconds.
    """

    def __init__(
        self, metrics: Metrics, logger: FilteringBoundLogger, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._metrics = metrics
        self._logger = logger
        self._clock_s = clock_s
        self._quiet_until_s: dict[str, float] = {}

    def note(self, cause: str, error: BaseException) -> None:
        """Count a failure by its cause, a word of a small set, and log each cause at most once a minute."""
        self._metrics.store_failures.labels(cause).inc()
        now_s = self._clock_s()
        if now_s >= self._quiet_until_s.get(cause, now_s):
            self._quiet_until_s[cause] = now_s + _LOG_EVERY_S
            self._logger.warning("redis_failed", cause=cause, error=f"{type(error).__name__}: {error}")
