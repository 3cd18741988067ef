"""Whether a request costs the same however many sessions live, however long one is, and however many are in a batch.

* Live sessions: Redis servers with 3,000 sessions and with many, the largest number in pages of 4 KiB and of 2 MiB,
  each with a service; all get the same load in turn. With many, each request goes to one of them at random, which has
  three events and gets its fourth. With 3,000, as many sessions go on at a time, each of six events, so that a request
  finds as long a session on average; what ends stays in Redis until its idle time, which is why that Redis is emptied
  before each round.
* Length: events on one connection, one after another, in turns to sessions that have 2 events and that have 299.
* Batch: requests of 25 to 800 events, each of another session, on one connection.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

from benchmarks.hotpath.compare import Sample, measure, pairs, valid
from benchmarks.hotpath.fill import fill
from benchmarks.hotpath.one_by_one import OneByOne, timed
from benchmarks.hotpath.redis_server import RedisServer, running_redis
from benchmarks.hotpath.results import markdown_table, spread
from benchmarks.hotpath.servers import BATCH_PATH, SINGLE_PATH, Contestant, Server, running
from benchmarks.hotpath.traffic import Traffic, batch_body, new_prefix, session_id, single_body

FEW: Final = 3000
_EVENTS_OF_MANY: Final = 3
_EVENTS_OF_FEW: Final = 6
LENGTHS: Final = (3, 300)
BATCHES: Final = (25, 50, 100, 200, 400, 800)
_TURN: Final = 50
_MICROSECONDS: Final = 1e6


@dataclass(frozen=True, slots=True)
class Live:
    """Samples with few and with many live sessions, one a round.

    Attributes:
        few, many: how many.
        huge_pages: whether the two Redis servers had pages of 2 MiB.
    """

    few: int
    many: int
    huge_pages: bool
    with_few: list[Sample]
    with_many: list[Sample]


@dataclass(frozen=True, slots=True)
class Length:
    """What the n-th event of a session costs.

    Attributes:
        event: n.
        latency_us: of each request.
        server_us, redis_us: processor's time, a request.
    """

    event: int
    latency_us: list[float]
    server_us: float
    redis_us: float


@dataclass(frozen=True, slots=True)
class Batch:
    """What a request of so many events costs.

    Attributes:
        events: in the request.
        latency_us: of each request.
        server_us, redis_us: processor's time, an event.
    """

    events: int
    latency_us: list[float]
    server_us: float
    redis_us: float


def by_live_sessions(
    contestant: Contestant,
    sizes: Sequence[int],
    *,
    rounds: int,
    seconds: float,
    show: Callable[[str], None],
    huge_pages: bool = True,
) -> list[Live]:
    """Return the samples, all in turn: each number of sessions, and the largest also in huge pages."""
    kinds = [(many, False) for many in sizes] + [(max(sizes), True)] * huge_pages
    found = [Live(FEW, many, is_huge, with_few=[], with_many=[]) for many, is_huge in kinds]
    few = Traffic(slots=FEW, buyers=0.0, longest=_EVENTS_OF_FEW, shortest=_EVENTS_OF_FEW)
    with ExitStack() as stack:

        def started(live: Live) -> tuple[RedisServer, Server]:
            redis = stack.enter_context(running_redis(huge_pages=live.huge_pages))
            return redis, stack.enter_context(running(contestant, redis))

        done = 0

        def told(events: int) -> None:
            nonlocal done
            done += events
            total = sum(live.many for live in found) * _EVENTS_OF_MANY
            show(f"{done:,} of {total:,} events of live sessions")

        running_pairs: list[tuple[Live, tuple[RedisServer, Server], tuple[RedisServer, Server], Traffic]] = []
        for live in found:
            with_few, with_many, prefix = started(live), started(live), new_prefix()
            fill(with_many[1], prefix, range(1, live.many + 1), _EVENTS_OF_MANY, told)
            running_pairs.append((live, with_few, with_many, Traffic(visited=live.many, prefix=prefix)))
        for number in range(-1, rounds):
            show(f"round {max(1, number + 1)} of {rounds}")
            for live, (redis_few, server_few), (redis_many, server_many), visits in running_pairs:
                with redis_few.connect() as client:
                    client.flushall()
                samples = [
                    measure(server_few, redis_few, contestant, seconds, traffic=few),
                    measure(server_many, redis_many, contestant, seconds, traffic=visits),
                ]
                if number >= 0:  # the one before the first is there to warm up
                    live.with_few.append(samples[0])
                    live.with_many.append(samples[1])
    return found


def by_length(contestant: Contestant, requests: int, show: Callable[[str], None]) -> list[Length]:
    """Return what the third and the 300th event of a session cost."""
    with running_redis() as redis, running(contestant, redis) as server:
        prefixes = {event: new_prefix() for event in LENGTHS}
        for event, prefix in prefixes.items():
            show(f"sessions with {event - 1} events")
            # The same sessions one event at a time, as they would have come.
            fill(server, prefix, range(1, requests + 1), event - 1)
        latencies: dict[int, list[float]] = {event: [] for event in LENGTHS}
        used = {event: [0.0, 0.0] for event in LENGTHS}
        with OneByOne(server) as client:
            for first in range(1, requests + 1, _TURN):
                for event, prefix in prefixes.items():
                    show(f"event {event} of {first - 1:,} sessions")
                    bodies = [
                        single_body(session_id(prefix, number), requests * event + number)
                        for number in range(first, min(first + _TURN, requests + 1))
                    ]
                    spent = timed(client, SINGLE_PATH, bodies, latencies[event], redis)
                    used[event] = [before + now for before, now in zip(used[event], spent, strict=True)]
    return [
        Length(event, latencies[event], *(seconds / requests * _MICROSECONDS for seconds in used[event]))
        for event in LENGTHS
    ]


def by_batch(contestant: Contestant, events: int, show: Callable[[str], None]) -> list[Batch]:
    """Return what batches of several sizes cost, each size over so many events."""
    found = []
    with running_redis() as redis, running(contestant, redis) as server, OneByOne(server) as client:
        # Sizes are warm before they are measured; and every session gets its second event.
        for size in BATCHES:
            show(f"{size} events a request")
            prefix = new_prefix()
            fill(server, prefix, range(1, events + 1), 1)
            bodies = [
                batch_body([session_id(prefix, first + place) for place in range(size)], events + first)
                for first in range(1, events - size + 2, size)
            ]
            latencies: list[float] = []
            server_s, redis_s = timed(client, BATCH_PATH, bodies, latencies, redis)
            posted = len(bodies) * size
            found.append(Batch(size, latencies, server_s / posted * _MICROSECONDS, redis_s / posted * _MICROSECONDS))
    return found


def figures(lives: Sequence[Live], lengths: Sequence[Length], batches: Sequence[Batch]) -> dict[str, Any]:
    """Return what goes into the JSON file."""
    return {
        "live": [asdict(live) for live in lives],
        "lengths": [asdict(one) | {"latency_us": median(one.latency_us)} for one in lengths],
        "batches": [asdict(one) | {"latency_us": median(one.latency_us)} for one in batches],
    }


def tables(lives: Sequence[Live], lengths: Sequence[Length], batches: Sequence[Batch]) -> list[str]:
    """Return the figures as Markdown."""
    columns = ("server CPU, µs/event", "Redis CPU, µs/event")
    heads: tuple[str, ...] = ("live sessions", "board entries/shard", "pages", "events/s", "p50 ms", "p99 ms", *columns)
    rows = []
    for live in lives:
        pages = "2 MiB" if live.huge_pages else "4 KiB"
        rows += [
            [
                f"{count:,}",
                spread([sample.board_entries for sample in samples]),
                pages,
                spread([sample.events_per_s for sample in samples]),
                spread([sample.p50_ms for sample in samples], ".1f"),
                spread([sample.p99_ms for sample in samples], ".1f"),
                spread([sample.server_us for sample in samples]),
                spread([sample.redis_us for sample in samples], ".1f"),
            ]
            for count, samples in ((live.few, valid(live.with_few)), (live.many, valid(live.with_many)))
        ]
        both = pairs(live.with_few, live.with_many)
        ratios = [
            spread([getattr(many, name) / getattr(few, name) for few, many in both], ".2f")
            for name in ("events_per_s", "p50_ms", "p99_ms", "server_us", "redis_us")
        ]
        rows.append(["ratio", "", pages, *ratios])
    lines = markdown_table(heads, rows)
    heads = ("event of its session", "requests", "latency µs, median", *columns)
    rows = [
        [
            f"{one.event}",
            f"{len(one.latency_us):,}",
            f"{median(one.latency_us):,.0f}",
            f"{one.server_us:,.0f}",
            f"{one.redis_us:.1f}",
        ]
        for one in lengths
    ]
    short, long = lengths[0], lengths[-1]
    rows.append(
        [
            "ratio",
            "",
            f"{median(long.latency_us) / median(short.latency_us):.2f}",
            f"{long.server_us / short.server_us:.2f}",
            f"{long.redis_us / short.redis_us:.2f}",
        ]
    )
    lines += ["", *markdown_table(heads, rows)]
    heads = ("events a request", "requests", "latency ms, median", *columns)
    rows = [
        [
            f"{one.events}",
            f"{len(one.latency_us):,}",
            f"{median(one.latency_us) / 1000:,.1f}",
            f"{one.server_us:.1f}",
            f"{one.redis_us:.1f}",
        ]
        for one in batches
    ]
    return [*lines, "", *markdown_table(heads, rows)]
