"""A simulation of the service as a queue served in batches, with costs fitted to measurements.

A batch is all events that wait when the last batch ends, up to a limit. A batch of n events takes a + b n. This models
`app/scoring/batcher.py`; b includes all other costs of a request.
"""

import heapq
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

LARGEST_BATCH: Final = 256
_SIMULATED_EVENTS: Final = 200_000
_SECOND_US: Final = 1e6


@dataclass(frozen=True, slots=True)
class BatchCost:
    """Time that a service process needs for a batch of n events: `fixed_us + event_us * n`."""

    fixed_us: float
    event_us: float

    def us(self, events: int) -> float:
        """Return the microseconds of a batch."""
        return self.fixed_us + self.event_us * events

    @property
    def highest_per_s(self) -> float:
        """Events a second in batches of the largest size."""
        return LARGEST_BATCH / self.us(LARGEST_BATCH) * _SECOND_US


@dataclass(frozen=True, slots=True)
class Simulated:
    """Results of a simulation.

    Attributes:
        events_per_s: answered events.
        batch_size: mean number of events in a batch.
        mean_ms, p50_ms, p99_ms: latency from arrival to the end of the batch.
    """

    events_per_s: float
    batch_size: float
    mean_ms: float
    p50_ms: float
    p99_ms: float


def fit(runs: Sequence[tuple[float, float]]) -> BatchCost:
    """Return the least-squares line through runs of (events in a batch, microseconds from one batch to the next).

    Minimises relative errors; absolute errors would give all the weight to the largest batches.
    """
    weights = [1 / cycle_us**2 for _, cycle_us in runs]
    total = sum(weights)
    size = sum(weight * events for weight, (events, _) in zip(weights, runs, strict=True)) / total
    cycle = sum(weight * cycle_us for weight, (_, cycle_us) in zip(weights, runs, strict=True)) / total
    above = sum(w * (events - size) * (cycle_us - cycle) for w, (events, cycle_us) in zip(weights, runs, strict=True))
    below = sum(w * (events - size) ** 2 for w, (events, _) in zip(weights, runs, strict=True))
    event_us = above / below
    return BatchCost(max(0.0, cycle - event_us * size), event_us)


def simulate_pausing(cost: BatchCost, connections: int, pause_ms: float, seed: int = 0) -> Simulated:
    """Simulate connections that pause before each request, as wrk's do."""
    chance = random.Random(seed)  # noqa: S311  # a simulation, no secret
    arrivals = [(_pause_us(chance, pause_ms), one) for one in range(connections)]
    heapq.heapify(arrivals)

    def following(now_us: float, answered: int) -> None:
        for one in range(answered):
            heapq.heappush(arrivals, (now_us + _pause_us(chance, pause_ms), one))

    return _serve(cost, arrivals, following)


def simulate_open(cost: BatchCost, events_per_s: float, seed: int = 0) -> Simulated:
    """Simulate events that arrive at random at a rate, independent of the answers (open loop)."""
    chance = random.Random(seed)  # noqa: S311  # a simulation, no secret
    arrivals: list[tuple[float, int]] = []
    now_us = 0.0
    for one in range(_SIMULATED_EVENTS):
        now_us += chance.expovariate(events_per_s) * _SECOND_US
        arrivals.append((now_us, one))
    return _serve(cost, arrivals, lambda _now_us, _answered: None)


def _serve(cost: BatchCost, arrivals: list[tuple[float, int]], following: Callable[[float, int], None]) -> Simulated:
    """Serve the arrivals batch by batch; calls `following` with the time and the number of answers of each batch."""
    now_us, batches = 0.0, 0
    latencies_us: list[float] = []
    while arrivals and len(latencies_us) < _SIMULATED_EVENTS:
        now_us = max(now_us, arrivals[0][0])
        came_us: list[float] = []
        while arrivals and arrivals[0][0] <= now_us and len(came_us) < LARGEST_BATCH:
            came_us.append(heapq.heappop(arrivals)[0])
        now_us += cost.us(len(came_us))
        batches += 1
        latencies_us += [now_us - one_us for one_us in came_us]
        following(now_us, len(came_us))
    ordered = sorted(latencies_us)
    return Simulated(
        len(ordered) / now_us * _SECOND_US,
        len(ordered) / batches,
        fmean(ordered) / 1000,
        ordered[len(ordered) // 2] / 1000,
        ordered[int(0.99 * len(ordered))] / 1000,
    )


def _pause_us(chance: random.Random, pause_ms: float) -> float:
    # wrk's timers have a resolution of one millisecond.
    return 1000.0 * math.floor(chance.expovariate(1 / pause_ms) + 0.5)
