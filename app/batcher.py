"""Batches of what came in while the last batch ran. Knows nothing of events, sessions or models.

There is no timer: an idle batcher handles an item at once, a busy one handles together what has gathered. At most one
item of a key is in a batch, and items of a key are handled in the order they were submitted.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from app.errors import OverloadedError, ShuttingDownError

Item = TypeVar("Item")
Result = TypeVar("Result")


# Compared by identity: two waiters may have submitted equal items.
@dataclass(slots=True, eq=False)
class _Waiter(Generic[Item, Result]):
    item: Item
    future: "asyncio.Future[Result]"


class Batcher(Generic[Item, Result]):
    """Groups single items into batches, bounded in size and in number waiting.

    Args:
        handle: takes a batch and returns one result or exception an item, in order.
        key: what must not be twice in one batch.
        max_batch_size: most items of a batch.
        max_queue: most items that wait for a batch.
    """

    def __init__(
        self,
        handle: Callable[[list[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        key: Callable[[Item], Hashable],
        max_batch_size: int,
        max_queue: int,
    ) -> None:
        self._handle = handle
        self._key = key
        self._max_batch_size = max_batch_size
        self._max_queue = max_queue
        # Keys in the order their turn comes, each with its waiters in the order they came.
        self._waiting: OrderedDict[Hashable, deque[_Waiter[Item, Result]]] = OrderedDict()
        self._queue_length = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._runner: asyncio.Task[None] | None = None

    @property
    def queue_length(self) -> int:
        """Number of items that wait for a batch, without those of the batch that runs."""
        return self._queue_length

    @property
    def running(self) -> bool:
        """Whether submitted items are handled."""
        return self._runner is not None and not self._runner.done() and not self._closing

    def start(self) -> None:
        """Begin to handle items; call once, inside the event loop."""
        self._runner = asyncio.create_task(self._run(), name="batcher")

    async def submit(self, item: Item) -> Result:
        """Return the item's result, or raise its exception.

        A caller that is cancelled before its batch begins takes its item back: it is not handled. Afterwards it is
        handled, and nobody hears of it.

        Raises:
            OverloadedError: `max_queue` items are waiting.
            ShuttingDownError: the batcher is closed, or was never started.
        """
        if not self.running:
            raise ShuttingDownError("This replica takes no more events; send the event again.")
        if self._queue_length >= self._max_queue:
            raise OverloadedError(f"{self._max_queue} events are waiting already; send the event again.")
        waiter = _Waiter[Item, Result](item, asyncio.get_running_loop().create_future())
        key = self._key(item)
        self._waiting.setdefault(key, deque()).append(waiter)
        self._queue_length += 1
        self._wake.set()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            self._take_back(key, waiter)
            raise

    async def close(self) -> None:
        """Refuse new items, handle those that wait, and return when the last of them is answered."""
        self._closing = True
        self._wake.set()
        if self._runner is not None:
            await self._runner

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                if batch := self._next_batch():
                    await self._handle_batch(batch)
            if self._closing:
                return

    def _next_batch(self) -> list[_Waiter[Item, Result]]:
        batch = []
        for _ in range(min(self._max_batch_size, len(self._waiting))):
            key, waiters = self._waiting.popitem(last=False)
            batch.append(waiters.popleft())
            if waiters:
                # Behind all other keys; for itself this key comes again in the next batch at the earliest.
                self._waiting[key] = waiters
        self._queue_length -= len(batch)
        # A caller that was cancelled a moment ago may not have had its turn to take its item back.
        return [waiter for waiter in batch if not waiter.future.done()]

    async def _handle_batch(self, batch: list[_Waiter[Item, Result]]) -> None:
        try:
            results = await self._handle([waiter.item for waiter in batch])
        except Exception as exc:  # noqa: BLE001 - whatever it is, it belongs to the callers of this batch
            results = [exc] * len(batch)
        if len(results) != len(batch):
            # Whose result is missing cannot be known, and nobody may get another's.
            results = [RuntimeError(f"the handler gave {len(results)} results for {len(batch)} items")] * len(batch)
        for waiter, result in zip(batch, results, strict=True):
            if waiter.future.done():  # its caller has gone
                continue
            if isinstance(result, Exception):
                waiter.future.set_exception(result)
            else:
                waiter.future.set_result(result)

    def _take_back(self, key: Hashable, waiter: _Waiter[Item, Result]) -> None:
        waiters = self._waiting.get(key)
        if waiters is None or waiter not in waiters:
            return
        waiters.remove(waiter)
        self._queue_length -= 1
        if not waiters:
            del self._waiting[key]
