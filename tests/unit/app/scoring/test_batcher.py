import asyncio
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import OverloadedError, ShuttingDownError
from app.scoring.batcher import REQUEUE, Batcher

pytestmark = pytest.mark.anyio


class Handler:
    """Records batches; each waits until the test lets it go."""

    def __init__(self):
        self.batches = []
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()

    async def __call__(self, items, callers):
        self.batches.append(items)
        self.entered.set()
        await self.gate.wait()
        return [f"answer to {item}" for item in items]


def a_batcher(handler, *, key=lambda item: item, max_batch_size=4, max_queue=8, max_items_per_key=1, max_batches=1):
    batcher = Batcher(
        handler,
        key=key,
        max_batch_size=max_batch_size,
        max_queue=max_queue,
        max_items_per_key=max_items_per_key,
        max_batches=max_batches,
    )
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


async def test_who_leaves_takes_only_its_own_items_out_of_the_queue():
    handler = Handler()
    batcher = a_batcher(handler, key=lambda item: item[0])
    first = await submit_all(batcher, ["x1"])
    await handler.entered.wait()
    leaving, staying, other = await submit_all(batcher, ["a1", "a2", "b1"])
    assert batcher.queue_length == 3
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert batcher.queue_length == 2
    handler.gate.set()
    assert await asyncio.gather(*first, staying, other) == [f"answer to {item}" for item in ("x1", "a2", "b1")]
    assert handler.batches == [["x1"], ["a2", "b1"]]
    assert batcher.queue_length == 0
    await batcher.close()


@pytest.mark.parametrize("surplus", [-1, 1])
async def test_a_handler_of_another_number_of_results_answers_nobody(surplus):
    async def handle(items, callers):
        return ["of whom?"] * (len(items) + surplus)

    batcher = a_batcher(handle)
    results = await batcher.submit_many(["a", "b"], give_up_at=asyncio.get_running_loop().time() + 30)
    assert [str(result) for result in results] == [f"the handler gave {1 + surplus} results for 1 items"] * 2
    await batcher.close()


async def test_results_that_were_given_up_stay_as_they_were_returned():
    handler = Handler()
    batcher = a_batcher(handler)
    # Given a batch that still runs when its caller gives up
    giving_up = asyncio.create_task(batcher.submit_many(["a", "b"], give_up_at=asyncio.get_running_loop().time() + 0.2))
    await handler.entered.wait()
    results = await giving_up
    assert results == [None, None]
    handler.gate.set()
    assert await batcher.submit("c") == "answer to c"
    assert results == [None, None]
    await batcher.close()


@pytest.mark.parametrize(
    ("most", "waiting", "begun"),
    [(4, "b", []), (4, "bc", ["b", "c"]), (4, "bcdef", ["b", "c", "d", "e"]), (3, "b", []), (3, "bc", ["b", "c"])],
)
async def test_half_of_a_batch_is_enough_to_begin_beside_another(most, waiting, begun):
    handler = Handler()
    batcher = a_batcher(handler, max_batch_size=most, max_batches=2)
    first = await submit_all(batcher, ["a"])
    await handler.entered.wait()
    others = await submit_all(batcher, [*waiting])
    for _ in range(20):
        await asyncio.sleep(0)
    assert handler.batches[1:] == ([begun] if begun else [])
    handler.gate.set()
    await asyncio.gather(*first, *others)
    await batcher.close()


async def test_a_batch_begins_beside_one_that_runs_and_a_third_waits():
    handler = Handler()
    batcher = a_batcher(handler, key=lambda item: item[0], max_batch_size=4, max_batches=2)
    # Given a batch that runs, and less than half of one behind it
    (first,) = await submit_all(batcher, ["a1"])
    await handler.entered.wait()
    others = await submit_all(batcher, ["b1"])
    for _ in range(20):
        await asyncio.sleep(0)
    assert handler.batches == [["a1"]]
    # When enough comes, one of it of the key that runs
    others += await submit_all(batcher, ["a2", "c1", "d1", "e1", "f1"])
    for _ in range(20):
        await asyncio.sleep(0)
    # Then it begins without that, and a third waits
    assert handler.batches == [["a1"], ["b1", "c1", "d1", "e1"]]
    handler.gate.set()
    assert await asyncio.gather(first, *others) == [
        f"answer to {item}" for item in ["a1", "b1", "a2", "c1", "d1", "e1", "f1"]
    ]
    assert handler.batches[2:] == [["f1", "a2"]]
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
    async def handle(items, callers):
        if "bad" in items:
            raise RuntimeError("crashed")
        return items

    batcher = a_batcher(handle, max_batch_size=1)
    results = await asyncio.gather(*(batcher.submit(item) for item in ["a", "bad", "b"]), return_exceptions=True)
    assert [results[0], results[2]] == ["a", "b"]
    assert isinstance(results[1], RuntimeError)
    await batcher.close()


async def test_an_exception_as_result_goes_to_its_own_caller():
    async def handle(items, callers):
        return [ValueError(item) if item == "bad" else item for item in items]

    batcher = a_batcher(handle)
    results = await asyncio.gather(*(batcher.submit(item) for item in ["a", "bad", "b"]), return_exceptions=True)
    assert [results[0], results[2]] == ["a", "b"]
    assert isinstance(results[1], ValueError)
    await batcher.close()


async def test_too_few_results_give_no_caller_anothers():
    async def handle(items, callers):
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


def in_a_while(seconds=30.0):
    return asyncio.get_running_loop().time() + seconds


async def test_many_items_are_answered_together_each_with_its_own():
    async def handle(items, callers):
        return [ValueError(item) if item == "bad" else f"answer to {item}" for item in items]

    batcher = a_batcher(handle, max_batch_size=2)
    answer_a, error, answer_b = await batcher.submit_many(["a", "bad", "b"], give_up_at=in_a_while())
    assert [answer_a, answer_b] == ["answer to a", "answer to b"]
    assert isinstance(error, ValueError)
    assert await batcher.submit_many([], give_up_at=in_a_while()) == []
    await batcher.close()


async def test_items_of_a_key_are_taken_in_runs_and_stay_in_order():
    handler = Handler()
    handler.gate.set()
    batcher = a_batcher(handler, key=lambda item: item[0], max_batch_size=4, max_queue=20, max_items_per_key=3)
    items = ["a1", "a2", "b1", "a3", "a4", "a5", "b2"]
    results = await batcher.submit_many(items, give_up_at=in_a_while())
    assert results == [f"answer to {item}" for item in items]
    assert handler.batches == [["a1", "a2", "a3", "b1"], ["a4", "a5", "b2"]]
    await batcher.close()


async def test_many_items_for_which_there_is_too_little_room_are_refused_whole():
    handler = Handler()
    batcher = a_batcher(handler, max_queue=3)
    (running,) = await submit_all(batcher, ["a"])
    await handler.entered.wait()
    waiting = await submit_all(batcher, ["b"])
    with pytest.raises(OverloadedError):
        await batcher.submit_many(["c", "d", "e"], give_up_at=in_a_while())
    assert batcher.queue_length == 1
    many = asyncio.create_task(batcher.submit_many(["c", "d"], give_up_at=in_a_while()))
    await asyncio.sleep(0)
    assert batcher.queue_length == 3
    handler.gate.set()
    await asyncio.gather(running, *waiting, many)
    assert handler.batches == [["a"], ["b", "c", "d"]]
    await batcher.close()


async def test_many_items_that_take_too_long_are_answered_as_far_as_they_came():
    wanted = []

    class SecondHangs(Handler):
        async def __call__(self, items, callers):
            if self.batches:
                await super().__call__(items, callers)
                wanted.append([place not in callers.abandoned() for place in range(len(items))])
            else:
                self.batches.append(items)
            return [f"answer to {item}" for item in items]

    handler = SecondHangs()
    batcher = a_batcher(handler, max_batch_size=2)
    results = await batcher.submit_many(["a", "b", "c", "d", "e"], give_up_at=in_a_while(0.05))
    assert results == ["answer to a", "answer to b", None, None, None]
    # Items in the queue are withdrawn, and the running batch can see that its items are abandoned
    assert batcher.queue_length == 0
    handler.gate.set()
    assert await batcher.submit("f") == "answer to f"
    assert handler.batches == [["a", "b"], ["c", "d"], ["f"]]
    assert wanted == [[False, False], [True]]
    await batcher.close()


async def test_a_batch_knows_which_of_its_items_are_abandoned():
    handler = Handler()
    wanted = []

    async def handle(items, callers):
        results = await handler(items, callers)
        wanted.append([place not in callers.abandoned() for place in range(len(items))])
        return results

    batcher = a_batcher(handle)
    kept, abandoned = await submit_all(batcher, ["a", "b"])
    await handler.entered.wait()
    abandoned.cancel()
    handler.gate.set()
    await asyncio.gather(kept, abandoned, return_exceptions=True)
    await batcher.close()
    assert handler.batches == [["a", "b"]]
    assert wanted == [[True, False]]


class ResolvesTheFirst(Handler):
    """Resolves the first item of a batch at once, the others when the test opens the gate."""

    def __init__(self, then=None):
        super().__init__()
        self.then = then
        self.abandoned = []

    async def __call__(self, items, callers):
        callers.resolve(0, f"first answer to {items[0]}")
        results = await super().__call__(items, callers)
        self.abandoned.append(list(callers.abandoned()))
        if self.then is not None:
            raise self.then
        return results


async def test_an_item_that_the_handler_resolves_is_answered_at_once_and_only_once():
    handler = ResolvesTheFirst()
    batcher = a_batcher(handler)
    resolved, other = await submit_all(batcher, ["a", "b"])
    assert await resolved == "first answer to a"
    assert not other.done()
    # Its key is busy until the batch is through
    again, third = await submit_all(batcher, ["a", "c"])
    assert batcher.queue_length == 2
    handler.gate.set()
    others = list(await asyncio.gather(other, again, third))
    assert others == ["answer to b", "first answer to a", "answer to c"]
    assert handler.batches == [["a", "b"], ["a", "c"]]
    # A caller that has its answer does not count as abandoned
    assert handler.abandoned == [[], []]
    await batcher.close()


async def test_a_resolved_item_keeps_its_result_when_the_batch_crashes():
    handler = ResolvesTheFirst(then=RuntimeError("crashed"))
    handler.gate.set()
    batcher = a_batcher(handler)
    resolved, failed = await asyncio.gather(*(batcher.submit(item) for item in "ab"), return_exceptions=True)
    assert resolved == "first answer to a"
    assert isinstance(failed, RuntimeError)
    many = await batcher.submit_many(["c", "d"], give_up_at=in_a_while())
    assert many[0] == "first answer to c"
    assert isinstance(many[1], RuntimeError)
    await batcher.close()


async def test_a_requeued_item_comes_again_before_the_rest_of_its_key():
    batches = []

    async def handle(items, callers):
        batches.append(items)
        return [REQUEUE if item[0] == "a" and len(batches) == 1 else f"answer to {item}" for item in items]

    batcher = a_batcher(handle, key=lambda item: item[0], max_items_per_key=2, max_queue=20)
    items = ["a1", "a2", "b1", "a3", "a4", "b2", "b3"]
    assert await batcher.submit_many(items, give_up_at=in_a_while()) == [f"answer to {item}" for item in items]
    assert batches == [["a1", "a2", "b1", "b2"], ["a1", "a2", "b3"], ["a3", "a4"]]
    assert batcher.queue_length == 0
    await batcher.close()


async def test_a_requeued_item_is_handled_before_closing_and_dropped_when_abandoned():
    handler = Handler()

    async def handle(items, callers):
        await handler(items, callers)
        return [REQUEUE if len(handler.batches) < 3 else f"answer to {item}" for item in items]

    batcher = a_batcher(handle)
    kept, abandoned = await submit_all(batcher, ["a", "b"])
    await handler.entered.wait()
    abandoned.cancel()
    handler.gate.set()
    await batcher.close()
    assert await kept == "answer to a"
    assert handler.batches == [["a", "b"], ["a"], ["a"]]
    assert batcher.queue_length == 0


@settings(deadline=None, max_examples=150)
@given(
    script=st.lists(
        st.tuples(st.sampled_from(["submit", "submit many", "cancel", "yield"]), st.integers(0, 3), st.integers(0, 3)),
        max_size=60,
    ),
    pauses=st.lists(st.integers(0, 4), min_size=1, max_size=10),
    max_batch_size=st.integers(1, 5),
    max_items_per_key=st.integers(1, 3),
    put_off=st.sets(st.integers(0, 20)),
    max_batches=st.integers(1, 3),
)
def test_whatever_the_interleaving_each_item_is_handled_once_and_in_order(
    script, pauses, max_batch_size, max_items_per_key, put_off, max_batches
):
    asyncio.run(
        asyncio.wait_for(run_script(script, pauses, max_batch_size, max_items_per_key, put_off, max_batches), 30)
    )


async def run_script(script, pauses, max_batch_size, max_items_per_key, put_off, max_batches):
    """An item is (key, number); numbers grow in the order of submission. Keys are requeued in the batches `put_off`."""
    batches = []
    handled: list[tuple[int, int]] = []
    running: list[set[int]] = []

    async def handle(items, callers):
        batches.append(items)
        keys = {key for key, _ in items}
        # No session is in two batches at once
        assert not any(keys & others for others in running)
        running.append(keys)
        assert len(running) <= max_batches
        later = items[0][0] if len(batches) in put_off else None
        for _ in range(pauses[len(batches) % len(pauses)]):
            await asyncio.sleep(0)
        running.remove(keys)
        handled.extend(item for item in items if item[0] != later)
        return [REQUEUE if item[0] == later else ("answer", item) for item in items]

    batcher = a_batcher(
        handle,
        key=lambda item: item[0],
        max_batch_size=max_batch_size,
        max_queue=1000,
        max_items_per_key=max_items_per_key,
        max_batches=max_batches,
    )
    tasks: dict[tuple[int, int], asyncio.Task[object]] = {}
    cancelled = set()
    many: list[tuple[list[tuple[int, int]], asyncio.Task[list[object]]]] = []
    submitted = 0
    for action, key, count in script:
        if action == "submit":
            item = (key, submitted)
            tasks[item] = asyncio.create_task(batcher.submit(item))
            submitted += 1
        elif action == "submit many":
            items = [((key + place) % 3, submitted + place) for place in range(2 * count)]
            many.append((items, asyncio.create_task(batcher.submit_many(items, give_up_at=in_a_while()))))
            submitted += len(items)
        elif action == "cancel" and tasks:
            item = list(tasks)[key * count % len(tasks)]
            if tasks[item].cancel():
                cancelled.add(item)
        else:
            for _ in range(count):
                await asyncio.sleep(0)
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    for items, task in many:
        assert await task == [("answer", item) for item in items]
    await batcher.close()

    assert_each_once_and_in_order(handled)
    assert set(tasks) - cancelled <= set(handled)
    assert_bounded(batches, max_batch_size, max_items_per_key)
    assert all(tasks[item].result() == ("answer", item) for item in tasks if item not in cancelled)
    assert batcher.queue_length == 0


def assert_each_once_and_in_order(handled):
    assert len(handled) == len(set(handled))
    by_key = defaultdict(list)
    for key, number in handled:
        by_key[key].append(number)
    assert all(numbers == sorted(numbers) for numbers in by_key.values())


def assert_bounded(batches, max_batch_size, max_items_per_key):
    for batch in batches:
        assert len(batch) <= max_batch_size
        assert all(sum(key == one for key, _ in batch) <= max_items_per_key for one, _ in batch)


async def test_a_call_ends_at_its_deadline_and_its_item_is_not_handled():
    # Given a batch that does not end, and calls behind it that may wait for some time
    held = asyncio.Event()
    handled: list[str] = []

    async def handle(items, callers):
        await held.wait()
        handled.extend(item for place, item in enumerate(items) if place not in callers.abandoned())
        return items

    batcher = Batcher(handle, key=lambda item: item, max_batch_size=8, max_queue=8)
    batcher.start()
    first = asyncio.create_task(batcher.submit("first"))
    await asyncio.sleep(0)
    calls = [
        asyncio.create_task(asyncio.wait_for(batcher.submit(item), wait_s))
        for item, wait_s in [("soon", 0.02), ("later", 0.05), ("much later", 3600.0)]
    ]
    # When their times come
    done = await asyncio.wait_for(asyncio.gather(*calls[:2], return_exceptions=True), 30)
    # Then each has ended separately, and abandoned items are not handled
    assert [type(one) for one in done] == [TimeoutError, TimeoutError]
    assert not calls[2].done()
    held.set()
    assert await first == "first"
    assert await calls[2] == "much later"
    assert handled == ["first", "much later"]
    await batcher.close()


async def test_items_of_a_blocked_key_wait_for_its_end_and_others_do_not():
    blocked: dict[str, asyncio.Future[None]] = {"a": asyncio.get_running_loop().create_future()}
    handled = []
    begun = asyncio.Event()

    async def handle(items, callers):
        handled.append(items)
        begun.set()
        return [REQUEUE if item in blocked else item for item in items]

    def until(key):
        return blocked.get(key)

    batcher = Batcher(handle, key=lambda item: item, max_batch_size=4, max_queue=8, blocked=until)
    batcher.start()
    (waiting,) = await submit_all(batcher, ["a"])
    await begun.wait()
    assert await batcher.submit("b") == "b"
    (second,) = await submit_all(batcher, ["a"])
    assert await batcher.submit("c") == "c"
    assert handled == [["a"], ["b"], ["c"]]
    assert batcher.queue_length == 2
    # A caller that leaves meanwhile withdraws its item
    second.cancel()
    blocked.pop("a").set_result(None)
    assert await waiting == "a"
    assert handled[3:] == [["a"]]
    await batcher.close()
