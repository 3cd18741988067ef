"""The parts of the board by themselves: shared answers, the meter, the streams."""

import asyncio
import json
import math
from typing import Any

import pytest
from msgspec.structs import replace
from support.memory_store import MemoryDecisions

from app.board.content import Content
from app.board.meter import Meter, quantile_ms
from app.board.query import BoardQuery
from app.board.streams import Listener, Streams
from app.errors import BoardBusyError, ShuttingDownError, StoreUnavailableError, TooManyStreamsError
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.runtime.single_flight import SingleFlightCache
from app.store.interventions import NOW, DecisionEntry, DecisionPage, HandedOver

pytestmark = pytest.mark.anyio


class Work:
    """Answers with how often it was asked, while its gate is open."""

    def __init__(self):
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure = None
        self.asked = []

    async def __call__(self, key="one"):
        self.asked.append(key)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return f"{key} {len(self.asked)}"


async def settled():
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_answer_is_worked_out_once_for_all_who_ask_meanwhile():
    work = Work()
    shared = SingleFlightCache(work, kept_s=60)
    work.gate.clear()
    waiting = [asyncio.create_task(shared.get("a")) for _ in range(200)]
    await settled()
    work.gate.set()
    assert set(await asyncio.gather(*waiting)) == {"a 1"}
    # And it is kept
    assert await shared.get("a") == shared.kept("a") == "a 1"
    assert work.asked == ["a"]


async def test_an_old_answer_is_worked_out_anew():
    work = Work()
    shared = SingleFlightCache(work, kept_s=0)
    assert await shared.get("a") == "a 1"
    await asyncio.sleep(0.002)
    assert shared.kept("a") is None
    assert await shared.get("a") == "a 2"


async def test_who_goes_away_takes_the_answer_from_nobody_else():
    work = Work()
    shared = SingleFlightCache(work, kept_s=60)
    work.gate.clear()
    first, second = (asyncio.create_task(shared.get("a")) for _ in range(2))
    await settled()
    first.cancel()
    await settled()
    work.gate.set()
    assert await second == "a 1"
    assert first.cancelled()


async def test_a_failure_is_told_to_all_who_wait_and_not_kept():
    work = Work()
    shared = SingleFlightCache(work, kept_s=60)
    work.failure = StoreUnavailableError("gone")
    results = await asyncio.gather(*(shared.get("a") for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [StoreUnavailableError] * 3
    work.failure = None
    assert await shared.get("a") == "a 2"


async def test_different_questions_wait_for_their_turn_and_are_bounded():
    work = Work()
    shared = SingleFlightCache(work, kept_s=60, most_at_once=2, most_waiting=3)
    work.gate.clear()
    waiting = [asyncio.create_task(shared.get(str(number))) for number in range(5)]
    await settled()
    assert work.asked == ["0", "1"]
    with pytest.raises(BoardBusyError):
        await shared.get("one too many")
    work.gate.set()
    assert len(await asyncio.gather(*waiting)) == 5
    assert await shared.get("one too many") == "one too many 6"
    await shared.close()


async def test_only_so_many_answers_are_kept():
    shared = SingleFlightCache(Work(), kept_s=60)
    for number in range(100):
        await shared.get(str(number))
    assert sum(shared.kept(str(number)) is not None for number in range(100)) == 64


class Replica:
    """A meter on a clock that is moved by hand."""

    def __init__(self):
        self.metrics = Metrics()
        self.queued = 0
        self.now_s = 1000.0
        self.meter = Meter(
            self.metrics, queue_length=lambda: self.queued, queue_capacity=10, clock_s=lambda: self.now_s
        )

    def run(self, seconds, *, events=0, latency_s=0.003):
        for _ in range(seconds):
            self.now_s += 1
            for _ in range(events):
                self.metrics.events_folded.inc()
                self.metrics.batch_size.observe(1)
                self.metrics.requests.labels("POST", "/v1/events", 200).inc()
                self.metrics.request_seconds.labels("/v1/events").observe(latency_s)
            self.meter.tick()


def test_rates_are_of_the_last_ten_seconds():
    replica = Replica()
    replica.run(100, events=4)
    replica.run(5, events=10)
    report = replica.meter.report()
    assert report.events_per_s == report.batches_per_s == report.requests_per_s == pytest.approx(7)
    assert report.totals["events_folded"] == 450
    replica.run(20)
    assert replica.meter.report().events_per_s == 0


def test_latency_is_of_the_last_minute():
    replica = Replica()
    replica.run(120, events=2, latency_s=1.5)
    replica.run(60, events=3, latency_s=0.003)
    report = replica.meter.report()
    assert sum(report.latency_counts) == 180
    slow_ms = quantile_ms(report.latency_le_s, report.latency_counts, 0.99)
    assert slow_ms is not None
    assert 2 <= slow_ms <= 4


def test_a_look_up_that_finds_nothing_is_no_error_of_the_replica():
    replica = Replica()
    for code, number in (("session_not_found", 5), ("not_found", 2), ("overloaded", 3), ("invalid_event", 1)):
        replica.metrics.errors.labels(code).inc(number)
    replica.run(1)
    assert replica.meter.report().totals["errors"] == 4


def test_a_full_queue_and_refused_events_are_overload():
    replica = Replica()
    assert not replica.meter.report().overloaded
    replica.queued = 10
    assert replica.meter.report().overloaded
    replica.queued = 0
    replica.metrics.errors.labels("overloaded").inc()
    assert replica.meter.report().overloaded
    replica.run(11)
    assert not replica.meter.report().overloaded


@pytest.mark.parametrize(
    ("counts", "share", "expected"),
    [
        ([0, 0, 0], 0.5, None),
        ([10, 0, 0], 0.5, 5.0),
        ([0, 10, 0], 0.5, 15.0),
        ([5, 5, 0], 0.9, 18.0),
        ([0, 0, 1], 0.5, 20),
    ],
)
def test_a_quantile_is_read_off_the_classes(counts, share, expected):
    assert quantile_ms([0.01, 0.02, math.inf], counts, share) == (expected and pytest.approx(expected))


def streams_of(board, stats, *, most_streams=8, decisions=None, has_rules=True):
    return Streams(
        board=board,
        stats=stats,
        decisions=decisions or MemoryDecisions(),
        has_rules=lambda: has_rules,
        interval_s=0.001,
        most_streams=most_streams,
        logger=build_logger(log_level="error"),
    )


class Source:
    """Something that changes when it is told to."""

    def __init__(self, name):
        self.name = name
        self.content = Content(b'"first"', b"1")
        self.failure = None
        self.asked = 0

    async def __call__(self, query=None):
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return self.content


async def frames_until(frames, text):
    found = b""
    async with asyncio.timeout(30):
        while text not in found:
            found += await anext(frames)
    return found


async def test_a_stream_begins_with_everything_and_goes_on_with_what_changes():
    board, stats = Source("board"), Source("stats")
    streams = streams_of(board, stats)
    with streams.listening(BoardQuery()) as listener:
        frames = listener.frames()
        assert await anext(frames) == b"retry: 2000\n\n"
        await frames_until(frames, b'event: stats\ndata: "first"\n\n')
        board.content = Content(b'"second"', b"2")
        assert await frames_until(frames, b"second") == b'event: board\ndata: "second"\n\n'
        board.failure = StoreUnavailableError("gone")
        assert b"store_unavailable" in await frames_until(frames, b"event: problem")
        board.failure = None
        assert await frames_until(frames, b"event: board") == b'event: board\ndata: "second"\n\n'
        streams.close()
        assert [frame async for frame in frames] == []
        with pytest.raises(ShuttingDownError), streams.listening(BoardQuery()):
            pass


async def test_streams_of_one_query_ask_once_and_nobody_asks_when_they_are_gone():
    board, stats = Source("board"), Source("stats")
    streams = streams_of(board, stats, most_streams=3)
    with streams.listening(BoardQuery()), streams.listening(BoardQuery()), streams.listening(BoardQuery(limit=3)):
        assert streams.open == 3
        assert len(streams._channels) == 3  # noqa: SLF001 - tells sharing apart without waiting for readings
        with pytest.raises(TooManyStreamsError), streams.listening(BoardQuery()):
            pass
    assert streams.open == 0
    await settled()
    asked = board.asked
    await asyncio.sleep(0.02)
    assert board.asked == asked


async def test_a_slow_listener_misses_what_is_outdated():
    listener = Listener()
    frames = listener.frames()
    await anext(frames)
    for number in range(100):
        listener.put("stats", b"%d" % number)
    assert await anext(frames) == b"event: stats\ndata: 99\n\n"
    assert await anext(listener.frames(heartbeat_s=0.001)) == b"retry: 2000\n\n"


async def test_a_quiet_stream_has_a_heartbeat():
    frames = Listener().frames(heartbeat_s=0.001)
    await anext(frames)
    assert (await anext(frames)).startswith(b":")


async def test_a_channel_that_breaks_ends_its_streams():
    board, stats = Source("board"), Source("stats")
    board.failure = RuntimeError("a defect")
    with streams_of(board, stats).listening(BoardQuery()) as listener:
        async with asyncio.timeout(30):
            assert [frame async for frame in listener.frames()]


class Decisions(MemoryDecisions):
    """Has what tests add, one decision a shard and look."""

    def __init__(self):
        super().__init__()
        self.added = []
        self.looks = 0
        self.has_looked = asyncio.Event()

    async def read(self, after, *, most=1):
        self.looks += 1
        self.has_looked.set()
        await asyncio.sleep(0)
        places = {
            shard: DecisionPage((), place if place != NOW else "0-0", is_more=False) for shard, place in after.items()
        }
        if self.added and NOW not in after.values():
            decision = self.added.pop(0)
            places[7] = DecisionPage([DecisionEntry(7, "1-0", decision)], "1-0", is_more=bool(self.added))
        return places


async def test_a_stream_has_every_decision_that_may_be_told_and_a_slow_listener_the_last_ones():
    decisions = Decisions()
    streams = streams_of(Source("board"), Source("stats"), decisions=decisions)
    with streams.listening(BoardQuery()) as slow, streams.listening(BoardQuery()) as quick:
        await decisions.has_looked.wait()
        held = HandedOver("s-0", "r", "control", 0.5, 1, 1_795_342_600_000, told=False)
        decisions.added += [held, *(replace(held, session_id=f"s-{number}", told=True) for number in range(1, 1500))]
        frames = quick.frames()
        got: list[dict[str, Any]] = []
        while len(got) < 1499:
            frame = await anext(frames)
            for block in frame.split(b"\n\n"):
                if block.startswith(b"event: interventions\ndata: "):
                    got += json.loads(block.removeprefix(b"event: interventions\ndata: "))
        assert [one["session_id"] for one in got] == [f"s-{number}" for number in range(1, 1500)]
        assert got[0] == {
            "session_id": "s-1",
            "name": "r",
            "group": "control",
            "probability": 0.5,
            "event": 1,
            "decided": "2026-11-22T10:16:40.000+00:00",
            "idle": False,
        }
        frames = slow.frames()
        await anext(frames)
        (block,) = [one for one in (await anext(frames)).split(b"\n\n") if b"interventions" in one]
        assert [one["session_id"] for one in json.loads(block.partition(b"data: ")[2])] == [
            f"s-{number}" for number in range(500, 1500)
        ]
    streams.close()


async def test_without_rules_no_decision_is_looked_for():
    decisions = Decisions()
    board = Source("board")
    streams = streams_of(board, Source("stats"), decisions=decisions, has_rules=False)
    with streams.listening(BoardQuery()):
        while board.asked < 3:  # noqa: ASYNC110 - the source has no event
            await asyncio.sleep(0.001)
    assert decisions.looks == 0
    streams.close()
