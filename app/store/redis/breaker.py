"""Circuit breaker: refuses calls to a server that keeps failing, so that callers do not wait for time-outs.

Closed: every call is allowed. After `failures_to_open` failures in a row the breaker opens and refuses all calls for
`open_s` seconds. Then one call at a time is allowed as a probe: success closes the breaker, failure opens it again.
"""

from collections.abc import Callable
from typing import Final

# One time-out may be a slow command; three in a row are an outage. A probe a second costs less than one time-out.
FAILURES_TO_OPEN: Final = 3
OPEN_S: Final = 1.0


class CircuitBreaker:
    """Counts outcomes of calls to one server.

    Args:
        failures_to_open: failures in a row that open the breaker.
        open_s: seconds until the next probe.
        clock_s: a monotonic clock, in seconds.
        on_change: called with True when the breaker opens and with False when it closes.
    """

    def __init__(
        self,
        *,
        clock_s: Callable[[], float],
        failures_to_open: int = FAILURES_TO_OPEN,
        open_s: float = OPEN_S,
        on_change: Callable[[bool], None] = lambda _opened: None,
    ) -> None:
        self._failures_to_open = failures_to_open
        self._open_s = open_s
        self._clock_s = clock_s
        self._on_change = on_change
        self._failures = 0
        self._probe_after_s = 0.0
        self._probing = False
        self._open = False

    @property
    def is_open(self) -> bool:
        """Whether calls are refused; a probe may be running."""
        return self._open

    def allows(self) -> bool:
        """Return whether a call is allowed; after True the caller must report the outcome."""
        if not self._open:
            return True
        if self._probing or self._clock_s() < self._probe_after_s:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """Report a reply."""
        self._failures = 0
        self._probing = False
        if self._open:
            self._open = False
            self._on_change(False)

    def failed(self) -> None:
        """Report a failure or time-out."""
        self._failures += 1
        self._probing = False
        if self._failures >= self._failures_to_open:
            self._probe_after_s = self._clock_s() + self._open_s
            if not self._open:
                self._open = True
                self._on_change(True)

    def abandoned(self) -> None:
        """Report that the call was cancelled before its outcome."""
        self._probing = False
