"""Answers that many ask for and one works out: kept for a moment, worked out once at a time."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from app.errors import BoardBusyError

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_MOST_KEPT: Final = 64


class SingleFlightCache(Generic[Key, Value]):
    """Values by key. However many ask for one, it is worked out no more often than every `kept_s` seconds.

    Args:
        work_out: makes the value of a key. A failure is told to all who wait for it, and not kept.
        kept_s: age up to which a value is given again; counted from when its making began.
        most_at_once: how many values are made at the same time.
        most_waiting: how many more may wait for their turn.
    """

    def __init__(
        self,
        work_out: Callable[[Key], Awaitable[Value]],
        *,
        kept_s: float,
        most_at_once: int = 1,
        most_waiting: int = 64,
    ) -> None:
        self._work_out = work_out
        self._kept_s = kept_s
        self._turn = asyncio.Semaphore(most_at_once)
        self._most_in_the_making = most_at_once + most_waiting
        self._kept: OrderedDict[Key, tuple[float, Value]] = OrderedDict()
        self._in_the_making: dict[Key, asyncio.Task[Value]] = {}

    def kept(self, key: Key) -> Value | None:
        """Return the value if there is one that is young enough."""
        found = self._kept.get(key)
        if found is None or found[0] < asyncio.get_running_loop().time() - self._kept_s:
            return None
        return found[1]

    async def get(self, key: Key) -> Value:
        """Return the value, made now if there is none that is young enough.

        Raises:
            BoardBusyError: too many others are waiting for their turn.
        """
        value = self.kept(key)
        if value is not None:
            return value
        task = self._in_the_making.get(key)
        if task is None:
            if len(self._in_the_making) >= self._most_in_the_making:
                raise BoardBusyError("Too many different questions are waiting; ask again.")
            task = self._in_the_making[key] = asyncio.create_task(self._make(key))
            task.add_done_callback(lambda done: self._end(key, done))
        # One who goes away takes it from nobody else.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Give up what is in the making."""
        tasks = list(self._in_the_making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _make(self, key: Key) -> Value:
        async with self._turn:
            began_s = asyncio.get_running_loop().time()
            value = await self._work_out(key)
        self._kept[key] = (began_s, value)
        self._kept.move_to_end(key)
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return value

    def _end(self, key: Key, task: "asyncio.Task[Value]") -> None:
        del self._in_the_making[key]
        if not task.cancelled():
            task.exception()  # looked at, or it would be logged when all who waited have gone
