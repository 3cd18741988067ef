"""Batches of the items that arrived while the last batch ran. Knows nothing of events, sessions or models.

There is no timer: an idle batcher handles an item at once; a busy one handles together what has arrived meanwhile.
Items of equal keys are handled in the order in which they were submitted. Batches run one after another. If the queue
already holds half of a batch, these items may start while others run, without the items of their keys.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Container, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

from app.errors import OverloadedError, ShuttingDownError

Item = TypeVar("Item")
Result = TypeVar("Result")
Result_contra = TypeVar("Result_contra", contravariant=True)


class Requeue(Enum):
    """Result of an item that the handler wants again in a later batch."""

    REQUEUE = "requeue"


REQUEUE: Final = Requeue.REQUEUE
_TURNS_TO_QUEUE: Final = 4


class Callers(Protocol[Result_contra]):
    """The callers that wait for the items of a batch, as its handler sees them."""

    def abandoned(self) -> Collection[int]:
        """Return the indices of the items whose callers no longer wait."""
        ...

    def resolve(self, index: int, result: Result_contra | Exception) -> None:
        """Give an item's result to its caller before the batch ends; only the first result of an item counts."""
        ...


# Takes the items of a batch and their callers.
Handle = Callable[[list[Item], Callers[Result]], Awaitable[Sequence[Result | Exception | Requeue]]]


# Compared by identity, because two calls may have submitted equal items.
@dataclass(slots=True, eq=False)
class _QueuedItem(Generic[Item, Result]):
    """An item of `submit`. Its future gets the result; the caller has left where that is done without one."""

    item: Item
    key: Hashable
    finished: "asyncio.Future[Any]"

    def resolve(self, result: Result | Exception) -> None:
        if not self.finished.done():
            self.finished.set_result(result)


@dataclass(slots=True, eq=False)
class _Call(Generic[Result]):
    """One call of `submit_many`: the results of its items so far. They share one future, whose result is None."""

    results: list[Result | Exception | None]
    missing: int
    stops_at: Callable[[Exception], bool] | None


@dataclass(slots=True, eq=False)
class _ItemOfMany(_QueuedItem[Item, Result]):
    call: _Call[Result]
    index: int
    """Index of the item in its call."""

    def resolve(self, result: Result | Exception) -> None:
        call = self.call
        call.results[self.index] = result
        call.missing -= 1
        stops = call.stops_at is not None and isinstance(result, Exception) and call.stops_at(result)
        if (stops or not call.missing) and not self.finished.done():
            self.finished.set_result(None)


class _Batch(Generic[Item, Result]):
    """The items that are handled together; implements `Callers`."""

    def __init__(self, queued: Sequence[_QueuedItem[Item, Result]]) -> None:
        self.queued = queued
        self._resolved: set[int] = set()

    def abandoned(self) -> Collection[int]:
        return [index for index, one in enumerate(self.queued) if one.finished.done() and index not in self._resolved]

    def resolve(self, index: int, result: Result | Exception) -> None:
        if index not in self._resolved:
            self.queued[index].resolve(result)
            self._resolved.add(index)

    def unresolved(self) -> Iterator[int]:
        """Return the indices of the items without a result."""
        return (index for index in range(len(self.queued)) if index not in self._resolved)


@dataclass(slots=True)
class _Queue(Generic[Item, Result]):
    """Waiting items by key: keys in the order of their turns, items of each key in the order of arrival."""

    keys: OrderedDict[Hashable, list[_QueuedItem[Item, Result]]] = field(default_factory=OrderedDict)
    length: int = 0

    def append(self, queued: _QueuedItem[Item, Result]) -> None:
        self.keys.setdefault(queued.key, []).append(queued)
        self.length += 1

    def put_back(self, queued: _QueuedItem[Item, Result]) -> None:
        """Put an item before all others of its key; a key without others goes behind all keys."""
        self.keys.setdefault(queued.key, []).insert(0, queued)
        self.length += 1

    def take(
        self, max_items: int, max_per_key: int, busy: Container[Hashable]
    ) -> tuple[list[_QueuedItem[Item, Result]], list[Hashable]]:
        """Remove and return the next items, except those of busy keys, and the keys of these items."""
        taken: list[_QueuedItem[Item, Result]] = []
        keys: list[Hashable] = []
        for _ in range(len(self.keys)):
            if len(taken) == max_items:
                break
            key, queued = self.keys.popitem(last=False)
            if key in busy:
                self.keys[key] = queued
                continue
            keys.append(key)
            count = min(max_per_key, max_items - len(taken))
            taken += queued[:count]
            if len(queued) > count:
                # The key goes behind all other keys; its next turn is in the next batch at the earliest.
                self.keys[key] = queued[count:]
        self.length -= len(taken)
        return taken, keys

    def remove(self, keys: Collection[Hashable], finished: "asyncio.Future[Any]") -> None:
        """Remove the items of these keys whose caller waits for this future."""
        for key in keys:
            if (queued := self.keys.get(key)) is None:
                continue
            kept = [one for one in queued if one.finished is not finished]
            self.length -= len(queued) - len(kept)
            if kept:
                self.keys[key] = kept
            else:
                del self.keys[key]


class Batcher(Generic[Item, Result]):
    """Groups items into batches; batch size and queue are bounded.

    Args:
        handle: returns one result or exception for each item of the batch, in order, and may resolve items before.
            After a `REQUEUE`, all later items of the same key must be `REQUEUE` as well. If it raises, it gets the
            items again, in ever smaller parts, so it must be safe to repeat.
        key: items of equal keys depend on each other's order.
        max_batch_size: most items of a batch.
        max_queue: most items that wait for a batch.
        max_items_per_key: most items of one key in a batch.
        max_batches: most batches that run at the same time.
        blocked: called with each key of a batch that has ended; returns a future until whose end items of the key stay
            in the queue, or None.
    """

    def __init__(
        self,
        handle: Handle[Item, Result],
        *,
        key: Callable[[Item], Hashable],
        max_batch_size: int,
        max_queue: int,
        max_items_per_key: int = 1,
        max_batches: int = 1,
        blocked: Callable[[Hashable], "asyncio.Future[None] | None"] = lambda _key: None,
    ) -> None:
        self._handle = handle
        self._key = key
        self._max_batch_size = max_batch_size
        self._max_queue = max_queue
        self._max_items_per_key = max_items_per_key
        self._max_batches = max_batches
        self._blocked = blocked
        self._busy: set[Hashable] = set()
        """Keys of the running batches, and blocked keys."""
        self._batches: set[asyncio.Task[None]] = set()
        self._queue = _Queue[Item, Result]()
        self._wake = asyncio.Event()
        self._closing = False
        self._runner: asyncio.Task[None] | None = None

    @property
    def queue_length(self) -> int:
        """Number of items that wait for a batch, without those of the running batches."""
        return self._queue.length

    @property
    def running(self) -> bool:
        """Whether submitted items are handled."""
        return self._runner is not None and not self._runner.done() and not self._closing

    def start(self) -> None:
        """Start to handle items; call once, inside the event loop."""
        self._runner = asyncio.create_task(self._run(), name="batcher")

    async def submit(self, item: Item) -> Result:
        """Return the item's result, or raise its exception.

        A caller that is cancelled before its batch starts withdraws its item. After that the handler decides; it can
        ask for abandoned items.

        Raises:
            OverloadedError: `max_queue` items are waiting.
            ShuttingDownError: the batcher is closed, or was never started.
        """
        self._check_room(1)
        finished: asyncio.Future[Result | Exception] = asyncio.get_running_loop().create_future()
        key = self._key(item)
        self._queue.append(_QueuedItem(item, key, finished))
        self._wake.set()
        try:
            result = await finished
        except asyncio.CancelledError:
            self._queue.remove((key,), finished)
            raise
        if isinstance(result, Exception):
            try:
                raise result
            finally:
                # Its traceback keeps this frame: a cycle, with the request, until a garbage collection.
                del result, finished
        return result

    async def submit_many(
        self, items: Sequence[Item], *, give_up_at: float, stops_at: Callable[[Exception], bool] | None = None
    ) -> list[Result | Exception | None]:
        """Return the items' results and exceptions, in order; None for those without a result at `give_up_at`.

        Costs one future for any number of items. Items without a result by then are withdrawn as in `submit`.

        Args:
            items: each handled independently, those of one key in this order.
            give_up_at: the deadline, by the event loop's clock.
            stops_at: whether to give up at this exception of an item. No later item of its key is handled then, so
                that the caller can submit them again in the same order. None: never.

        Raises:
            OverloadedError: the queue has no room for all of them; none is handled.
            ShuttingDownError: the batcher is closed, or was never started.
        """
        if not items:
            return []
        self._check_room(len(items))
        results: list[Result | Exception | None] = [None] * len(items)
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Not `_Call[Result](...)`: the call through an alias takes 0.9 instead of 0.1 µs.
        call: _Call[Result] = _Call(results, len(items), stops_at)
        keys = [self._key(item) for item in items]
        for index, (key, item) in enumerate(zip(keys, items, strict=True)):
            self._queue.append(_ItemOfMany(item, key, finished, call, index))
        self._wake.set()
        try:
            async with asyncio.timeout_at(give_up_at):
                await finished
        except TimeoutError:
            pass
        finally:
            if call.missing:
                self._queue.remove(set(keys), finished)
        # A copy, because a running batch may still add results.
        return results.copy()

    async def close(self) -> None:
        """Refuse new items, handle the waiting ones, and return when the last of them has its result."""
        self._closing = True
        self._wake.set()
        if self._runner is not None:
            await self._runner

    def _check_room(self, items: int) -> None:
        if not self.running:
            raise ShuttingDownError("This replica takes no more events; send the event again.")
        if self._queue.length + items > self._max_queue:
            raise OverloadedError(f"{self._queue.length} events of at most {self._max_queue} wait already; send again.")

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._can_start():
                # During a model step the event loop is blocked, and requests wait in the sockets. They need some turns
                # of the loop to be read, parsed and queued. Without these turns half of them would miss the batch, and
                # smaller batches cost more for each event (docs/performance.md).
                for _ in range(_TURNS_TO_QUEUE):
                    await asyncio.sleep(0)
                taken, keys = self._queue.take(self._max_batch_size, self._max_items_per_key, self._busy)
                # A caller that was just cancelled may not have withdrawn its items yet.
                if batch := [queued for queued in taken if not queued.finished.done()]:
                    self._start_batch(batch, keys)
                elif not taken:
                    break  # all waiting items are of busy keys
            if self._closing and not self._batches and not self._queue.keys:
                return

    def _can_start(self) -> bool:
        if not self._batches:
            return bool(self._queue.keys)
        # Half, as the last part of a large call would else wait for Redis alone: 1.15 times the consumer's events/s.
        return len(self._batches) < self._max_batches and 2 * self._queue.length >= self._max_batch_size

    def _start_batch(self, batch: list[_QueuedItem[Item, Result]], keys: Sequence[Hashable]) -> None:
        self._busy.update(keys)
        task = asyncio.create_task(self._handle_batch(batch), name="batch")
        self._batches.add(task)

        def end(_task: asyncio.Task[None]) -> None:
            self._batches.discard(task)
            for key in keys:
                self._release(key)
            self._wake.set()

        task.add_done_callback(end)

    def _release(self, key: Hashable) -> None:
        try:
            until = self._blocked(key)
        except Exception:  # noqa: BLE001 - the other keys of the batch must not stay busy; the handler is asked again
            until = None
        if until is None:
            self._busy.discard(key)
        else:
            until.add_done_callback(partial(self._unblock, key))

    def _unblock(self, key: Hashable, _until: "asyncio.Future[None]") -> None:
        self._busy.discard(key)
        self._wake.set()

    async def _handle_batch(self, queued: list[_QueuedItem[Item, Result]]) -> None:
        # The last one first, so that requeued items keep their order.
        for one in reversed(await self._handle_part(queued)):
            self._queue.put_back(one)

    async def _handle_part(self, queued: list[_QueuedItem[Item, Result]]) -> list[_QueuedItem[Item, Result]]:
        """Handle some items of a batch; return those that are to be queued again, in order."""
        batch = _Batch(queued)
        try:
            results = await self._handle([one.item for one in queued], batch)
            if len(results) != len(queued):
                # It is unknown which result is missing, and no caller may get another's.
                raise RuntimeError(f"the handler gave {len(results)} results for {len(queued)} items")  # noqa: TRY301 - as if the handler had raised it
        except Exception as exc:  # noqa: BLE001 - any exception goes to the caller of the item that raises it
            left = [queued[index] for index in batch.unresolved()]
            return await self._handle_apart([one for one in left if not one.finished.done()], exc)
        again = []
        for index in batch.unresolved():
            if (result := results[index]) is REQUEUE:
                again.append(queued[index])
            else:
                queued[index].resolve(result)
        return again

    async def _handle_apart(
        self, queued: list[_QueuedItem[Item, Result]], failure: Exception
    ) -> list[_QueuedItem[Item, Result]]:
        """Handle both halves of items that failed together, so that only the item that raises gets the exception."""
        if len(queued) <= 1:
            for one in queued:
                one.resolve(failure)
            return []
        by_key: dict[Hashable, list[_QueuedItem[Item, Result]]] = {}
        for one in queued:
            by_key.setdefault(one.key, []).append(one)
        groups = list(by_key.values())
        again: list[_QueuedItem[Item, Result]] = []
        if len(groups) > 1:
            middle = len(groups) // 2
            for half in (groups[:middle], groups[middle:]):
                again += await self._handle_part([one for group in half for one in group])
            return again
        for index, one in enumerate(queued):
            again = await self._handle_part([one])
            if again:
                # The later ones must not overtake it.
                return again + queued[index + 1 :]
        return []
