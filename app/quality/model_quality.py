"""Counts closed sessions, and answers with the figures of model quality over them.

The replica that publishes a session counts it right after. If the replica dies in between, the session is missing from
the figures and from nothing else. The counts are in Redis, so every replica answers the same.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import uuid4

from structlog.typing import FilteringBoundLogger

from app.errors import StoreError
from app.monitoring.metrics import Metrics
from app.quality.counts import (
    BILLION,
    answers_of,
    count_answers,
    count_hour,
    count_inputs,
    count_outcome,
    first_model,
    revenue_of,
)
from app.quality.figures import drift_of, quality_of
from app.quality.window import Window, WindowCounts
from app.runtime.periodic import Background, PeriodicTask
from app.runtime.single_flight import SingleFlightCache
from app.schemas.board import HistoryOut, HourOut, OutcomesOut
from app.schemas.quality import AnswersOut, ModelQualityOut
from app.store.outcomes import ClosedSession, Counts, CountsOf, OutcomeStore
from model.clock import utc
from model.interface import Model

_COUNTS_KEPT_S: Final = 5.0
_GAUGES_EVERY_S: Final = 15.0
# Sessions count this many idle times after they began: one for the session's end, and half of one for its length. In a
# simulated shop (tests/unit/app/quality/test_pending.py) the purchase rate is then right from the first figure on.
PENDING_IDLE_TIMES: Final = 1.5
# A sample shows drift; encoding every event a second time would take processor time from scoring.
DRIFT_EVENTS_PER_S: Final = 200.0
# Pseudo-fingerprint for counts over all models.
_ALL_MODELS: Final = "all"
# The same, by the hour.
_HOURS: Final = "hours"
_HOUR_S: Final = 3600
HISTORY_HOURS: Final = 7 * 24
_HISTORY_KEPT_S: Final = 15.0


class ModelQuality(Background):
    """Model quality of the live model.

    Args:
        store: where counts are.
        model: returns the model in use.
        window_s: length of the sliding window of the figures.
        idle_s: time after which a session without events ends.
        now_ms: the clock.
        metrics: where the gauges are.
        logger: where failures are logged.
        drift_events_per_s: bound on the events whose inputs are counted, on average; further sessions are left out.
    """

    def __init__(
        self,
        store: OutcomeStore,
        model: Callable[[], Model],
        *,
        window_s: int,
        idle_s: float,
        now_ms: Callable[[], int],
        metrics: Metrics,
        logger: FilteringBoundLogger,
        drift_events_per_s: float = DRIFT_EVENTS_PER_S,
    ) -> None:
        self._longest_ms = int((PENDING_IDLE_TIMES - 1) * idle_s * 1000)
        self._window = Window(store, window_s=window_s, pending_s=PENDING_IDLE_TIMES * idle_s)
        self._hours = Window(
            store, window_s=HISTORY_HOURS * _HOUR_S, pending_s=PENDING_IDLE_TIMES * idle_s, buckets=HISTORY_HOURS
        )
        self._history: SingleFlightCache[None, HistoryOut] = SingleFlightCache(
            lambda _: self._read_history(), kept_s=_HISTORY_KEPT_S
        )
        self._model = model
        self._budget = _Budget(drift_events_per_s)
        self._now_ms = now_ms
        self._metrics = metrics
        self._logger = logger
        self._counts: SingleFlightCache[str, WindowCounts] = SingleFlightCache(
            lambda fingerprint: self._window.read(fingerprint, self._now_ms()), kept_s=_COUNTS_KEPT_S
        )
        self._task = PeriodicTask(
            self._show_if_possible, name="model-quality", every_s=_GAUGES_EVERY_S, logger=logger, failed="trust_failed"
        )

    async def close(self) -> None:
        """Stop updating the gauges, and cancel readings."""
        await super().close()
        await self._counts.close()
        await self._history.close()

    async def count(self, sessions: Sequence[ClosedSession]) -> None:
        """Add sessions that this replica has published; raise `StoreUnavailableError` when the store is gone."""
        answers: dict[CountsOf, Counter[str]] = {}
        hours: dict[CountsOf, Counter[str]] = {}
        for session in sessions:
            bucket = self._bucket_of(session)
            hours.setdefault((_HOURS, self._hours.bucket_of(self._time_of(session))), Counter()).update(
                count_hour(session)
            )
            answers.setdefault((_ALL_MODELS, bucket), Counter()).update(count_outcome(session))
            model = first_model(session)
            if model is not None and (of_model := answers_of(session, model)):
                counts = count_answers(of_model, bought=session.bought)
                answers.setdefault((model, bucket), Counter()).update(counts)
        inputs = await self._inputs([session for session in sessions if self._budget.take(len(session.entries))])
        keys = {*answers, *inputs}
        if keys:
            added = {key: Counts(answers.get(key, {}), inputs.get(key, {})) for key in keys}
            await self._window.add(uuid4().hex, added)
            await self._hours.add(uuid4().hex, {key: Counts(counts) for key, counts in hours.items()})

    async def summary(self) -> ModelQualityOut:
        """Return the figures of the model in use; raise `StoreUnavailableError` when the store is gone."""
        model = self._model()
        counts, pending = await self._counts.get(model.fingerprint)
        overall, by_prefix_length, reliability = quality_of(counts.answers)
        return ModelQualityOut(
            window_s=self._window.window_s,
            pending=pending,
            pending_s=self._window.pending_s,
            sessions=overall.sessions,
            buyers=overall.buyers,
            predictions=overall.predictions,
            by_prefix_length=by_prefix_length,
            overall=overall,
            reliability=reliability,
            drift=None if model.summary is None else drift_of(counts.inputs, model.summary),
        )

    async def outcomes(self) -> OutcomesOut:
        """Return how many sessions of the window bought and how many did not, over all models.

        Raises:
            StoreUnavailableError: the store is gone.
        """
        found, pending = await self._counts.get(_ALL_MODELS)
        counts = found.answers
        buyers = counts.get("b", 0)
        return OutcomesOut(
            purchase=buyers,
            none=counts.get("s", 0) - buyers,
            revenue=revenue_of(counts),
            window_s=self._window.window_s,
            pending=pending,
            pending_s=self._window.pending_s,
        )

    async def history(self, hours: int) -> HistoryOut:
        """Return the last so many hours of the history, over all models, the current one included.

        Raises:
            StoreUnavailableError: the store is gone.
        """
        found = await self._history.get(None)
        since = found.as_of - timedelta(hours=hours)
        return found.model_copy(update={"hours": [hour for hour in found.hours if hour.start > since]})

    async def _read_history(self) -> HistoryOut:
        now_ms = self._now_ms()
        counts_of, end = await self._hours.read_buckets(_HOURS, now_ms)
        hours = [_hour_out(hour, counts.answers, complete=hour < end) for hour, counts in counts_of.items()]
        first = next((at for at, hour in enumerate(hours) if hour.sessions), len(hours))
        as_of = utc(now_ms)
        return HistoryOut(as_of=as_of, pending_s=self._hours.pending_s, hours=hours[first:])

    async def show(self) -> None:
        """Update the gauges; raise `StoreUnavailableError` when the store is gone."""
        quality = await self.summary()
        metrics = self._metrics
        groups = [("all", quality.overall)]
        groups += [
            (f"{group.from_}-{'' if group.to is None else group.to}", group) for group in quality.by_prefix_length
        ]
        for name, group in groups:
            metrics.trust_sessions.labels(name).set(group.sessions)
            for figure, value in _figures(group).items():
                metrics.trust_figure.labels(figure, name).set(float("nan") if value is None else value)
        drift = quality.drift
        metrics.drift_sessions.set(0 if drift is None else drift.sessions)
        metrics.drift_max_psi.set(float("nan") if drift is None or drift.max_psi is None else drift.max_psi)
        unseen = None if drift is None else drift.unseen_name_share
        metrics.drift_unseen_name_share.set(float("nan") if unseen is None else unseen)

    def _bucket_of(self, session: ClosedSession) -> int:
        return self._window.bucket_of(self._time_of(session))

    def _time_of(self, session: ClosedSession) -> int:
        """Return the time of a session's begin, ms, or a later time for a long session.

        No session counts earlier than an idle time after its last event, when sessions without a purchase end. That
        also holds where the events' own times say that the session lasted longer than it did.
        """
        return max(session.began_ms, session.last_seen_ms - self._longest_ms)

    async def _show_if_possible(self) -> None:
        try:
            await self.show()
        except StoreError:
            # The gauges keep their values; readiness shows that Redis is away.
            return

    async def _inputs(self, sessions: Sequence[ClosedSession]) -> dict[CountsOf, Counter[str]]:
        """Return the counts of the sessions' inputs, by the model in use."""
        model = self._model()
        by_bucket: dict[int, list[ClosedSession]] = {}
        for session in sessions if model.summary is not None else ():
            if first_model(session) == model.fingerprint:
                by_bucket.setdefault(self._bucket_of(session), []).append(session)
        counts: dict[CountsOf, Counter[str]] = {}
        for bucket, some in by_bucket.items():
            histories = [[entry.event for entry in session.entries] for session in some]
            try:
                inputs = await asyncio.to_thread(model.count_inputs, histories)
            except Exception:
                # The other figures do not depend on what the model makes of a session.
                self._metrics.drift_failures.inc()
                self._logger.exception("drift_failed", sessions=len(some))
                continue
            if inputs is not None:
                counts[model.fingerprint, bucket] = count_inputs(inputs, sessions=len(some))
        return counts


class _Budget:
    """Token bucket: so many events a second on average, a minute's worth at once."""

    def __init__(self, events_per_s: float) -> None:
        self._events_per_s = events_per_s
        self._left = self._most = events_per_s * 60
        self._filled_s = time.monotonic()

    def take(self, events: int) -> bool:
        now_s = time.monotonic()
        self._left = min(self._most, self._left + (now_s - self._filled_s) * self._events_per_s)
        self._filled_s = now_s
        if self._left <= 0 or not events:
            return False
        self._left -= events
        return True


def _hour_out(hour: int, counts: Mapping[str, int], *, complete: bool) -> HourOut:
    sessions, purchases, known = counts.get("s", 0), counts.get("b", 0), counts.get("f", 0)
    return HourOut(
        start=datetime.fromtimestamp(hour * _HOUR_S, UTC),
        sessions=sessions,
        events=counts.get("e", 0),
        purchases=purchases,
        conversion=purchases / sessions if complete and sessions else None,
        predicted=counts.get("p", 0) / BILLION / known if complete and known else None,
        revenue=revenue_of(counts),
        complete=complete,
    )


def _figures(group: AnswersOut) -> dict[str, float | None]:
    return {
        "base_rate": group.base_rate,
        "mean_probability": group.mean_probability,
        "log_loss": group.log_loss,
        "auc": group.auc,
        "calibration_error": group.calibration_error,
    }
