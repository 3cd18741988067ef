"""Background loops, and files that are watched by one."""

import asyncio
import io
from typing import Any

import pytest

from app.monitoring.logging import build_logger
from app.runtime.file_watch import FileWatch, stamp_of
from app.runtime.periodic import PeriodicTask

pytestmark = pytest.mark.anyio

NEVER_S = 3600.0


class Turns:
    """Counts its turns; each waits for the gate, fails if it is to, and then says whether there is more."""

    def __init__(self):
        self.began = 0
        self.ended = 0
        self.more = 0
        self.failure = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self):
        self.began += 1
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.ended += 1
        self.more -= 1
        return self.more >= 0


def periodic(turns, log=None, **options):
    logger = build_logger(log_level="error", stream=log or io.StringIO())
    chosen: dict[str, Any] = {"name": "turns", "every_s": NEVER_S, "logger": logger, "failed": "turn_failed"} | options
    return PeriodicTask(turns, **chosen)


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for raises no event
            await asyncio.sleep(0)


async def test_turns_come_at_the_interval_or_when_woken():
    turns = Turns()
    often = periodic(turns, every_s=0.0)
    often.start()
    await until(lambda: turns.ended >= 3)
    await often.close()
    ended = turns.ended
    seldom = periodic(turns)
    seldom.start()
    await until(lambda: turns.ended == ended + 1)
    seldom.wake()
    await until(lambda: turns.ended == ended + 2)
    await seldom.close()
    assert turns.began == turns.ended


async def test_a_wake_during_a_turn_is_not_lost():
    turns = Turns()
    turns.gate.clear()
    task = periodic(turns)
    task.start()
    await until(lambda: turns.began == 1)
    task.wake()
    turns.gate.set()
    await until(lambda: turns.ended == 2)
    await task.close()


async def test_while_there_is_more_no_turn_waits():
    turns = Turns()
    turns.more = 5
    task = periodic(turns)
    task.start()
    await until(lambda: turns.ended == 6)
    await task.close()
    assert turns.ended == 6


async def test_an_exception_is_logged_and_reported_and_the_loop_goes_on():
    turns, log = Turns(), io.StringIO()
    failures: list[Exception] = []
    turns.failure = RuntimeError("a defect")
    task = periodic(turns, log, on_failure=failures.append)
    task.start()
    await until(lambda: failures)
    assert failures == [turns.failure]
    assert '"event": "turn_failed"' in log.getvalue()
    assert "a defect" in log.getvalue()
    turns.failure = None
    task.wake()
    await until(lambda: turns.ended == 1)
    await task.close()


async def test_a_first_pause_is_for_the_interval():
    turns = Turns()
    task = periodic(turns, pause_first=True)
    task.start()
    await asyncio.sleep(0)
    assert turns.began == 0
    task.wake()
    await until(lambda: turns.ended == 1)
    await task.close()


async def test_a_close_lets_the_last_turn_end_in_its_time_and_cancels_it_past_that():
    turns = Turns()
    turns.gate.clear()
    task = periodic(turns)
    task.start()
    await until(lambda: turns.began == 1)
    closing = asyncio.create_task(task.close(last_turn_s=NEVER_S))
    await asyncio.sleep(0)
    turns.gate.set()
    await closing
    assert (turns.began, turns.ended) == (1, 1)
    turns.gate.clear()
    stuck = periodic(turns)
    stuck.start()
    await until(lambda: turns.began == 2)
    await stuck.close(last_turn_s=0.001)
    assert (turns.began, turns.ended) == (2, 1)


async def test_a_turn_that_swallows_its_cancellation_is_the_last():
    began = asyncio.Event()
    turns = 0

    async def stubborn():
        nonlocal turns
        turns += 1
        began.set()
        try:
            await asyncio.sleep(NEVER_S)
        except asyncio.CancelledError:
            return

    task = periodic(stubborn, every_s=0.0)
    task.start()
    await began.wait()
    await task.close()
    assert turns == 1


async def test_what_was_never_started_is_closed_too():
    turns = Turns()
    await periodic(turns).close(last_turn_s=1.0)
    assert turns.began == 0


class Watched:
    """A file, its watch, and what the watch reported."""

    def __init__(self, path, known=None):
        self.path = path
        self.changes = []
        self.failure = None
        logger = build_logger(log_level="critical", stream=io.StringIO())
        self.watch = FileWatch(
            path, self._changed, every_s=0.0, name="watch", logger=logger, failed="watch_failed", known=known
        )

    async def _changed(self, stamp):
        self.changes.append(stamp)
        if self.failure is not None:
            raise self.failure

    def put(self, text):
        temporary = self.path.with_suffix(".new")
        temporary.write_text(text)
        temporary.replace(self.path)


async def test_a_change_is_reported_once_it_has_settled(tmp_path):
    file = Watched(tmp_path / "file")
    file.put("a")
    await file.watch.check()
    assert file.changes == []
    file.put("b")
    await file.watch.check()
    assert file.changes == []
    await file.watch.check()
    assert file.changes == [stamp_of(file.path)]
    await file.watch.check()
    assert len(file.changes) == 1


async def test_a_file_that_goes_and_comes_back_has_changed_twice(tmp_path):
    path = tmp_path / "file"
    path.write_text("a")
    file = Watched(path, stamp_of(path))
    path.unlink()
    for _ in range(3):
        await file.watch.check()
    assert file.changes == [None]
    file.put("b")
    for _ in range(3):
        await file.watch.check()
    assert file.changes == [None, stamp_of(path)]


async def test_what_is_known_is_no_change(tmp_path):
    path = tmp_path / "file"
    path.write_text("a")
    file = Watched(path, stamp_of(path))
    for _ in range(3):
        await file.watch.check()
    file.put("b")
    await file.watch.mark_known()
    for _ in range(3):
        await file.watch.check()
    assert file.changes == []


async def test_an_exception_ends_no_watch(tmp_path):
    file = Watched(tmp_path / "file")
    file.failure = RuntimeError("a defect")
    file.watch.start()
    file.put("a")
    await until(lambda: len(file.changes) == 1)
    file.put("b")
    await until(lambda: len(file.changes) == 2)
    await file.watch.close()
