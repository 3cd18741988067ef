"""Ends waits that take too long, with one timer for all of them.

Nearly every wait is over long before its deadline. A timer for each would cost more than the check of the deadline.
"""

import asyncio
from collections import deque
from types import TracebackType
from typing import Protocol, Self


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
    """Waits in the order of their deadlines: a later call of `add` must not have an earlier deadline."""

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


class Timeout:
    """What `asyncio.timeout` is, without a timer of its own: a context manager around a part of the current task.

    Past the deadline the part is cancelled and raises `TimeoutError`.

    Args:
        deadlines: has the timer.
        seconds: from now to the deadline.

    Attributes:
        at: the deadline, by the event loop's clock.
        is_over: whether the part has ended.
    """

    __slots__ = ("_is_due", "_task", "at", "is_over")

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        self._task = asyncio.current_task()
        self._is_due = False
        self.is_over = False
        self.at = asyncio.get_running_loop().time() + seconds
        deadlines.add(self, self.at)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.is_over = True
        # A cancellation by another part of the program is passed on.
        if self._is_due and self._task is not None and not self._task.uncancel() and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def end(self) -> None:
        """Cancel the part: its time is up."""
        self._is_due = True
        if self._task is not None:
            self._task.cancel()
