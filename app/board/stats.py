"""`GET /v1/stats`: every replica reports its state once a second, and any replica adds up the reports of all."""

import contextlib
import secrets
from asyncio import gather
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec
from structlog.typing import FilteringBoundLogger

from app.board.content import Content, content_of
from app.board.meter import RATES_WINDOW_S, Meter, Report, quantile_ms
from app.board.stake import AtStake
from app.errors import StoreError
from app.runtime.periodic import Background, PeriodicTask
from app.schemas.board import LatencyOut, OutcomesOut, QueueOut, RatesOut, ScoresOut, StatsOut, TotalsOut
from app.schemas.quality import ModelQualityOut
from app.store.interface import StateStore

_CLASSES: Final = 20
SCORE_EDGES: Final = tuple(number / _CLASSES for number in range(_CLASSES + 1))
_NAME_BYTES: Final = 8
# Rates are over ten seconds, so a second is fine enough; a report is one small write.
STATS_INTERVAL_S: Final = 1.0

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Report)


class Stats(Background):
    """Reports of this replica, and answers for all replicas.

    Args:
        store: where the reports are, and the sessions to count.
        meter: reads this replica's metrics.
        model: returns the fingerprint of the model in use.
        outcomes: returns the counts of ended sessions, see `app.schemas.board`.
        quality: returns the figures of model quality.
        at_stake: the value at stake in open sessions; closed with this.
        logger: where defects are logged.
    """

    def __init__(
        self,
        store: StateStore,
        meter: Meter,
        *,
        model: Callable[[], str],
        outcomes: Callable[[], Awaitable[OutcomesOut]],
        quality: Callable[[], Awaitable[ModelQualityOut]],
        at_stake: AtStake,
        logger: FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._meter = meter
        self._model = model
        self._outcomes = outcomes
        self._quality = quality
        self._at_stake = at_stake
        self._name = secrets.token_hex(_NAME_BYTES)
        self._task = PeriodicTask(
            self._report, name="replica-report", every_s=STATS_INTERVAL_S, logger=logger, failed="report_failed"
        )

    async def close(self) -> None:
        """Stop reporting, and remove this replica's report."""
        await super().close()
        await self._at_stake.close()
        with contextlib.suppress(StoreError):
            await self._store.replicas.report(self._name, b"")

    async def _report(self) -> None:
        self._meter.tick()
        # Readiness and the breaker's metric show that Redis is away.
        with contextlib.suppress(StoreError):
            await self._store.replicas.report(self._name, _encoder.encode(self._meter.report()))

    async def read(self) -> Content:
        """Return the answer; raise `StoreError` when a part of it cannot be read."""
        spread, reports, outcomes, quality, at_stake = await gather(
            self._store.board.spread(SCORE_EDGES[1:-1]),
            self._store.replicas.reports(),
            self._outcomes(),
            self._quality(),
            self._at_stake.get(),
        )
        others = [report for name, report in reports.items() if name != self._name]
        known = [self._meter.report(), *_decoded(others)]
        return content_of(
            StatsOut(
                as_of=datetime.now(tz=UTC),
                replicas=1 + len(others),
                live_sessions=spread.live,
                open_sessions=spread.open,
                rates=_rates(known),
                latency_ms=_latency(known),
                scores=ScoresOut(edges=list(SCORE_EDGES), counts=spread.counts),
                totals=_totals(known),
                outcomes=outcomes,
                at_stake=at_stake,
                queue=QueueOut(
                    length=sum(report.queue_length for report in known),
                    capacity=sum(report.queue_capacity for report in known),
                    overloaded=any(report.overloaded for report in known),
                ),
                model=self._model(),
                trust=quality,
            )
        )


def _decoded(reports: Iterable[bytes]) -> list[Report]:
    known = []
    for report in reports:
        # A replica of another release may report other fields: it counts as a replica, and its numbers are left out.
        with contextlib.suppress(msgspec.DecodeError):
            known.append(_decoder.decode(report))
    return known


def _rates(reports: list[Report]) -> RatesOut:
    return RatesOut(
        window_s=RATES_WINDOW_S,
        events_per_s=round(sum(report.events_per_s for report in reports), 2),
        batches_per_s=round(sum(report.batches_per_s for report in reports), 2),
        requests_per_s=round(sum(report.requests_per_s for report in reports), 2),
    )


def _latency(reports: list[Report]) -> LatencyOut:
    classes: Counter[float] = Counter()
    for report in reports:
        for le_s, count in zip(report.latency_le_s, report.latency_counts, strict=True):
            classes[le_s] += count
    bounds = sorted(classes)
    counts = [classes[bound] for bound in bounds]
    p50, p95, p99 = (quantile_ms(bounds, counts, share) for share in (0.5, 0.95, 0.99))
    return LatencyOut(p50=_rounded(p50), p95=_rounded(p95), p99=_rounded(p99))


def _rounded(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else round(milliseconds, 2)


def _totals(reports: list[Report]) -> TotalsOut:
    return TotalsOut(**{name: sum(report.totals.get(name, 0) for report in reports) for name in TotalsOut.model_fields})
