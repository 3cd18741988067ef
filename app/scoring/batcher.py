"""Batches of what came in while the last batch ran. Knows nothing of events, sessions or models.

There is no timer: an idle batcher handles an item at once, a busy one handles together what has gathered. Items of a
key are handled in the order they were submitted. Batches run one after another, unless so much waits that the next one
is full already: then it may begin beside those that run, without the items of their keys.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Container, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Generic, Protocol, TypeVar

from app.errors import OverloadedError, ShuttingDownError
from app.runtime.deadlines import Deadlines

Item = TypeVar("Item")
Result = TypeVar("Result")
Told_contra = TypeVar("Told_contra", contravariant=True)


class Requeue(Enum):
    """What a handler answers for an item that it wants again in a later batch."""

    REQUEUE = "later"


REQUEUE: Final = Requeue.REQUEUE
_TURNS_TO_QUEUE: Final = 4


class Caller(Protocol[Told_contra]):
    """Who waits for the results of some items."""

    @property
    def is_over(self) -> bool:
        """Whether it waits no longer: it has all its results, or gave up. Once so, it stays so."""
        ...

    def answer(self, place: int, result: Told_contra | Exception) -> None:
        """Take the result of its item of that place; comes while it waits no longer, too."""
        ...

    def end(self) -> None:
        """Its time is up before it had all its results."""
        ...


class Callers(Protocol[Told_contra]):
    """Who waits for the items of a batch, as its handler sees them."""

    def abandoned(self) -> Collection[int]:
        """Return the places of the items whose callers wait no longer, and never will again."""
        ...

    def resolve(self, place: int, result: Told_contra | Exception) -> None:
        """Answer an item at once, the rest of the batch being on its way; the first answer of a place counts."""
        ...


# Takes a batch and those who wait for it.
Handle = Callable[[list[Item], Callers[Result]], Awaitable[Sequence[Result | Exception | Requeue]]]


# Compared by identity: two callers may have submitted equal items.
@dataclass(slots=True, eq=False)
class _Call(Generic[Result]):
    """One caller, the results of its items so far, and the one future it waits for however many they are."""

    results: list[Result | Exception | None]
    missing: int
    answered: "asyncio.Future[None]"

    @property
    def is_over(self) -> bool:
        return self.answered.done()

    def end(self) -> None:
        self.answered.set_exception(TimeoutError())

    def answer(self, place: int, result: Result | Exception) -> None:
        self.results[place] = result
        self.missing -= 1
        if not self.missing and not self.answered.done():
            self.answered.set_result(None)


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    caller: Caller[Result]
    place: int


class _Batch(Generic[Item, Result]):
    """What is handled together, and the callers that were answered already (see `Callers`)."""

    def __init__(self, waiting: Sequence[_Waiting[Item, Result]]) -> None:
        self.waiting = waiting
        self._told: set[int] = set()

    def abandoned(self) -> Collection[int]:
        return [place for place, one in enumerate(self.waiting) if one.caller.is_over and place not in self._told]

    def resolve(self, place: int, result: Result | Exception) -> None:
        if place not in self._told:
            self._told.add(place)
            waiting = self.waiting[place]
            waiting.caller.answer(waiting.place, result)

    def open(self) -> Iterator[int]:
        """Return the places that were not answered yet, the last one first."""
        return (place for place in reversed(range(len(self.waiting))) if place not in self._told)


@dataclass(slots=True)
class _Queue(Generic[Item, Result]):
    """Items that wait, by key; keys in the order their turn comes, items of each in the order they came."""

    keys: OrderedDict[Hashable, deque[_Waiting[Item, Result]]] = field(default_factory=OrderedDict)
    length: int = 0

    def append(self, key: Hashable, waiting: _Waiting[Item, Result]) -> None:
        if (others := self.keys.get(key)) is None:
            self.keys[key] = deque((waiting,))
        else:
            others.append(waiting)
        self.length += 1

    def put_back(self, key: Hashable, waiting: _Waiting[Item, Result]) -> None:
        """Put an item before all others of its key; a key without others goes behind all keys."""
        self.keys.setdefault(key, deque()).appendleft(waiting)
        self.length += 1

    def take(
        self, most: int, most_of_a_key: int, busy: Container[Hashable]
    ) -> tuple[list[_Waiting[Item, Result]], list[Hashable]]:
        """Take items of the keys whose turn it is, but for those that are busy; return the keys as well."""
        taken: list[_Waiting[Item, Result]] = []
        keys: list[Hashable] = []
        for _ in range(len(self.keys)):
            if len(taken) == most:
                break
            key, waiting = self.keys.popitem(last=False)
            if key in busy:
                self.keys[key] = waiting
                continue
            keys.append(key)
            for _ in range(min(most_of_a_key, most - len(taken), len(waiting))):
                taken.append(waiting.popleft())  # noqa: PERF401 - what is taken is popped
            if waiting:
                # Behind all other keys; for itself this key comes again in the next batch at the earliest.
                self.keys[key] = waiting
        self.length -= len(taken)
        return taken, keys

    def remove(self, keys: set[Hashable], caller: Caller[Result]) -> None:
        """Remove a caller's items, which are of these keys."""
        for key in keys:
            if (waiting := self.keys.get(key)) is None:
                continue
            kept = deque(one for one in waiting if one.caller is not caller)
            self.length -= len(waiting) - len(kept)
            if kept:
                self.keys[key] = kept
            else:
                del self.keys[key]


class Batcher(Generic[Item, Result]):
    """Groups items into batches, bounded in size and in number waiting.

    Args:
        handle: returns one result or exception an item of the batch, in order. An item that is to come again later is
            answered `REQUEUE`, and so are then all items of its key behind it. It may tell results before it returns.
        key: items of equal keys depend on each other's order.
        max_batch_size: most items of a batch.
        max_queue: most items that wait for a batch.
        max_items_per_key: most items of one key in a batch.
        max_batches: most batches at a time.
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
    ) -> None:
        self._handle = handle
        self._key = key
        self._max_batch_size = max_batch_size
        self._max_queue = max_queue
        self._max_run = max_items_per_key
        self._max_batches = max_batches
        # Keys of the batches that run, and those that are run beside another.
        self._busy: set[Hashable] = set()
        self._batches: set[asyncio.Task[None]] = set()
        self._queue = _Queue[Item, Result]()
        self._wake = asyncio.Event()
        self._closing = False
        self._runner: asyncio.Task[None] | None = None
        self._deadlines = Deadlines()

    @property
    def queue_length(self) -> int:
        """Number of items that wait for a batch, without those of the batch that runs."""
        return self._queue.length

    @property
    def running(self) -> bool:
        """Whether submitted items are handled."""
        return self._runner is not None and not self._runner.done() and not self._closing

    def start(self) -> None:
        """Begin to handle items; call once, inside the event loop."""
        self._runner = asyncio.create_task(self._run(), name="batcher")

    async def submit(self, item: Item, *, give_up_at: float | None = None) -> Result:
        """Return the item's result, or raise its exception.

        A caller that gives up or is cancelled before its batch begins takes its item back: it is not handled.
        Afterwards it is up to the handler, which can ask whether the item is still wanted.

        Args:
            item: what is handled.
            give_up_at: when to wait no longer, by the event loop's clock; not before that of an earlier call. None:
                never.

        Raises:
            TimeoutError: it was not answered by then.
            OverloadedError: `max_queue` items are waiting.
            ShuttingDownError: the batcher is closed, or was never started.
        """
        # Not `_Call[Result](...)`: the call through an alias takes 0.9 instead of 0.1 µs.
        call: _Call[Result] = _Call([None], 1, asyncio.get_running_loop().create_future())
        self.check_room(1)
        self.enqueue(item, call, give_up_at=give_up_at)
        try:
            await call.answered
        finally:
            if call.missing:
                self.withdraw(item, call)
        (result,) = call.results
        if result is None:  # pragma: no cover - a call without a limit of time ends answered or cancelled
            raise RuntimeError("an item was not answered")
        if isinstance(result, Exception):
            raise result
        return result

    def enqueue(self, item: Item, caller: Caller[Result], *, give_up_at: float | None = None) -> None:
        """Have an item handled, and `caller` told the result as that of place 0: `submit` without a task that waits.

        Ask `check_room` first. A caller that ends before its result has to `withdraw` the item.

        Args:
            item: what is handled.
            caller: who waits for it, and for nothing else.
            give_up_at: as for `submit`.
        """
        self._queue.append(self._key(item), _Waiting(item, caller, 0))
        self._wake.set()
        if give_up_at is not None:
            self._deadlines.add(caller, give_up_at)

    def withdraw(self, item: Item, caller: Caller[Result]) -> None:
        """Take back the item of a caller that waits no longer, if its batch has not begun."""
        self._queue.remove({self._key(item)}, caller)

    async def submit_many(self, items: Sequence[Item], *, give_up_at: float) -> list[Result | Exception | None]:
        """Return the items' results and exceptions, in order; None for those not answered at `give_up_at`.

        Costs one future, however many items. What is not answered by then is taken back as in `submit`.

        Args:
            items: handled each for itself, those of one key in this order.
            give_up_at: when to wait no longer, by the event loop's clock.

        Raises:
            OverloadedError: there is no room for all of them; none is handled.
            ShuttingDownError: the batcher is closed, or was never started.
        """
        if not items:
            return []
        self.check_room(len(items))
        results: list[Result | Exception | None] = [None] * len(items)
        call = _Call[Result](results, len(items), asyncio.get_running_loop().create_future())
        keys = [self._key(item) for item in items]
        for place, (key, item) in enumerate(zip(keys, items, strict=True)):
            self._queue.append(key, _Waiting(item, call, place))
        self._wake.set()
        try:
            async with asyncio.timeout_at(give_up_at):
                await call.answered
        except TimeoutError:
            pass
        finally:
            if call.missing:
                self._queue.remove(set(keys), call)
        # A copy: what is answered from now on comes too late.
        return results.copy()

    async def close(self) -> None:
        """Refuse new items, handle those that wait, and return when the last of them is answered."""
        self._closing = True
        self._wake.set()
        if self._runner is not None:
            await self._runner
        self._deadlines.close()

    def check_room(self, items: int) -> None:
        """Return if so many more items are taken now.

        Raises:
            OverloadedError: there is no room for all of them.
            ShuttingDownError: the batcher is closed, or was never started.
        """
        if not self.running:
            raise ShuttingDownError("This replica takes no more events; send the event again.")
        if self._queue.length + items > self._max_queue:
            raise OverloadedError(f"{self._queue.length} events of at most {self._max_queue} wait already; send again.")

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._may_begin():
                # While a batch is stepped the loop stands still, and what came meanwhile lies in the sockets. It takes
                # some turns of the loop to be read, parsed and queued; without them, half of it would miss the batch,
                # and batches half as large cost more an event (docs/performance.md).
                for _ in range(_TURNS_TO_QUEUE):
                    await asyncio.sleep(0)
                # A caller that was cancelled a moment ago may not have had its turn to take its items back.
                taken, keys = self._queue.take(self._max_batch_size, self._max_run, self._busy)
                # As its answer is missing, it can be over for one reason only: it was cancelled or gave up.
                if batch := [waiting for waiting in taken if not waiting.caller.is_over]:
                    self._begin(batch, keys)
                elif not taken:
                    break  # all that waits is of keys that are busy
            if self._closing and not self._batches and not self._queue.keys:
                return

    def _may_begin(self) -> bool:
        if not self._batches:
            return bool(self._queue.keys)
        return len(self._batches) < self._max_batches and self._queue.length >= self._max_batch_size

    def _begin(self, batch: list[_Waiting[Item, Result]], keys: Sequence[Hashable]) -> None:
        self._busy.update(keys)
        task = asyncio.create_task(self._handle_batch(batch), name="batch")
        self._batches.add(task)

        def end(_task: asyncio.Task[None]) -> None:
            self._busy.difference_update(keys)
            self._batches.discard(task)
            self._wake.set()

        task.add_done_callback(end)

    async def _handle_batch(self, waiting: list[_Waiting[Item, Result]]) -> None:
        batch = _Batch(waiting)
        results: Sequence[Result | Exception | Requeue]
        try:
            results = await self._handle([one.item for one in waiting], batch)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it belongs to the callers of this batch
            results = [exc] * len(waiting)
        if len(results) != len(waiting):
            # Whose result is missing cannot be known, and nobody may get another's.
            results = [RuntimeError(f"the handler gave {len(results)} results for {len(waiting)} items")] * len(waiting)
        # Backwards, so that what is put back stands in its order again.
        for place in batch.open():
            result = results[place]
            if not isinstance(result, Requeue):
                waiting[place].caller.answer(waiting[place].place, result)
            else:
                self._queue.put_back(self._key(waiting[place].item), waiting[place])
