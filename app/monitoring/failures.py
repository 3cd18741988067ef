"""Failures of Redis or Kafka by their cause: each is counted, and each cause is logged once a minute."""

import time
from typing import Final

from prometheus_client import Counter
from structlog.typing import FilteringBoundLogger

_LOG_EVERY_S: Final = 60.0


class Failures:
    """Counts and logs failures.

    Args:
        counter: where they are counted; its label is the cause.
        logger: where they are logged.
        event: name of that log event.
    """

    def __init__(
        self,
        counter: Counter,
        logger: FilteringBoundLogger,
        *,
        event: str,
    ) -> None:
        self._counter = counter
        self._logger = logger
        self._event = event
        self._quiet_until_s: dict[str, float] = {}

    def note(self, cause: str, error: BaseException) -> None:
        """Count a failure by its cause, a word of a small set, and log each cause at most once a minute."""
        self._counter.labels(cause).inc()
        now_s = time.monotonic()
        if now_s >= self._quiet_until_s.get(cause, now_s):
            self._quiet_until_s[cause] = now_s + _LOG_EVERY_S
            self._logger.warning(self._event, cause=cause, error=f"{type(error).__name__}: {error}")
