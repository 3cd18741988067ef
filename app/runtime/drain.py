"""Draining: from SIGTERM to the end of the process.

    SIGTERM          `/readyz` answers 503, and answers have `Connection: close`, so that callers reconnect elsewhere
    + drain_delay_s  new events are refused, accepted events are finished, and the server starts to stop

A server that stops at once closes its socket while balancers still send requests (uvicorn #2414). At the end of the
delay the server's own signal handler is called with SIGINT. With SIGTERM, uvicorn would raise the signal again when it
has finished, and the process would end with a signal instead of status 0.
"""

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from structlog.typing import FilteringBoundLogger


class Drain:
    """Handles SIGTERM in place of the server that runs the app.

    Args:
        delay_s: seconds between the signal and the server's stop.
        logger: gets the start of the drain.
    """

    def __init__(self, *, delay_s: float, logger: FilteringBoundLogger) -> None:
        self._delay_s = delay_s
        self._logger = logger
        self._refuse: Callable[[], None] = lambda: None
        self._previous: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self.draining = False

    def install(self, refuse: Callable[[], None]) -> None:
        """Replace the server's signal handler, if there is one; call inside the event loop.

        Args:
            refuse: called once, when new events are to be refused.
        """
        self._refuse = refuse
        if threading.current_thread() is not threading.main_thread():
            return
        previous = signal.getsignal(signal.SIGTERM)
        if not callable(previous):
            return
        loop = asyncio.get_running_loop()

        def on_signal(_number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._begin, loop, frame)

        self._previous = previous
        signal.signal(signal.SIGTERM, on_signal)

    def uninstall(self) -> None:
        """Restore the server's signal handler."""
        if self._timer is not None:
            self._timer.cancel()
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _begin(self, loop: asyncio.AbstractEventLoop, frame: FrameType | None) -> None:
        if self.draining:
            # A second signal ends the delay.
            self._stop(frame)
            return
        self.draining = True
        self._logger.info("draining", delay_s=self._delay_s)
        self._timer = loop.call_later(self._delay_s, self._stop, frame)

    def _stop(self, frame: FrameType | None) -> None:
        if self._previous is None:
            return
        previous, self._previous = self._previous, None
        if self._timer is not None:
            self._timer.cancel()
        signal.signal(signal.SIGTERM, previous)
        self._refuse()
        previous(signal.SIGINT, frame)
