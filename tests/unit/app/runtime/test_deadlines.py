"""One timer for many waits."""

import asyncio
import gc
import weakref

import pytest

from app.runtime.deadlines import Deadlines, Timeout

pytestmark = pytest.mark.anyio


class Waiting:
    def __init__(self):
        self.is_over = False
        self.ended = asyncio.Event()

    def end(self):
        self.is_over = True
        self.ended.set()


async def test_each_wait_ends_at_its_time_and_not_before_those_that_come_first():
    deadlines, waits = Deadlines(), [Waiting() for _ in range(3)]
    now = asyncio.get_running_loop().time()
    for wait, after_s in zip(waits, (0.01, 0.03, 3600.0), strict=True):
        deadlines.add(wait, now + after_s)
    await asyncio.wait_for(waits[1].ended.wait(), 30)
    assert waits[0].is_over
    assert asyncio.get_running_loop().time() >= now + 0.03
    assert not waits[2].is_over
    deadlines.close()


async def test_what_is_over_is_left_alone_and_forgotten():
    deadlines, waits = Deadlines(), [Waiting() for _ in range(5)]
    now = asyncio.get_running_loop().time()
    for wait in waits[:4]:
        deadlines.add(wait, now + 0.01)
        wait.is_over = True
    deadlines.add(waits[4], now + 0.01)
    ended, over = [wait.ended for wait in waits], [weakref.ref(wait) for wait in waits[:4]]
    del wait, waits[:4]
    gc.collect()
    assert [reference() for reference in over] == [None] * 4
    await asyncio.wait_for(ended[4].wait(), 30)
    assert [one.is_set() for one in ended] == [False, False, False, False, True]


async def test_nothing_is_ended_after_closing():
    deadlines, wait, later = Deadlines(), Waiting(), Deadlines()
    now = asyncio.get_running_loop().time()
    deadlines.add(wait, now + 0.01)
    deadlines.close()
    # Given another timer that rings after the time of the first
    witness = Waiting()
    later.add(witness, now + 0.05)
    await asyncio.wait_for(witness.ended.wait(), 30)
    assert not wait.is_over


async def test_a_part_of_a_task_past_its_deadline_is_cancelled_and_times_out():
    deadlines = Deadlines()
    with pytest.raises(TimeoutError), Timeout(deadlines, asyncio.get_running_loop().time() + 0.01):
        await asyncio.sleep(30)
    # The task itself is not cancelled
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    with Timeout(deadlines, asyncio.get_running_loop().time() + 0.01):
        pass
    await asyncio.sleep(0.03)
    deadlines.close()


async def test_a_cancellation_by_another_goes_through_a_timeout():
    deadlines, began = Deadlines(), asyncio.Event()

    async def wait():
        with Timeout(deadlines, 3600):
            began.set()
            await asyncio.sleep(30)

    task = asyncio.create_task(wait())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadlines.close()


async def test_a_cancellation_that_comes_with_the_deadline_is_not_lost():
    deadlines = Deadlines()

    async def wait():
        with Timeout(deadlines, asyncio.get_running_loop().time() + 0.01) as timeout:
            asyncio.get_running_loop().call_at(timeout.at, task.cancel)
            await asyncio.sleep(30)

    task = asyncio.create_task(wait())
    with pytest.raises(asyncio.CancelledError):
        await task
    deadlines.close()


async def test_an_error_of_the_part_itself_is_raised_as_it_is():
    with pytest.raises(KeyError), Timeout(Deadlines(), 3600):
        raise KeyError("planted")
