"""Counts closed sessions for the model's figures, and answers what they come to.

A session is counted by the replica that took it on, right after; if that replica dies in between, the session is
missing from the figures and from nothing else. The counts lie in Redis, so every replica answers the same.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final
from uuid import uuid4

from structlog.typing import FilteringBoundLogger

from app.errors import StoreError
from app.monitoring.metrics import Metrics
from app.quality.counts import answers_by_model, count_answers, count_inputs
from app.quality.drift import drift_of
from app.quality.figures import quality_of
from app.quality.window import Window
from app.schemas.quality import AnswersOut, TrustOut
from app.store.outcomes import ClosedSession, Counts, CountsOf, OutcomeStore
from model.interface import Model

# For how long an answer is given again.
_FRESH_S: Final = 5.0
_SHOW_EVERY_S: Final = 15.0
# A sample shows drift; encoding every event a second time would take processor time from scoring.
DRIFT_EVENTS_PER_S: Final = 200.0
# Stands where a model's fingerprint stands: sessions whoever answered them.
_ALL_MODELS: Final = "all"


class ModelQuality:
    """The live model's figures.

    Args:
        store: where counts are.
        model: returns the model in use.
        window_s: how far back the figures go.
        drift_events_per_s: events whose inputs are looked at, at most, on average; sessions beyond are not.
        now_ms: the clock.
        metrics: where the figures are shown.
        logger: where failures are told.
    """

    def __init__(
        self,
        store: OutcomeStore,
        model: Callable[[], Model],
        *,
        window_s: int,
        now_ms: Callable[[], int],
        metrics: Metrics,
        logger: FilteringBoundLogger,
        drift_events_per_s: float = DRIFT_EVENTS_PER_S,
    ) -> None:
        self._window = Window(store, window_s=window_s)
        self._model = model
        self._budget = _Budget(drift_events_per_s)
        self._now_ms = now_ms
        self._metrics = metrics
        self._logger = logger
        self._reading = asyncio.Lock()
        self._answer: tuple[str, float, TrustOut] | None = None
        self._ended: tuple[float, tuple[int, int]] | None = None
        self._shower: asyncio.Task[None] | None = None
        self._is_closed = False

    def start(self) -> None:
        """Begin to show the figures; call once, inside the event loop."""
        self._shower = asyncio.create_task(self._show_forever(), name="trust")

    async def close(self) -> None:
        """Stop to show them."""
        # Beside the cancellation, which a driver that is cleaning up may swallow.
        self._is_closed = True
        if self._shower is not None:
            self._shower.cancel()
            await asyncio.gather(self._shower, return_exceptions=True)

    async def count(self, sessions: Sequence[ClosedSession]) -> None:
        """Add sessions that this replica has taken on; raise `StoreUnavailableError` when the store is gone."""
        trust: dict[CountsOf, Counter[str]] = {}
        for session in sessions:
            bucket = self._window.bucket_of(session.closed_ms)
            ended = Counter({"s": 1, "b": int(session.bought)})
            trust.setdefault((_ALL_MODELS, bucket), Counter()).update(ended)
            for model, answers in answers_by_model(session).items():
                trust.setdefault((model, bucket), Counter()).update(count_answers(answers, bought=session.bought))
        drift = await self._inputs([session for session in sessions if self._budget.take(len(session.entries))])
        keys = {*trust, *drift}
        if keys:
            counts = {key: Counts(trust.get(key, {}), drift.get(key, {})) for key in keys}
            await self._window.add(uuid4().hex, counts)

    async def summary(self) -> TrustOut:
        """Return the figures of the model in use; raise `StoreUnavailableError` when the store is gone."""
        model = self._model()
        async with self._reading:
            # Whoever waited for another's reading takes its answer.
            if self._answer is not None:
                fingerprint, read_s, answer = self._answer
                if fingerprint == model.fingerprint and time.monotonic() - read_s < _FRESH_S:
                    return answer
            counts = await self._window.read(model.fingerprint, self._now_ms())
            overall, by_prefix_length, reliability = quality_of(counts.trust)
            answer = TrustOut(
                window_s=self._window.window_s,
                sessions=overall.sessions,
                buyers=overall.buyers,
                predictions=overall.predictions,
                by_prefix_length=by_prefix_length,
                overall=overall,
                reliability=reliability,
                drift=None if model.summary is None else drift_of(counts.drift, model.summary),
            )
            self._answer = (model.fingerprint, time.monotonic(), answer)
            return answer

    async def outcomes(self) -> tuple[int, int]:
        """Return how many sessions of the window bought and how many did not, whichever model answered them.

        Raises:
            StoreUnavailableError: the store is gone.
        """
        async with self._reading:
            if self._ended is None or time.monotonic() - self._ended[0] >= _FRESH_S:
                counts = (await self._window.read(_ALL_MODELS, self._now_ms())).trust
                buyers = counts.get("b", 0)
                self._ended = (time.monotonic(), (buyers, counts.get("s", 0) - buyers))
            return self._ended[1]

    async def show(self) -> None:
        """Bring the gauges up to date; raise `StoreUnavailableError` when the store is gone."""
        answer = await self.summary()
        metrics = self._metrics
        groups = [("all", answer.overall)]
        groups += [
            (f"{group.from_}-{'' if group.to is None else group.to}", group) for group in answer.by_prefix_length
        ]
        for name, group in groups:
            metrics.trust_sessions.labels(name).set(group.sessions)
            for figure, value in _figures(group).items():
                metrics.trust_figure.labels(figure, name).set(float("nan") if value is None else value)
        drift = answer.drift
        metrics.drift_sessions.set(0 if drift is None else drift.sessions)
        metrics.drift_max_psi.set(float("nan") if drift is None or drift.max_psi is None else drift.max_psi)
        unseen = None if drift is None else drift.unseen_name_share
        metrics.drift_unseen_name_share.set(float("nan") if unseen is None else unseen)

    async def _show_forever(self) -> None:
        while not self._is_closed:
            try:
                await self.show()
            except StoreError:
                # They stay as they are; that Redis is away shows elsewhere.
                pass
            except Exception:
                self._logger.exception("trust_failed")
            await asyncio.sleep(_SHOW_EVERY_S)

    async def _inputs(self, sessions: Sequence[ClosedSession]) -> dict[CountsOf, Counter[str]]:
        """Return what the inputs of sessions add to the counts of the model in use."""
        model = self._model()
        by_bucket: dict[int, list[ClosedSession]] = {}
        for session in sessions if model.summary is not None else ():
            if session.entries:
                by_bucket.setdefault(self._window.bucket_of(session.closed_ms), []).append(session)
        counts: dict[CountsOf, Counter[str]] = {}
        for bucket, some in by_bucket.items():
            histories = [[entry.event for entry in session.entries] for session in some]
            try:
                inputs = await asyncio.to_thread(model.count_inputs, histories)
            except Exception:
                # Whatever a model does not like about a session, the other figures do not suffer from it.
                self._metrics.drift_failures.inc()
                self._logger.exception("drift_failed", sessions=len(some))
                continue
            if inputs is not None:
                counts[model.fingerprint, bucket] = count_inputs(inputs, sessions=len(some))
        return counts


class _Budget:
    """Lets through so many events a second on average, a minute's worth at once."""

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


def _figures(group: AnswersOut) -> dict[str, float | None]:
    return {
        "base_rate": group.base_rate,
        "mean_probability": group.mean_probability,
        "log_loss": group.log_loss,
        "auc": group.auc,
        "calibration_error": group.calibration_error,
    }
