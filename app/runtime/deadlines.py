"""Ends waits that take too long, or whose caller has left, with one timer for all of them.

Nearly every wait is over long before its deadline. A timer for each would cost more than the check of the deadline.

A request's deadline counts from its first byte. When the process was stopped, or the event loop was blocked, that byte
may have lain in the socket since then. So requests that are read just after such a stall count as arrived at its begin.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from math import inf
from operator import itemgetter
from types import TracebackType
from typing import Any, Final, Protocol, Self

from starlette.requests import ClientDisconnect

from app.runtime.connection import ARRIVED, CONNECTION, Connection

_BEAT_S: Final = 0.1
# Later than the longest model step and garbage collection.
_STALL_S: Final = 0.25


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
    """Waits in the order of their deadlines; nearly always that is the order in which they are added."""

    def __init__(self) -> None:
        self._waits: deque[tuple[float, Wait]] = deque()
        self._alarm: asyncio.TimerHandle | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._beaten_s = 0.0
        self._stalled_since_s: float | None = None

    def start(self) -> None:
        """Begin to notice stalls; call inside the event loop."""
        loop = asyncio.get_running_loop()
        self._beaten_s = loop.time()
        self._beat = loop.call_later(_BEAT_S, self._on_beat)

    def of_request(self, scope: Mapping[str, Any], seconds: float) -> float:
        """Return when a request is to be answered, so many seconds after its arrival, by the event loop's clock."""
        read_s: float | None = scope.get(ARRIVED)
        if read_s is None:
            read_s = asyncio.get_running_loop().time()
        since_s = self._stalled_since_s
        return (read_s if since_s is None or read_s < since_s else since_s) + seconds

    def add(self, wait: Wait, at: float) -> None:
        """End a wait at a time of the event loop's clock, if it is not over by then."""
        waits = self._waits
        while waits and waits[0][1].is_over:
            waits.popleft()
        is_earlier = bool(waits) and at < waits[-1][0]
        waits.append((at, wait))
        if is_earlier:
            # A request whose head came slowly, or that waited while the process was stopped.
            self._waits = deque(sorted(waits, key=itemgetter(0)))
            if self._alarm is not None:
                self._alarm.cancel()
                self._alarm = None
        if self._alarm is None:
            self._alarm = asyncio.get_running_loop().call_at(self._waits[0][0], self._ring)

    def close(self) -> None:
        """End nothing any more."""
        self._waits.clear()
        for timer in (self._alarm, self._beat):
            if timer is not None:
                timer.cancel()
        self._alarm = self._beat = None

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

    def _on_beat(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now - self._beaten_s <= _BEAT_S + _STALL_S:
            self._stalled_since_s = None
        elif self._stalled_since_s is None:
            self._stalled_since_s = self._beaten_s
        self._beaten_s = now
        self._beat = loop.call_later(_BEAT_S, self._on_beat)


class _Part:
    """A context manager around a part of the current task, which may be cancelled from outside and then raises.

    The subclasses' arguments come to this one method, because each request makes one.

    Attributes:
        at: the deadline, by the event loop's clock.
        is_over: whether the part has ended.
    """

    __slots__ = ("_connection", "_reason", "_task", "at", "is_over")

    def __init__(self, connection: Connection | None, deadlines: Deadlines | None, at: float) -> None:
        self._task = asyncio.current_task()
        self._reason: type[Exception] | None = None
        self._connection = connection
        self.is_over = False
        self.at = at
        if connection is not None:
            if connection.is_lost:
                raise ClientDisconnect
            connection.on_lost = self.leave
        if deadlines is not None:
            deadlines.add(self, at)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.is_over = True
        if self._connection is not None:
            self._connection.on_lost = None
        # A cancellation by another part of the program is passed on.
        reason, task = self._reason, self._task
        if reason is not None and task is not None and not task.uncancel() and kind is asyncio.CancelledError:
            raise reason from error

    def end(self) -> None:
        """Cancel the part: its time is up."""
        self._cancel(TimeoutError)

    def leave(self) -> None:
        """Cancel the part: its caller has left."""
        self._cancel(ClientDisconnect)

    def _cancel(self, reason: type[Exception]) -> None:
        if self._reason is None and not self.is_over:
            self._reason = reason
            if self._task is not None:
                self._task.cancel()


class Timeout(_Part):
    """What `asyncio.timeout` is, without a timer of its own.

    Past the deadline the part is cancelled and raises `TimeoutError`.

    Args:
        deadlines: has the timer.
        at: the deadline, by the event loop's clock.
    """

    __slots__ = ()

    def __init__(self, deadlines: Deadlines, at: float) -> None:
        _Part.__init__(self, None, deadlines, at)


class WhileConnected(_Part):
    """Cancels the part when the caller leaves; the part then raises `ClientDisconnect`.

    Only a server with `BoundedHttp` tells that.

    Args:
        scope: of the ASGI request.
    """

    __slots__ = ()

    def __init__(self, scope: Mapping[str, Any]) -> None:
        _Part.__init__(self, scope.get(CONNECTION), None, inf)


class RequestTimeout(_Part):
    """`Timeout` and `WhileConnected` in one, for a request whose deadline counts from its arrival.

    Args:
        scope: of the ASGI request.
        deadlines: has the timer.
        seconds: from the request's arrival to its deadline.
    """

    __slots__ = ()

    def __init__(self, scope: Mapping[str, Any], deadlines: Deadlines, seconds: float) -> None:
        _Part.__init__(self, scope.get(CONNECTION), deadlines, deadlines.of_request(scope, seconds))
