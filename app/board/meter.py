"""The report of one replica: its counters, their rates, and the latency of its answers."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import msgspec
from prometheus_client import Counter
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from app.errors import (
    OverloadedError,
    RuleNotFoundError,
    SessionNotFoundError,
    UnknownPathError,
    WebhookNotFoundError,
)
from app.monitoring.metrics import Metrics

RATES_WINDOW_S: Final = 10.0
LATENCY_WINDOW_S: Final = 60.0
_EVENTS_ROUTE: Final = "/v1/events"
_TOTALS: Final = (
    *("events_folded", "sessions_started", "duplicates", "conflicts", "rebuilds"),
    *("late_events", "unseen_names"),
)
# A look-up that finds nothing, as of a session that has ended, is no error of a replica.
_NOT_FOUND: Final = (UnknownPathError, SessionNotFoundError, RuleNotFoundError, WebhookNotFoundError)


class Report(msgspec.Struct, frozen=True):
    """State of one replica; any replica adds up the reports of all.

    Attributes:
        totals: counts since its start, by the names of `app.schemas.board.TotalsOut`.
        events_per_s, batches_per_s, requests_per_s: over the last `RATES_WINDOW_S` seconds.
        latency_le_s: upper bounds of the classes of latency, the last of them infinite.
        latency_counts: requests of the last `LATENCY_WINDOW_S` seconds, by class.
        queue_length, queue_capacity: of its batcher.
        overloaded: whether events were refused for a full queue within the rates' window, or would be now.
    """

    totals: dict[str, int]
    events_per_s: float
    batches_per_s: float
    requests_per_s: float
    latency_le_s: list[float]
    latency_counts: list[int]
    queue_length: int
    queue_capacity: int
    overloaded: bool


class _Reading(NamedTuple):
    at_s: float
    totals: dict[str, int]
    batches: int
    requests: int
    refused: int
    latency_counts: list[int]


class Meter:
    """Reads this replica's metrics at an interval, and reports rates and latency over sliding windows.

    Args:
        metrics: the replica's metrics.
        queue_length: returns how many events wait for a batch.
        queue_capacity: how many may wait.
        clock_s: monotonic clock, in seconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        queue_length: Callable[[], int],
        queue_capacity: int,
        clock_s: Callable[[], float],
    ) -> None:
        self._metrics = metrics
        self._queue_length = queue_length
        self._queue_capacity = queue_capacity
        self._clock_s = clock_s
        self._latency_le_s: list[float] = []
        self._readings: deque[_Reading] = deque([self._read()])

    def tick(self) -> None:
        """Take a reading; regular readings keep the windows exact."""
        self._readings.append(self._read())
        # The oldest reading that is kept begins the longest window.
        while len(self._readings) > 1 and self._readings[1].at_s <= self._readings[-1].at_s - LATENCY_WINDOW_S:
            self._readings.popleft()

    def report(self) -> Report:
        """Return the replica's state now."""
        now, oldest = self._read(), self._readings[0]
        recent = next((one for one in self._readings if one.at_s >= now.at_s - RATES_WINDOW_S), now)
        elapsed_s = now.at_s - recent.at_s or 1.0
        length = self._queue_length()
        folded = now.totals["events_folded"] - recent.totals["events_folded"]
        return Report(
            totals=now.totals,
            events_per_s=folded / elapsed_s,
            batches_per_s=(now.batches - recent.batches) / elapsed_s,
            requests_per_s=(now.requests - recent.requests) / elapsed_s,
            latency_le_s=self._latency_le_s,
            latency_counts=[
                count - before for count, before in zip(now.latency_counts, oldest.latency_counts, strict=True)
            ],
            queue_length=length,
            queue_capacity=self._queue_capacity,
            overloaded=length >= self._queue_capacity or now.refused > recent.refused,
        )

    def _read(self) -> _Reading:
        metrics = self._metrics
        latency = [
            sample
            for sample in _samples(metrics.request_seconds.labels(_EVENTS_ROUTE))
            if sample.name.endswith("_bucket")
        ]
        self._latency_le_s = [float(sample.labels["le"]) for sample in latency]
        up_to = [int(sample.value) for sample in latency]
        return _Reading(
            at_s=self._clock_s(),
            totals={name: _sum_of(getattr(metrics, name)) for name in _TOTALS}
            | {"errors": _sum_of(metrics.errors) - sum(_sum_of(metrics.errors, code=one.code) for one in _NOT_FOUND)},
            batches=next(int(one.value) for one in _samples(metrics.batch_size) if one.name.endswith("_count")),
            requests=_sum_of(metrics.requests),
            refused=_sum_of(metrics.errors, code=OverloadedError.code),
            latency_counts=[count - below for count, below in zip(up_to, [0, *up_to[:-1]], strict=True)],
        )


def quantile_ms(le_s: list[float], counts: list[int], share: float) -> float | None:
    """Return a quantile of the latency, interpolated within its class; None without requests.

    Args:
        le_s: upper bounds of the classes in seconds. The last is infinite; a quantile in it is its lower bound.
        counts: requests of each class.
        share: between 0 and 1.
    """
    wanted = share * sum(counts)
    below, low_s = 0, 0.0
    for high_s, count in zip(le_s, counts, strict=True):
        if count and below + count >= wanted:
            part = 0.0 if high_s == float("inf") else (high_s - low_s) * (wanted - below) / count
            return (low_s + part) * 1000
        below += count
        low_s = high_s
    return None


def _samples(metric: object) -> list[Sample]:
    families: Iterable[Metric] = metric.collect()  # type: ignore[attr-defined]  # every kind of metric has it
    return [sample for family in families for sample in family.samples]


def _sum_of(counter: Counter, **labels: str) -> int:
    return sum(
        int(sample.value)
        for sample in _samples(counter)
        if sample.name.endswith("_total") and labels.items() <= sample.labels.items()
    )
