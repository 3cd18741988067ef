"""From the measured cost of an event to the number of machines for a rate: tables of docs/scaling.md and hot-path.md.

    python -m benchmarks.scaling

Reads the results of `python -m benchmarks.hotpath all`, which runs it at its end, in benchmarks/results/hotpath.json;
and of `python -m benchmarks.gpu_step`, if that was measured on a GPU. Measures nothing.

The queue is simulated (`benchmarks.batch_queue`) with the cost of a batch fitted to the runs with 1 to 64 connections.
To check it, the runs at 50 % and 80 % of the highest rate are simulated with the same random pauses. The tables compare
simulated throughput, batch sizes and latencies with the measured ones.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from benchmarks.batch_queue import BatchCost, fit, simulate_open, simulate_pausing
from benchmarks.hotpath.processes import BenchmarkError
from benchmarks.hotpath.results import DOCUMENT, machine_line, markdown_table, read_section, write_markdown
from benchmarks.hotpath.servers import ROOT
from benchmarks.hotpath.tails import CONNECTIONS, SHARES
from model.redis_keys import SHARDS
from training.commands.console import errors_for_people

PAGE: Final = ROOT / "docs" / "scaling.md"
# Tables that the page has; the others are in the reference.
_ON_PAGE: Final = {"cost", "machines"}
RATES: Final = (1_000, 100_000, 10_000_000)
_LOADS: Final = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
_SECOND_US: Final = 1e6
_OUT: Final = Console()


@dataclass(frozen=True, slots=True)
class Plan:
    """Assumptions in addition to the measurements.

    Attributes:
        load: share of a processor, of a service's or a Redis', that is used at the planned rate.
        events_per_session: on average.
        session_s: how long a session's record lives: from its first event to its last, and the idle time.
        primary_bytes: memory of a Redis primary that sessions may take.
    """

    load: float
    events_per_session: float
    session_s: float
    primary_bytes: float


USUAL: Final = Plan(load=0.6, events_per_session=10.0, session_s=2400.0, primary_bytes=32 * 2**30)


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of an event, measured on a cluster, because more than one primary needs a cluster.

    Attributes:
        single_us, batch_us: processor's time of the service, by the single route and in requests of 200.
        redis_single_us, redis_batch_us: processor's time of Redis likewise.
        crowd_us: how much more of Redis' time an event takes with `crowd` live sessions than with `few`.
        crowd_huge_us: the same with Redis' memory in huge pages, if that was measured.
        session_bytes: of Redis for a live session of ten events.
        commit_bytes: that an event's commit sends to Redis.
        few, crowd: live sessions.
    """

    single_us: float
    batch_us: float
    redis_single_us: float
    redis_batch_us: float
    crowd_us: float
    crowd_huge_us: float | None
    session_bytes: float
    commit_bytes: float
    few: int
    crowd: int

    def primaries(self, rate: float, redis_us: float, sessions: float, load: float) -> int:
        """Return how many Redis primaries a rate needs at that share of CPU.

        A primary's searches grow with the logarithm of the sessions that it has, so between the two numbers that were
        measured, and beyond the larger, an event costs as much more as their logarithms say.
        """
        count = max(1, math.ceil(rate * redis_us / _SECOND_US / load))
        while True:
            crowding = math.log(max(1.0, sessions / count / self.few)) / math.log(self.crowd / self.few)
            if rate * (redis_us + self.crowd_us * crowding) / _SECOND_US / load <= count:
                return count
            count += 1


def fit_table(cost: BatchCost, runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the measured and the fitted time from batch to batch as Markdown."""
    rows = []
    for run in runs:
        size, cycle_us = _cycle(run)
        said_us = cost.fixed_us + cost.event_us * size
        rows.append(
            [f"{run['connections']}", f"{size:.1f}", f"{cycle_us:,.0f}", f"{said_us:,.0f}", f"{said_us / cycle_us:.2f}"]
        )
    heads = ("connections", "events/batch", "µs from batch to batch, measured", "a + b n", "ratio")
    said = f"a = {cost.fixed_us:,.0f} µs a batch, b = {cost.event_us:.1f} µs an event."
    return [said, "", *markdown_table(heads, rows)]


def check_table(cost: BatchCost, runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return measured and simulated figures at each share of the highest rate as Markdown."""
    rows = []
    for share in SHARES:
        chosen = [run for run in runs if run["share"] == share]
        if not chosen:
            raise BenchmarkError(f"The section `tails` has no run at {share:.0%} of the highest rate.")
        simulated = simulate_pausing(cost, CONNECTIONS, median(run["pause_ms"] for run in chosen))
        named = {
            "events/s": ("requests_per_s", simulated.events_per_s, ",.0f"),
            "events/batch": ("batch_size", simulated.batch_size, ".1f"),
            "mean ms": ("mean_ms", simulated.mean_ms, ".2f"),
            "p50 ms": ("p50_ms", simulated.p50_ms, ".2f"),
            "p99 ms": ("p99_ms", simulated.p99_ms, ".2f"),
        }
        for title, (name, said, form) in named.items():
            measured = median(run[name] for run in chosen)
            rows.append([f"{share:.0%}: {title}", f"{measured:{form}}", f"{said:{form}}", f"{said / measured:.2f}"])
    return markdown_table(("at a share of the highest rate", "measured", "simulated", "ratio"), rows)


def load_table(cost: BatchCost) -> list[str]:
    """Return simulated latencies at several loads as Markdown; they show why 95 % is too much to plan for."""
    rows = []
    for load in _LOADS:
        simulated = simulate_open(cost, cost.highest_per_s * load)
        cells = [f"{simulated.events_per_s:,.0f}", f"{simulated.batch_size:.1f}"]
        rows.append([f"{load:.0%}", *cells, *(f"{value:.2f}" for value in (simulated.p50_ms, simulated.p99_ms))])
    return markdown_table(("of what it can do", "events/s", "events/batch", "p50 ms", "p99 ms"), rows)


def machines_table(cost: Cost, plan: Plan, gpu_events_per_s: float | None) -> list[str]:
    """Return the machines for each rate as Markdown."""
    rows = []
    for rate in RATES:
        sessions = rate / plan.events_per_session * plan.session_s
        memory_bytes = sessions * cost.session_bytes
        by_memory = math.ceil(memory_bytes / plan.primary_bytes)
        for route, service_us, redis_us in (
            ("single", cost.single_us, cost.redis_single_us),
            ("batch", cost.batch_us, cost.redis_batch_us),
        ):
            by_processor = cost.primaries(rate, redis_us, sessions, plan.load)
            primaries = max(by_processor, by_memory)
            rows.append(
                [
                    f"{rate:,}, {route} route",
                    f"{math.ceil(rate * service_us / _SECOND_US / plan.load):,}",
                    f"{primaries:,}" + (f" (at most {SHARDS})" if primaries > SHARDS else ""),
                    "processor" if by_processor >= by_memory else "memory",
                    f"{sessions:,.0f}",
                    f"{memory_bytes / 1e9:,.1f}",
                    f"{rate * cost.commit_bytes * 8 / 1e9:,.2f}",
                    *([] if gpu_events_per_s is None else [f"{rate / gpu_events_per_s / plan.load:,.3g}"]),
                ]
            )
    heads = ("events/s", "service processes", "Redis primaries", "because of", "live sessions", "their memory, GB")
    last = () if gpu_events_per_s is None else ("GPUs for the step",)
    return markdown_table((*heads, "commits to Redis, Gbit/s", *last), rows)


def cost_table(cost: Cost) -> list[str]:
    """Return the measured costs as Markdown."""
    huge = "" if cost.crowd_huge_us is None else f"; {cost.crowd_huge_us:.1f} µs with huge pages"
    rows = [
        ["service, single route", f"{cost.single_us:.0f} µs of a processor an event"],
        ["service, batch route", f"{cost.batch_us:.1f} µs of a processor an event"],
        ["Redis, single route", f"{cost.redis_single_us:.1f} µs of a processor an event"],
        ["Redis, batch route", f"{cost.redis_batch_us:.1f} µs of a processor an event"],
        [
            f"Redis, with {cost.crowd:,} live sessions instead of {cost.few:,}",
            f"{cost.crowd_us:.1f} µs more an event{huge}",
        ],
        ["Redis, memory", f"{cost.session_bytes:,.0f} bytes a live session of ten events"],
        ["to Redis, commits", f"{cost.commit_bytes:,.0f} bytes an event"],
    ]
    return markdown_table(("what", "costs"), rows)


def read_cost() -> Cost:
    """Return the cost of an event from the results file; raise `BenchmarkError` if a part was not measured."""
    compared, memory, lives = read_section("compare"), read_section("memory"), read_section("flat")["live"]
    servers = compared["servers"]
    for name in ("willbuy-cluster", "willbuy-batch-cluster"):
        if name not in servers:
            raise BenchmarkError(f"The section `compare` lacks {name}: run `python -m benchmarks.hotpath all`.")

    def middle(name: str, figure: str) -> float:
        return _median_of_valid(servers[name]["rounds"], figure)

    crowd = max(live["many"] for live in lives)
    crowded = {
        live["huge_pages"]: _median_of_valid(live["with_many"], "redis_us")
        - _median_of_valid(live["with_few"], "redis_us")
        for live in lives
        if live["many"] == crowd
    }
    return Cost(
        middle("willbuy-cluster", "server_us"),
        middle("willbuy-batch-cluster", "server_us") / servers["willbuy-batch-cluster"]["events_per_request"],
        middle("willbuy-cluster", "redis_us"),
        middle("willbuy-batch-cluster", "redis_us"),
        crowded[False],
        crowded.get(True),
        max(memory["used_bytes"], memory["key_bytes"]),
        compared["redis_alone"]["bytes_per_event"],
        lives[0]["few"],
        crowd,
    )


def _median_of_valid(rounds: Sequence[dict[str, Any]], figure: str) -> float:
    found = [one[figure] for one in rounds if not one["failed"]]
    if not found:
        raise BenchmarkError(f"All rounds with a figure {figure!r} were void: measure again.")
    return float(median(found))


def _cycle(run: dict[str, Any]) -> tuple[float, float]:
    """Return the events in a batch and the microseconds from batch to batch of a run at the highest rate."""
    return run["batch_size"], run["batch_size"] / run["requests_per_s"] * _SECOND_US


def _gpu_events_per_s() -> float | None:
    """Return the highest measured events a second of one GPU; None without a measurement."""
    try:
        steps = read_section("step")["steps"]
    except BenchmarkError:
        return None
    rates = [step["batch"] / step["advance_us"] * _SECOND_US for step in steps if step["device"] == "cuda"]
    return max(rates, default=None)


@errors_for_people(BenchmarkError)
def main(
    load: Annotated[
        float, typer.Option(min=0.05, max=0.95, help="Share of a processor that is planned for.")
    ] = USUAL.load,
    events_per_session: Annotated[float, typer.Option(min=1, help="On average.")] = USUAL.events_per_session,
    session_s: Annotated[
        float, typer.Option(min=1, help="Life of a record: the visit and the idle time.")
    ] = USUAL.session_s,
    primary_gib: Annotated[
        float, typer.Option(min=1, help="Memory of a Redis primary for sessions.")
    ] = USUAL.primary_bytes / 2**30,
) -> None:
    """Print the tables, and write them into docs/scaling.md and docs/reference/hot-path.md."""
    write(Plan(load, events_per_session, session_s, primary_gib * 2**30))


def write(plan: Plan) -> None:
    """Print the tables for a plan, and write them into both documents."""
    cost, runs = read_cost(), read_section("connections")["runs"]
    batch = fit([_cycle(run) for run in runs])
    assumed = (
        f"Assumed: {plan.load:.0%} of a processor, {plan.events_per_session:g} events a session, a record lives "
        f"{plan.session_s:,.0f} s, a primary has {plan.primary_bytes / 2**30:g} GiB for sessions."
    )
    where = machine_line(read_section("compare")["machine"])
    tables = {
        "cost": [*cost_table(cost), "", where],
        "machines": [assumed, "", *machines_table(cost, plan, _gpu_events_per_s())],
        "fit": fit_table(batch, runs),
        "check": check_table(batch, read_section("tails")["runs"]),
        "load": load_table(batch),
    }
    for name, lines in tables.items():
        for line in [*lines, ""]:
            _OUT.print(line, markup=False, highlight=False, soft_wrap=True)
        write_markdown(f"scaling-{name}", lines, PAGE if name in _ON_PAGE else DOCUMENT)


if __name__ == "__main__":
    typer.run(main)
