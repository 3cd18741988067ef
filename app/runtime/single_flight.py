"""TTL cache with single flight: many callers, one reading."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Final, Generic, TypeVar

from app.errors import BoardBusyError

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_MOST_KEPT: Final = 64


class SingleFlightCache(Generic[Key, Value]):
    """Values by key, each read at most once every `kept_s` seconds, however many callers ask for it.

    Args:
        read: reads the value of a key. A failure reaches all callers that wait for it, and is not kept.
        kept_s: time to live of a value, from the begin of its reading.
        most_at_once: how many values are read at the same time.
        most_waiting: how many further keys may wait for their reading.
    """

    def __init__(
        self,
        read: Callable[[Key], Awaitable[Value]],
        *,
        kept_s: float,
        most_at_once: int = 1,
        most_waiting: int = 64,
    ) -> None:
        self._read = read
        self._kept_s = kept_s
        self._turn = asyncio.Semaphore(most_at_once)
        self._most_readings = most_at_once + most_waiting
        self._kept: OrderedDict[Key, tuple[float, Value]] = OrderedDict()
        self._readings: dict[Key, asyncio.Task[Value]] = {}

    def kept(self, key: Key) -> Value | None:
        """Return the value if the cache has it, without a wait."""
        found = self._kept.get(key)
        if found is None or found[0] < asyncio.get_running_loop().time() - self._kept_s:
            return None
        return found[1]

    async def get(self, key: Key) -> Value:
        """Return the value from the cache, or from the reading of the key, which begins if there is none.

        Raises:
            BoardBusyError: too many other keys wait for their reading.
        """
        value = self.kept(key)
        if value is not None:
            return value
        task = self._readings.get(key)
        if task is None:
            if len(self._readings) >= self._most_readings:
                raise BoardBusyError("Too many different questions are waiting; ask again.")
            task = self._readings[key] = asyncio.create_task(self._read_and_keep(key))
            task.add_done_callback(lambda done: self._end(key, done))
        # Shielded: a caller that leaves must not cancel the reading of the others.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Cancel the readings."""
        tasks = list(self._readings.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read_and_keep(self, key: Key) -> Value:
        async with self._turn:
            began_s = asyncio.get_running_loop().time()
            value = await self._read(key)
        self._kept[key] = (began_s, value)
        self._kept.move_to_end(key)
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return value

    def _end(self, key: Key, task: "asyncio.Task[Value]") -> None:
        del self._readings[key]
        if not task.cancelled():
            task.exception()  # marks it as retrieved: with no caller left, asyncio would log it
