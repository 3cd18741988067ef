"""`GET /v1/stats`: every replica puts down how it is doing, and whichever is asked adds all of that up."""

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from typing import Final

import msgspec
from structlog.typing import FilteringBoundLogger

from app.board.content import Content, content_of
from app.board.meter import RATES_WINDOW_S, Meter, Report, quantile_ms
from app.errors import StoreError
from app.runtime.single_flight import SingleFlightCache
from app.schemas.board import LatencyOut, OutcomesOut, QueueOut, RatesOut, ScoresOut, StatsOut, TotalsOut
from app.schemas.quality import TrustOut
from app.store.interface import StateStore

_CLASSES: Final = 20
SCORE_EDGES: Final = tuple(number / _CLASSES for number in range(_CLASSES + 1))
_NAME_BYTES: Final = 8
# Rates are over ten seconds, so a second is fine enough, and one small write.
STATS_INTERVAL_S: Final = 1.0

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Report)


class Stats:
    """Reports of this replica, and answers for all of them.

    Args:
        store: where the reports are put down, and the sessions counted.
        meter: reads this replica's metrics.
        interval_s: how often it reports, and the age up to which an answer is given again.
        model: returns the fingerprint of the model in use.
        outcomes: returns what became of sessions, see `app.schemas.board`.
        trust: returns how the model did on them.
        logger: where a failure that is a defect is told.
    """

    def __init__(
        self,
        store: StateStore,
        meter: Meter,
        *,
        model: Callable[[], str],
        outcomes: Callable[[], Awaitable[OutcomesOut]],
        trust: Callable[[], Awaitable[TrustOut]],
        logger: FilteringBoundLogger,
        interval_s: float = STATS_INTERVAL_S,
    ) -> None:
        self._store = store
        self._meter = meter
        self._interval_s = interval_s
        self._model = model
        self._outcomes = outcomes
        self._trust = trust
        self._logger = logger
        self._name = secrets.token_hex(_NAME_BYTES)
        self._contents: SingleFlightCache[None, Content] = SingleFlightCache(self._read, kept_s=interval_s)
        self._reporting: asyncio.Task[None] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Begin to report; call inside the event loop."""
        self._reporting = asyncio.create_task(self._report_for_ever())

    def kept(self) -> Content | None:
        """Return the answer if there is one that is young enough, without a wait."""
        return self._contents.kept(None)

    async def content(self) -> Content:
        """Return the answer; raise `StoreError` when it cannot be put together."""
        return await self._contents.get(None)

    async def close(self) -> None:
        """Stop reporting, and take this replica out."""
        # Beside the cancellation, which a driver that is cleaning up may swallow.
        self._is_closed = True
        await self._contents.close()
        if self._reporting is None:
            return
        self._reporting.cancel()
        await asyncio.gather(self._reporting, return_exceptions=True)
        with contextlib.suppress(StoreError):
            await self._store.replicas.report(self._name, b"")

    async def _report_for_ever(self) -> None:
        while not self._is_closed:
            self._meter.tick()
            try:
                await self._store.replicas.report(self._name, _encoder.encode(self._meter.report()))
            except StoreError:
                pass  # whoever asks finds out; readiness and the breakers' metric tell operators
            except Exception:
                self._logger.exception("report_failed")
            await asyncio.sleep(self._interval_s)

    async def _read(self, _key: None) -> Content:
        spread, reports, outcomes, trust = await asyncio.gather(
            self._store.board.spread(SCORE_EDGES[1:-1]),
            self._store.replicas.reports(),
            self._outcomes(),
            self._trust(),
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
                queue=QueueOut(
                    length=sum(report.queue_length for report in known),
                    capacity=sum(report.queue_capacity for report in known),
                    overloaded=any(report.overloaded for report in known),
                ),
                model=self._model(),
                trust=trust,
            )
        )


def _decoded(reports: Iterable[bytes]) -> list[Report]:
    known = []
    for report in reports:
        # A replica of another release may report other things; it is counted, and its numbers are not.
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
