"""How the service answers when it has room: the first requests after it is ready, and at a share of its highest rate.

At a share of the highest rate, 64 connections pause at random before each request, exponentially, so that what they
post together comes to that rate: visitors do not wait for each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any, Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.hotpath.load import Load, load
from benchmarks.hotpath.one_by_one import OneByOne
from benchmarks.hotpath.redis_server import running_redis
from benchmarks.hotpath.results import markdown_table, spread
from benchmarks.hotpath.servers import SINGLE_PATH, Contestant, Server, running
from benchmarks.hotpath.traffic import Traffic, new_prefix, session_id, single_body

CONNECTIONS: Final = 64
FIRST_REQUESTS: Final = 1000
SHARES: Final = (0.5, 0.8)
_MICROSECONDS: Final = 1e6
_MILLISECONDS: Final = 1e3


@dataclass(frozen=True, slots=True)
class Shared:
    """One run at a share of the highest rate, or at the highest (1.0).

    Attributes:
        share: of the highest rate, as wanted.
        requests_per_s: as reached.
        pause_ms: mean pause of a connection before a request.
        mean_ms, p50_ms, p99_ms, p999_ms, max_ms: latency.
        server_us: processor's time of the service, a request.
        batch_size: events in a batch, on average.
        batch_ms: what a batch takes from load to commit, on average.
        failed: requests that were refused or not answered.
    """

    share: float
    requests_per_s: float
    pause_ms: float
    mean_ms: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    server_us: float
    batch_size: float
    batch_ms: float
    failed: int


def first_requests(contestant: Contestant) -> list[float]:
    """Return the latencies in ms of the first 1,000 requests after readiness, one after another on one connection."""
    # A new session every ten events.
    prefix = new_prefix()
    bodies = [single_body(session_id(prefix, number // 10 + 1), number) for number in range(FIRST_REQUESTS)]
    with running_redis() as redis, running(contestant, redis, with_event=False) as server, OneByOne(server) as client:
        return [one_s * _MILLISECONDS for one_s in client.post(SINGLE_PATH, bodies)]


def at_shares(contestant: Contestant, *, rounds: int, seconds: float, show: Callable[[str], None]) -> list[Shared]:
    """Return runs at the highest rate and at each share of it, in turn; one server for all."""
    found = []
    with running_redis() as redis, running(contestant, redis) as server:
        measured(server, 1.0, 0.0, max(3.0, seconds / 2))
        for number in range(rounds):
            show(f"round {number + 1} of {rounds}: highest rate")
            highest = measured(server, 1.0, 0.0, seconds)
            found.append(highest)
            for share in SHARES:
                show(f"round {number + 1} of {rounds}: {share:.0%} of it")
                cycle_ms = CONNECTIONS / (highest.requests_per_s * share) * _MILLISECONDS
                # A connection's cycle is its pause and the latency; what the latency will be is tried.
                pause_ms = max(0.5, cycle_ms - highest.p50_ms * share)
                tried = measured(server, share, pause_ms, 2.0)
                pause_ms = max(0.5, cycle_ms - tried.mean_ms)
                found.append(measured(server, share, pause_ms, seconds))
    return found


def by_connections(
    contestant: Contestant, connections: Sequence[int], seconds: float, show: Callable[[str], None]
) -> list[tuple[int, Shared]]:
    """Return runs at the highest rate of so many connections each: what batches of several sizes cost."""
    found = []
    with running_redis() as redis, running(contestant, redis) as server:
        measured(server, 1.0, 0.0, 3.0)
        for number in connections:
            show(f"{number} connections")
            found.append((number, measured(server, 1.0, 0.0, seconds, number)))
    return found


def measured(server: Server, share: float, pause_ms: float, seconds: float, connections: int = CONNECTIONS) -> Shared:
    """Return one run of the single route."""
    before, before_s = scrape(server), server.cpu_s()
    found: Load = load(
        server.port,
        SINGLE_PATH,
        Traffic(pause_ms=pause_ms),
        seconds=seconds,
        connections=connections,
        headers=server.headers,
    )
    used_s, after = server.cpu_s() - before_s, scrape(server)
    counted = {name: after[name] - before[name] for name in after}
    batches = max(1.0, counted["willbuy_batch_size_count"])
    return Shared(
        share,
        found.requests_per_s,
        pause_ms,
        found.mean_ms,
        found.p50_ms,
        found.p99_ms,
        found.p999_ms,
        found.max_ms,
        used_s / found.requests * _MICROSECONDS,
        counted["willbuy_batch_size_sum"] / batches,
        counted["willbuy_batch_seconds_sum"] / batches * _MILLISECONDS,
        found.failed,
    )


def scrape(server: Server) -> dict[str, float]:
    """Return the sums and counts of the service's batch metrics; of one worker where there are more."""
    text = httpx.get(f"http://127.0.0.1:{server.port}/metrics", headers=server.headers, timeout=10).text
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("willbuy_batch_") and sample.name.endswith(("_sum", "_count"))
    }


def connections_figures(found: Sequence[tuple[int, Shared]]) -> dict[str, Any]:
    """Return what goes into the JSON file."""
    return {"runs": [asdict(run) | {"connections": number} for number, run in found]}


def connections_table(found: Sequence[tuple[int, Shared]]) -> list[str]:
    """Return the figures as Markdown."""
    heads = ("connections", "requests/s", "events/batch", "batch ms", "p50 ms", "p99 ms", "server CPU, µs/request")
    rows = [
        [
            f"{number}",
            f"{run.requests_per_s:,.0f}",
            f"{run.batch_size:.1f}",
            f"{run.batch_ms:.2f}",
            f"{run.p50_ms:.2f}",
            f"{run.p99_ms:.2f}",
            f"{run.server_us:.0f}",
        ]
        for number, run in found
    ]
    return markdown_table(heads, rows)


def figures(first: Sequence[Sequence[float]], runs: Sequence[Shared]) -> dict[str, Any]:
    """Return what goes into the JSON file."""
    return {"first_requests_ms": [list(one) for one in first], "runs": [asdict(run) for run in runs]}


def tables(first: Sequence[Sequence[float]], runs: Sequence[Shared]) -> list[str]:
    """Return the figures as Markdown."""
    rows = []
    for share in (1.0, *SHARES):
        chosen = [run for run in runs if run.share == share and not run.failed]
        rows.append(
            [
                "highest" if share == 1.0 else f"{share:.0%} of it",
                spread([run.requests_per_s for run in chosen]),
                spread([run.p50_ms for run in chosen], ".2f"),
                spread([run.p99_ms for run in chosen], ".2f"),
                spread([run.p999_ms for run in chosen], ".2f"),
                spread([run.p99_ms / run.p50_ms for run in chosen], ".1f"),
                spread([run.batch_size for run in chosen], ".1f"),
                spread([run.server_us for run in chosen]),
            ]
        )
    latency = ("p50 ms", "p99 ms", "p99.9 ms", "p99 / p50")
    heads: tuple[str, ...] = ("rate", "requests/s", *latency, "events/batch", "server CPU, µs/request")
    lines = [*markdown_table(heads, rows), ""]
    heads = ("first 1,000 requests", "first ms", "p50 ms", "p99 ms", "largest ms", "mean of 1 to 100 / rest")
    rows = []
    for number, one in enumerate(first, 1):
        ordered = sorted(one)
        rows.append(
            [
                f"start {number}",
                f"{one[0]:.2f}",
                f"{median(one):.2f}",
                f"{ordered[int(0.99 * len(one))]:.2f}",
                f"{ordered[-1]:.2f} (number {one.index(ordered[-1]) + 1})",
                f"{fmean(one[:100]) / fmean(one[100:]):.2f}",
            ]
        )
    return [*lines, *markdown_table(heads, rows)]
