"""willbuy and its peers under the same load, in turn, round by round.

All servers run all the time, each with a Redis of its own, and get the same traffic one after another. So each round
is a comparison by itself, however busy the machine is. A server's round in which a request or an event failed is void:
it is counted, and enters no figure and no ratio.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks.hotpath.load import load
from benchmarks.hotpath.redis_server import RedisServer, running_redis
from benchmarks.hotpath.results import markdown_table, spread
from benchmarks.hotpath.servers import Contestant, Server, running
from benchmarks.hotpath.traffic import Traffic

REFERENCE: Final = "willbuy"
EMPTY: Final = "empty"
CONNECTIONS: Final = 64
_WARM_UP_S: Final = 2.0
_MICROSECONDS: Final = 1e6

Samples = Mapping[str, Sequence["Sample"]]
"""Each server's samples, one a round."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One server in one round.

    Attributes:
        requests_per_s, events_per_s: answered.
        p50_ms, p99_ms, p999_ms: latency.
        server_us: processor's time of all the server's processes, a request.
        redis_us: processor's time of Redis, an event.
        generator_us: processor's time of the load generator, a request.
        resident_mib: of all the server's processes, at the end.
        processes: that the server had.
        failed: requests that were refused or not answered, and events refused inside an answer.
        board_entries: of a shard of willbuy's board at the end, on average; 0 for peers.
    """

    requests_per_s: float
    events_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    server_us: float
    redis_us: float
    generator_us: float
    resident_mib: float
    processes: int
    failed: int
    board_entries: float


def in_turn(
    contestants: Sequence[Contestant],
    *,
    rounds: int,
    seconds: float,
    show: Callable[[str], None],
    connections: int = CONNECTIONS,
) -> Samples:
    """Return each server's samples, one a round; who begins a round changes from round to round."""
    found: dict[str, list[Sample]] = {contestant.name: [] for contestant in contestants}
    with ExitStack() as stack:
        servers = []
        for contestant in contestants:
            show(f"starts: {contestant.title}")
            redis = stack.enter_context(running_redis(as_cluster=contestant.on_cluster))
            server = stack.enter_context(running(contestant, redis))
            # Connections, executors and allocators settle; the measured runs have other sessions.
            measure(server, redis, contestant, _WARM_UP_S, connections)
            if contestant.busy_when_idle:
                server.pause()
                stack.callback(server.resume)  # as it could not end otherwise
            servers.append((contestant, redis, server))
        for number in range(rounds):
            turn = number % len(servers)
            for contestant, redis, server in [*servers[turn:], *servers[:turn]]:
                show(f"{connections} connections, round {number + 1} of {rounds}: {contestant.title}")
                if contestant.busy_when_idle:
                    server.resume()
                found[contestant.name].append(measure(server, redis, contestant, seconds, connections))
                if contestant.busy_when_idle:
                    server.pause()
    return found


def measure(
    server: Server,
    redis: RedisServer,
    contestant: Contestant,
    seconds: float,
    connections: int = CONNECTIONS,
    traffic: Traffic | None = None,
) -> Sample:
    """Return one sample of a server that is warm."""
    before_s, redis_before_s = server.cpu_s(), redis.cpu_s()
    found = load(
        server.port,
        contestant.path,
        traffic or Traffic(batch=contestant.batch),
        seconds=seconds,
        connections=contestant.connections or connections,
        headers=server.headers,
    )
    used_s, redis_s = server.cpu_s() - before_s, redis.cpu_s() - redis_before_s
    events = contestant.events_per_request
    return Sample(
        found.requests_per_s,
        found.requests_per_s * events,
        found.p50_ms,
        found.p99_ms,
        found.p999_ms,
        used_s / found.requests * _MICROSECONDS,
        redis_s / (found.requests * events) * _MICROSECONDS,
        found.generator_s / found.requests * _MICROSECONDS,
        server.resident_bytes() / 2**20,
        server.processes(),
        found.failed,
        redis.board_entries(),
    )


def valid(samples: Sequence[Sample]) -> list[Sample]:
    """Return those in which nothing failed."""
    return [sample for sample in samples if not sample.failed]


def pairs(samples: Sequence[Sample], others: Sequence[Sample]) -> list[tuple[Sample, Sample]]:
    """Return two servers' samples of the rounds in which nothing failed with either."""
    return [pair for pair in zip(samples, others, strict=True) if not any(sample.failed for sample in pair)]


def void_line(samples: Samples, titles: Mapping[str, str]) -> list[str]:
    """Return a sentence about the void rounds, by server; no line if there are none."""
    told = [f"{titles[name]}: {number}" for name, some in samples.items() if (number := len(some) - len(valid(some)))]
    return ["", f"Void rounds, in which requests or events failed: {', '.join(told)}."] if told else []


def figures(contestants: Sequence[Contestant], samples: Samples) -> dict[str, Any]:
    """Return what goes into the JSON file."""
    return {
        contestant.name: {
            "title": contestant.title,
            "events_per_request": contestant.events_per_request,
            "rounds": [asdict(sample) for sample in samples[contestant.name]],
        }
        for contestant in contestants
    }


def tables(contestants: Sequence[Contestant], samples: Samples) -> list[str]:
    """Return the figures, and their ratios to willbuy's in the same round, as Markdown."""
    lines = markdown_table(
        (
            "server",
            "processes",
            "events/s",
            "p50 ms",
            "p99 ms",
            "p99.9 ms",
            "server CPU, µs/request",
            "server CPU, µs/event",
            "of the empty endpoint's",
            "Redis CPU, µs/event",
            "generator CPU, µs/request",
            "memory, MiB",
            "board entries/shard",
        ),
        [_row(contestant, samples[contestant.name], samples.get(EMPTY, ())) for contestant in contestants],
    )
    if samples.get(REFERENCE):
        heads = ("ratio to willbuy", "events/s", "p50", "p99", "p99.9", "server CPU/event", "Redis CPU/event")
        rows = [
            _ratios(contestant, samples[contestant.name], samples[REFERENCE])
            for contestant in contestants
            if contestant.name != REFERENCE
        ]
        lines += ["", *markdown_table(heads, rows)]
    return lines + void_line(samples, {contestant.name: contestant.title for contestant in contestants})


def few_table(contestants: Sequence[Contestant], few: Mapping[int, Samples]) -> list[str]:
    """Return the figures with few connections as Markdown."""
    rows, lines = [], []
    for connections, samples in few.items():
        chosen = [contestant for contestant in contestants if contestant.name in samples]
        for contestant in chosen:
            found = valid(samples[contestant.name])
            forms = {"events_per_s": ",.0f", "p50_ms": ".2f", "p99_ms": ".2f", "server_us": ",.0f"}
            cells = [spread([getattr(sample, name) for sample in found], form) for name, form in forms.items()]
            rows.append([contestant.title, f"{connections}", *cells])
        lines += void_line(samples, {one.name: f"{one.title}, {connections} connections" for one in chosen})
    heads = ("server", "connections", "events/s", "p50 ms", "p99 ms", "server CPU, µs/event")
    return [*markdown_table(heads, rows), *lines]


def cpu_ratios(contestant: Contestant, samples: Sequence[Sample], empty: Sequence[Sample]) -> list[float]:
    """Return an event's share of the processor's time of the empty endpoint, by round."""
    return [ours.server_us / contestant.events_per_request / base.server_us for ours, base in pairs(samples, empty)]


def _row(contestant: Contestant, all_samples: Sequence[Sample], empty: Sequence[Sample]) -> list[str]:
    samples, events = valid(all_samples), contestant.events_per_request
    entries = [sample.board_entries for sample in samples]
    return [
        contestant.title,
        f"{max((sample.processes for sample in samples), default=0)}",
        spread([sample.events_per_s for sample in samples]),
        spread([sample.p50_ms for sample in samples], ".1f"),
        spread([sample.p99_ms for sample in samples], ".1f"),
        spread([sample.p999_ms for sample in samples], ".1f"),
        spread([sample.server_us for sample in samples]),
        spread([sample.server_us / events for sample in samples], ".1f"),
        spread(cpu_ratios(contestant, all_samples, empty), ".2f") if empty else "-",
        spread([sample.redis_us for sample in samples], ".1f"),
        spread([sample.generator_us for sample in samples]),
        spread([sample.resident_mib for sample in samples]),
        spread(entries) if any(entries) else "-",
    ]


def _ratios(contestant: Contestant, samples: Sequence[Sample], reference: Sequence[Sample]) -> list[str]:
    def ratio(value: str, share: int = 1) -> str:
        found = [(getattr(ours, value) / share, getattr(base, value)) for ours, base in pairs(samples, reference)]
        return spread([one / base for one, base in found], ".2f") if all(base for _, base in found) else "-"

    cells = [ratio(name) for name in ("events_per_s", "p50_ms", "p99_ms", "p999_ms")]
    return [contestant.title, *cells, ratio("server_us", contestant.events_per_request), ratio("redis_us")]
