"""What a request costs before and after the model: servers beside each other, in turn, by their processor's time.

All servers run all the time, each with a Redis of its own, and get the same traffic one after another. So each round
is a comparison by itself, however busy the machine is.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Final

from benchmarks.hotpath.compare import measure
from benchmarks.hotpath.processes import BenchmarkError
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
) -> tuple[dict[str, list[float]], int]:
    """Return the processor's microseconds a request of each server, one a round, and the number of void rounds.

    A round is void when a request in it was refused or not answered.

    Raises:
        BenchmarkError: all rounds are void.
    """
    found: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    void = 0
    with ExitStack() as stack:
        servers = []
        for contestant in contestants:
            show(f"starts: {contestant.title}")
            redis = stack.enter_context(running_redis())
            servers.append((contestant, redis, stack.enter_context(running(contestant, redis))))
        for contestant, redis, server in servers:
            measure(server, redis, contestant, _WARM_UP_S, connections, traffic)
        for number in range(rounds):
            turn = number % len(servers)
            samples = {}
            for contestant, redis, server in [*servers[turn:], *servers[:turn]]:
                show(f"round {number + 1} of {rounds}: {contestant.title}")
                samples[contestant.name] = measure(server, redis, contestant, seconds, connections, traffic)
            if any(sample.failed for sample in samples.values()):
                void += 1
                continue
            for name, sample in samples.items():
                found[name].append(sample.server_us)
    if void == rounds:
        raise BenchmarkError("In every round a request was refused or not answered.")
    return found, void


def table(contestants: Sequence[Contestant], found: dict[str, list[float]], void: int) -> list[str]:
    """Return the times, and their ratios in the same round to the empty endpoint's, as Markdown."""
    rows = []
    for contestant in contestants:
        times = found[contestant.name]
        ratios = [time / base for time, base in zip(times, found[REFERENCE], strict=True)]
        rows.append([contestant.title, spread(times, ".1f"), spread(ratios, ".2f")])
    lines = markdown_table(("server", "server CPU, µs/request", "ratio to the empty FastAPI endpoint"), rows)
    rounds = len(found[REFERENCE])
    return [*lines, "", f"Rounds: {rounds}; void, as a request in them was refused or not answered: {void}."]
