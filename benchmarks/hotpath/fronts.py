"""What a request costs before and after the model: servers beside each other, in turn, by their processor's time.

All servers run all the time, each with a Redis of its own, and get the same traffic one after another. So each round
is a comparison by itself, however busy the machine is.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from benchmarks.hotpath.compare import Sample, measure, pairs, valid
from benchmarks.hotpath.redis_server import running_redis
from benchmarks.hotpath.results import markdown_table, spread
from benchmarks.hotpath.servers import Contestant, running
from benchmarks.hotpath.traffic import Traffic

REFERENCE: Final = "empty"
_WARM_UP_S: Final = 2.0


def in_turn(
    contestants: Sequence[Contestant],
    *,
    rounds: int,
    seconds: float,
    connections: int,
    traffic: Traffic,
    show: Callable[[str], None],
) -> dict[str, list[Sample]]:
    """Return each server's samples, one a round."""
    found: dict[str, list[Sample]] = {contestant.name: [] for contestant in contestants}
    with ExitStack() as stack:
        servers = []
        for contestant in contestants:
            show(f"starts: {contestant.title}")
            redis = stack.enter_context(running_redis(as_cluster=contestant.on_cluster))
            servers.append((contestant, redis, stack.enter_context(running(contestant, redis))))
        for contestant, redis, server in servers:
            measure(server, redis, contestant, _WARM_UP_S, connections, replace(traffic, batch=contestant.batch))
        for number in range(rounds):
            turn = number % len(servers)
            for contestant, redis, server in [*servers[turn:], *servers[:turn]]:
                show(f"round {number + 1} of {rounds}: {contestant.title}")
                posted = replace(traffic, batch=contestant.batch)
                found[contestant.name].append(measure(server, redis, contestant, seconds, connections, posted))
    return found


def table(contestants: Sequence[Contestant], found: dict[str, list[Sample]]) -> list[str]:
    """Return the times, and their ratios in the same round to the empty endpoint's, as Markdown."""
    rows = []
    for contestant in contestants:
        events, samples = contestant.events_per_request, found[contestant.name]
        times = [sample.server_us / events for sample in valid(samples)]
        ratios = [ours.server_us / events / base.server_us for ours, base in pairs(samples, found[REFERENCE])]
        rows.append([contestant.title, spread(times, ".1f"), spread(ratios, ".2f")])
    return markdown_table(("server", "server CPU, µs/event", "ratio to the empty FastAPI endpoint"), rows)
