import asyncio
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.batcher import Batcher
from app.errors import OverloadedError, ShuttingDownError

pytestmark = pytest.mark.anyio


class Handler:
    """Records batches; each waits until the test lets it go."""

    def __init__(self):
        self.batches = []
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()

    async def __call__(self, items):
        self.batches.append(items)
        self.entered.set()
        await self.gate.wait()
        return [f"answer to {item}" for item in items]


def a_batcher(handler, *, key=lambda item: item, max_batch_size=4, max_queue=8):
    batcher = Batcher(handler, key=key, max_batch_size=max_batch_size, max_queue=max_queue)
    batcher.start()
    return batcher


async def submit_all(batcher, items):
    """Submit in order and return once all are waiting."""
    tasks = [asyncio.create_task(batcher.submit(item)) for item in items]
    await asyncio.sleep(0)
    return tasks


async def test_a_batch_is_what_came_in_while_the_last_one_ran():
    handler = Handler()
    batcher = a_batcher(handler)
    # Given a batch that runs
    (first,) = await submit_all(batcher, ["a"])
    await handler.entered.wait()
    # When three more come
    others = await submit_all(batcher, ["b", "c", "d"])
    handler.gate.set()
    # Then they are handled together, each caller getting its own answer
    assert await asyncio.gather(first, *others) == [f"answer to {item}" for item in "abcd"]
    assert handler.batches == [["a"], ["b", "c", "d"]]
    await batcher.close()


async def test_more_than_the_queue_holds_is_refused_at_once():
    handler = Handler()
    batcher = a_batcher(handler, max_queue=2)
    (running,) = await submit_all(batcher, ["a"])
    await handler.entered.wait()
    waiting = await submit_all(batcher, ["b", "c"])
    assert batcher.queue_length == 2
    with pytest.raises(OverloadedError):
        await batcher.submit("d")
    # And what was accepted is answered
    handler.gate.set()
    assert len(await asyncio.gather(running, *waiting)) == 3
    await batcher.close()


async def test_a_cancelled_caller_takes_its_item_back_and_frees_its_place():
    handler = Handler()
    batcher = a_batcher(handler, max_queue=2)
    (running,) = await submit_all(batcher, ["a"])
    await handler.entered.wait()
    kept, cancelled = await submit_all(batcher, ["b", "c"])
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    (later,) = await submit_all(batcher, ["d"])
    handler.gate.set()
    await asyncio.gather(running, kept, later)
    assert handler.batches == [["a"], ["b", "d"]]
    await batcher.close()


async def test_an_item_cancelled_in_the_moment_its_batch_is_taken_is_not_handled():
    handler = Handler()
    handler.gate.set()
    batcher = a_batcher(handler)
    kept, cancelled = await submit_all(batcher, ["a", "b"])
    # When the cancellation and the runner's turn fall into the same round of the loop
    cancelled.cancel()
    await asyncio.gather(kept, cancelled, return_exceptions=True)
    assert handler.batches == [["a"]]
    assert batcher.queue_length == 0
    await batcher.close()


async def test_a_crash_fails_its_batch_and_no_other():
    async def handle(items):
        if "bad" in items:
            raise RuntimeError("crashed")
        return items

    batcher = a_batcher(handle, max_batch_size=1)
    results = await asyncio.gather(*(batcher.submit(item) for item in ["a", "bad", "b"]), return_exceptions=True)
    assert [results[0], results[2]] == ["a", "b"]
    assert isinstance(results[1], RuntimeError)
    await batcher.close()


async def test_an_exception_as_result_goes_to_its_own_caller():
    async def handle(items):
        return [ValueError(item) if item == "bad" else item for item in items]

    batcher = a_batcher(handle)
    results = await asyncio.gather(*(batcher.submit(item) for item in ["a", "bad", "b"]), return_exceptions=True)
    assert [results[0], results[2]] == ["a", "b"]
    assert isinstance(results[1], ValueError)
    await batcher.close()


async def test_too_few_results_give_nobody_anothers():
    async def handle(items):
        return items[1:]

    batcher = a_batcher(handle)
    results = await asyncio.gather(*(batcher.submit(item) for item in "abc"), return_exceptions=True)
    assert all(isinstance(result, RuntimeError) for result in results)
    await batcher.close()


async def test_closing_answers_what_waits_and_refuses_what_comes():
    handler = Handler()
    batcher = a_batcher(handler, max_batch_size=1)
    tasks = await submit_all(batcher, ["a", "b", "c"])
    closing = asyncio.create_task(batcher.close())
    await handler.entered.wait()
    with pytest.raises(ShuttingDownError):
        await batcher.submit("d")
    handler.gate.set()
    await closing
    assert [task.result() for task in tasks] == [f"answer to {item}" for item in "abc"]
    assert not batcher.running


async def test_a_batcher_that_never_started_refuses():
    batcher = Batcher(Handler(), key=lambda item: item, max_batch_size=1, max_queue=1)
    with pytest.raises(ShuttingDownError):
        await batcher.submit("a")
    await batcher.close()


@settings(deadline=None, max_examples=150)
@given(
    script=st.lists(
        st.tuples(st.sampled_from(["submit", "cancel", "yield"]), st.integers(0, 3), st.integers(0, 3)), max_size=60
    ),
    pauses=st.lists(st.integers(0, 4), min_size=1, max_size=10),
    max_batch_size=st.integers(1, 5),
)
def test_whatever_the_interleaving_each_item_is_handled_once_and_in_order(script, pauses, max_batch_size):
    asyncio.run(asyncio.wait_for(run_script(script, pauses, max_batch_size), 5))


async def run_script(script, pauses, max_batch_size):
    """An item is (key, number); numbers grow in the order of submission."""
    batches = []

    async def handle(items):
        batches.append(items)
        for _ in range(pauses[len(batches) % len(pauses)]):
            await asyncio.sleep(0)
        return [("answer", item) for item in items]

    batcher = a_batcher(handle, key=lambda item: item[0], max_batch_size=max_batch_size, max_queue=1000)
    tasks: dict[tuple[int, int], asyncio.Task[object]] = {}
    cancelled = set()
    for action, key, count in script:
        if action == "submit":
            item = (key, len(tasks))
            tasks[item] = asyncio.create_task(batcher.submit(item))
        elif action == "cancel" and tasks:
            item = list(tasks)[key * count % len(tasks)]
            if tasks[item].cancel():
                cancelled.add(item)
        else:
            for _ in range(count):
                await asyncio.sleep(0)
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    await batcher.close()

    handled = [item for batch in batches for item in batch]
    assert len(handled) == len(set(handled))
    assert set(tasks) - cancelled <= set(handled)
    by_key = defaultdict(list)
    for key, number in handled:
        by_key[key].append(number)
    assert all(numbers == sorted(numbers) for numbers in by_key.values())
    assert all(len({key for key, _ in batch}) == len(batch) <= max_batch_size for batch in batches)
    assert all(tasks[item].result() == ("answer", item) for item in tasks if item not in cancelled)
    assert batcher.queue_length == 0
