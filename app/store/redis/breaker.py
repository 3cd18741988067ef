"""Knows when a server is not worth asking, so that its failures cost nobody a wait.

Closed: every call goes through. After `failures_to_open` failures in a row it opens: no call goes through for `open_s`
seconds. Then one call at a time goes through as a probe; its success closes the breaker, its failure opens it anew.
"""

from collections.abc import Callable
from typing import Final

# One time-out may be a slow command; three in a row are an outage. A probe a second costs less than one time-out.
FAILURES_TO_OPEN: Final = 3
OPEN_S: Final = 1.0


class CircuitBreaker:
    """Counts outcomes of calls to one server.

    Args:
        failures_to_open: failures in a row after which no call goes through.
        open_s: seconds until the next probe.
        clock_s: a clock that never goes back, in seconds.
        on_change: called with True when it opens and with False when it closes.
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
        """Whether the server is taken to be away; a probe may be under way."""
        return self._open

    def allows(self) -> bool:
        """Return whether a call may be made; True obliges to report its outcome."""
        if not self._open:
            return True
        if self._probing or self._clock_s() < self._probe_after_s:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """Report that the server answered."""
        self._failures = 0
        self._probing = False
        if self._open:
            self._open = False
            self._on_change(False)

    def failed(self) -> None:
        """Report that the server did not answer."""
        self._failures += 1
        self._probing = False
        if self._failures >= self._failures_to_open:
            self._probe_after_s = self._clock_s() + self._open_s
            if not self._open:
                self._open = True
                self._on_change(True)

    def abandoned(self) -> None:
        """Report that the caller gave up before there was an outcome."""
        self._probing = False
