"""willbuy and its peers under the same load, in turn, round by round.

A server's round in which a request or an event failed is void: it is counted, and enters no figure and no ratio.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from benchmarks.hotpath.load import load
from benchmarks.hotpath.redis_server import RedisServer, running_redis
from benchmarks.hotpath.results import markdown_table, spread
from benchmarks.hotpath.servers import Contestant, Server, running
from benchmarks.hotpath.traffic import Traffic
from training.commands.stages import stage

REFERENCE: Final = "willbuy"
CONNECTIONS: Final = 64
_MICROSECONDS: Final = 1e6


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


def compare(
    contestants: Sequence[Contestant], *, rounds: int, seconds: float, warm_up_s: float, connections: int = CONNECTIONS
) -> dict[str, list[Sample]]:
    """Return each server's samples, one a round; who begins a round changes from round to round."""
    samples: dict[str, list[Sample]] = {contestant.name: [] for contestant in contestants}
    with stage("hot path", rounds * len(contestants)) as show:
        for number in range(rounds):
            turn = number % len(contestants)
            for contestant in [*contestants[turn:], *contestants[:turn]]:
                done = sum(map(len, samples.values()))
                show(done, f"round {number + 1} of {rounds}: {contestant.title}")
                with running_redis(as_cluster=contestant.on_cluster) as redis, running(contestant, redis) as server:
                    # Connections, executors and allocators settle; the measured run has other sessions.
                    _load(server, contestant, warm_up_s, connections)
                    samples[contestant.name].append(measure(server, redis, contestant, seconds, connections))
    return samples


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


def void_line(samples: dict[str, list[Sample]], titles: dict[str, str]) -> list[str]:
    """Return a sentence about the void rounds, by server; no line if there are none."""
    told = [f"{titles[name]}: {number}" for name, some in samples.items() if (number := len(some) - len(valid(some)))]
    return ["", f"Void rounds, in which requests or events failed: {', '.join(told)}."] if told else []


def figures(contestants: Sequence[Contestant], samples: dict[str, list[Sample]]) -> dict[str, Any]:
    """Return what goes into the JSON file."""
    return {
        contestant.name: {
            "title": contestant.title,
            "events_per_request": contestant.events_per_request,
            "rounds": [asdict(sample) for sample in samples[contestant.name]],
        }
        for contestant in contestants
    }


def tables(contestants: Sequence[Contestant], samples: dict[str, list[Sample]]) -> list[str]:
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
            "Redis CPU, µs/event",
            "generator CPU, µs/request",
            "memory, MiB",
            "board entries/shard",
        ),
        [_row(contestant, valid(samples[contestant.name])) for contestant in contestants],
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


def workers_table(contestants: Sequence[Contestant], samples: dict[str, list[Sample]]) -> list[str]:
    """Return how many cores server, Redis and generator took, as Markdown: who may have been the limit."""
    rows = []
    for contestant in contestants:
        found, events = valid(samples[contestant.name]), contestant.events_per_request
        rows.append(
            [
                contestant.title,
                spread([sample.events_per_s for sample in found]),
                spread([sample.server_us * sample.requests_per_s / _MICROSECONDS for sample in found], ".2f"),
                spread([sample.redis_us * events * sample.requests_per_s / _MICROSECONDS for sample in found], ".2f"),
                spread([sample.generator_us * sample.requests_per_s / _MICROSECONDS for sample in found], ".2f"),
                spread([sample.server_us for sample in found]),
            ]
        )
    heads = ("server", "events/s", "cores: server", "cores: Redis", "cores: generator", "server CPU, µs/request")
    one, two = (samples[contestant.name] for contestant in contestants)
    ratios = [after.events_per_s / before.events_per_s for before, after in pairs(one, two)]
    lines = [*markdown_table(heads, rows), "", f"Throughput, ratio in the same round: {spread(ratios, '.2f')}."]
    return lines + void_line(samples, {contestant.name: contestant.title for contestant in contestants})


def _row(contestant: Contestant, samples: Sequence[Sample]) -> list[str]:
    events, entries = contestant.events_per_request, [sample.board_entries for sample in samples]
    return [
        contestant.title,
        f"{max((sample.processes for sample in samples), default=0)}",
        spread([sample.events_per_s for sample in samples]),
        spread([sample.p50_ms for sample in samples], ".1f"),
        spread([sample.p99_ms for sample in samples], ".1f"),
        spread([sample.p999_ms for sample in samples], ".1f"),
        spread([sample.server_us for sample in samples]),
        spread([sample.server_us / events for sample in samples], ".1f"),
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


def _load(server: Server, contestant: Contestant, seconds: float, connections: int) -> None:
    load(
        server.port,
        contestant.path,
        Traffic(batch=contestant.batch),
        seconds=seconds,
        connections=contestant.connections or connections,
        headers=server.headers,
    )
