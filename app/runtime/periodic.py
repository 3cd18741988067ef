"""Background loops: an async function that runs again and again until the service stops."""

import asyncio
from collections.abc import Awaitable, Callable

from structlog.typing import FilteringBoundLogger


class PeriodicTask:
    """Runs an async function at an interval, in one task; an exception is logged, and the next turn comes as usual.

    Args:
        run_once: one turn. True: there is more to do, so the next turn follows without a pause.
        name: of the task, for debuggers.
        every_s: pause between two turns, in seconds.
        logger: where exceptions are logged.
        failed: name of that log event.
        on_failure: called after the log, with the exception.
        pause_first: whether the first turn waits for the interval too.
    """

    def __init__(
        self,
        run_once: Callable[[], Awaitable[bool | None]],
        *,
        name: str,
        every_s: float,
        logger: FilteringBoundLogger,
        failed: str,
        on_failure: Callable[[Exception], None] = lambda _failure: None,
        pause_first: bool = False,
    ) -> None:
        self._run_once = run_once
        self._name = name
        self._every_s = every_s
        self._logger = logger
        self._failed = failed
        self._on_failure = on_failure
        self._pause_first = pause_first
        self._is_due = asyncio.Event()
        self._is_stopped = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; call once, inside the event loop."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    def wake(self) -> None:
        """End the pause, or leave out the next one while a turn runs."""
        self._is_due.set()

    def stop(self) -> None:
        """Cancel the turn that runs, and run no other; does not wait for its end."""
        # Besides the cancellation, which a driver may swallow while it cleans up.
        self._is_stopped = True
        if self._task is not None:
            self._task.cancel()

    async def close(self, *, last_turn_s: float = 0.0) -> None:
        """Stop, and return when the task has ended.

        Args:
            last_turn_s: how long a turn that runs may still take; then it is cancelled.
        """
        if self._task is not None and last_turn_s:
            self._is_stopped = True
            self.wake()
            await asyncio.wait([self._task], timeout=last_turn_s)
        self.stop()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        if self._pause_first:
            await self._pause()
        while not self._is_stopped:
            is_more: bool | None = False
            try:
                is_more = await self._run_once()
            except Exception as exc:
                self._logger.exception(self._failed)
                self._on_failure(exc)
            if not is_more:
                await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._every_s):
                await self._is_due.wait()
        except TimeoutError:
            return
        self._is_due.clear()


class Background:
    """A part of the service that works in a periodic task of its own, `_task`."""

    _task: PeriodicTask

    def start(self) -> None:
        """Begin; call once, inside the event loop."""
        self._task.start()

    async def close(self) -> None:
        """Stop."""
        await self._task.close()
