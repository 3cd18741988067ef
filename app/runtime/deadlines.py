"""Ends waits that take too long, with one timer for all of them.

Nearly every wait is over long before its time, so a timer for each would be made to be cancelled.
"""

import asyncio
from collections import deque
from typing import Protocol


class Wait(Protocol):
    """Something that may have to be ended."""

    @property
    def is_over(self) -> bool:
        """Whether it has ended by itself; once it has, it stays so."""
        ...

    def end(self) -> None:
        """End it: its time is up."""
        ...


class Deadlines:
    """Waits in the order of their times, which must not go back."""

    def __init__(self) -> None:
        self._waits: deque[tuple[float, Wait]] = deque()
        self._alarm: asyncio.TimerHandle | None = None

    def add(self, wait: Wait, at: float) -> None:
        """End a wait at a time of the event loop's clock, if it is not over by then."""
        waits = self._waits
        while waits and waits[0][1].is_over:
            waits.popleft()
        waits.append((at, wait))
        if self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_at(at, self._ring)

    def close(self) -> None:
        """End nothing any more."""
        self._waits.clear()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def _ring(self) -> None:
        self._alarm = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._waits:
            at, wait = self._waits[0]
            if not wait.is_over:
                if at > now:
                    self._alarm = loop.call_at(at, self._ring)
                    return
                wait.end()
            self._waits.popleft()
