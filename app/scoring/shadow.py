"""A candidate model scores some sessions in the background; its results appear only in the metrics.

A hash of the session id selects the sessions, so that every replica selects the same ones. After the live model's
commit, a selected session enters a bounded queue. In the background its history is folded through the candidate, and
the result is compared with the probability in its record. Several events of a session in quick succession are compared
once. No state of the candidate is stored, because a history is enough to compute it. Sessions that do not fit into the
queue are dropped and counted.

Outcomes: a session without a purchase has ended when its record has expired after the idle time. A purchase is known at
once, but counts an idle time later too: otherwise nearly all outcomes of the first idle time would be purchases. The
last comparison of each session is remembered until then. A replica counts only sessions whose last event it served.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import log
from typing import Final

from structlog.typing import FilteringBoundLogger

from app.monitoring.metrics import Metrics
from app.runtime.periodic import Background, PeriodicTask
from app.scoring.events import QueuedEvent
from app.scoring.isolation import map_isolated
from app.scoring.session_update import Score
from app.store.interface import StateStore
from app.store.record_codec import Outcome
from model.interface import SessionScorer

_BATCH_SIZE: Final = 32
_MAX_QUEUE: Final = 1024
_MAX_REMEMBERED: Final = 10_000
_INTERVAL_S: Final = 1.0
# A record may expire later than the idle time, by the latency of its last commit.
_MARGIN_MS: Final = 2000
_SMALLEST_PROBABILITY: Final = 1e-6


@dataclass(frozen=True, slots=True)
class _Comparison:
    live: float
    candidate: float
    due_ms: int
    bought: bool


class Shadow(Background):
    """Compares a candidate with the live model.

    Args:
        store: the sessions' records and histories; only read.
        model: the candidate; used in threads, and only here.
        live: returns the live model's fingerprint.
        share: share of all sessions that is compared, from 0 to 1.
        session_idle_s: idle time after which a session ends.
        now_ms: the clock.
        metrics: gets the comparisons.
        logger: gets failures.
    """

    def __init__(
        self,
        store: StateStore,
        model: SessionScorer,
        *,
        live: Callable[[], str],
        share: float,
        session_idle_s: int,
        now_ms: Callable[[], int],
        metrics: Metrics,
        logger: FilteringBoundLogger,
    ) -> None:
        self._store = store
        self._model = model
        self._live = live
        self._threshold = int(share * 2**64)
        self._idle_ms = session_idle_s * 1000 + _MARGIN_MS
        self._now_ms = now_ms
        self._metrics = metrics
        self._logger = logger
        # Sessions to compare, by id; the value says whether a purchase has closed the session.
        self._queue: OrderedDict[str, bool] = OrderedDict()
        self._remembered: OrderedDict[str, _Comparison] = OrderedDict()
        self._task = PeriodicTask(
            self._compare_queue,
            name="shadow",
            every_s=_INTERVAL_S,
            logger=logger,
            failed="shadow_failed",
            # A failing candidate must not affect the service.
            on_failure=lambda _failure: metrics.shadow_failures.inc(),
            pause_first=True,
        )
        metrics.shadow_info.labels(model.fingerprint).set(1)

    def observe(self, events: Sequence[QueuedEvent], results: Sequence[object]) -> None:
        """Enqueue the selected sessions of a batch that the live model has answered; never waits or raises."""
        for queued, result in zip(events, results, strict=False):
            try:
                if isinstance(result, Score) and not result.duplicate and self._is_sampled(queued.session_id):
                    answer = result.answer
                    if answer.folded or queued.is_purchase:
                        self._enqueue(queued.session_id, bought=answer.outcome is Outcome.PURCHASE)
            except Exception:
                self._metrics.shadow_failures.inc()
                self._logger.exception("shadow_failed")

    def _is_sampled(self, session_id: str) -> bool:
        digest = blake2b(session_id.encode(), digest_size=8, person=b"shadow").digest()
        return int.from_bytes(digest, "little") < self._threshold

    def _enqueue(self, session_id: str, *, bought: bool) -> None:
        if session_id not in self._queue and len(self._queue) >= _MAX_QUEUE:
            self._metrics.shadow_dropped.inc()
            return
        self._queue[session_id] = bought
        self._task.wake()

    async def _compare_queue(self) -> None:
        while self._queue:
            taken = [self._queue.popitem(last=False) for _ in range(min(_BATCH_SIZE, len(self._queue)))]
            await self._compare(dict(taken))
        await self.count_ended()

    async def _compare(self, sessions: dict[str, bool]) -> None:
        """Fold the sessions' histories through the candidate and compare the results with their records."""
        session_ids = list(sessions)
        records = await self._store.load(session_ids)
        histories = await self._store.load_histories(session_ids)
        comparable = [
            (session_id, record.probability, history)
            for session_id, record, history in zip(session_ids, records, histories, strict=True)
            if record is not None
            and not isinstance(record, Exception)
            and not isinstance(history, Exception)
            and record.probability is not None
            # Else another event came between the two reads, or another model wrote the record; the next event enqueues
            # the session again.
            and len(history) == record.events
            and record.model == self._live()
        ]
        folded = await asyncio.to_thread(
            map_isolated, self._model.refold, [history for *_, history in comparable], self._logger
        )
        for (session_id, live, _), result in zip(comparable, folded, strict=True):
            if isinstance(result, Exception):
                self._metrics.shadow_failures.inc()
                continue
            due_ms = self._now_ms() + self._idle_ms
            self._count(session_id, _Comparison(live, result[0], due_ms, bought=sessions[session_id]))

    def _count(self, session_id: str, pair: _Comparison) -> None:
        self._metrics.shadow_difference.observe(abs(pair.candidate - pair.live))
        self._metrics.shadow_probability.labels("live").observe(pair.live)
        self._metrics.shadow_probability.labels("candidate").observe(pair.candidate)
        self._remembered.pop(session_id, None)
        self._remembered[session_id] = pair
        if len(self._remembered) > _MAX_REMEMBERED:
            self._remembered.popitem(last=False)
            self._metrics.shadow_dropped.inc()

    async def count_ended(self) -> None:
        """Count the outcomes of sessions whose idle time has passed; at most one batch at a time."""
        due: list[tuple[str, _Comparison]] = []
        while self._remembered and len(due) < _BATCH_SIZE:
            session_id, pair = next(iter(self._remembered.items()))
            if pair.due_ms > self._now_ms():
                break
            due.append((session_id, self._remembered.pop(session_id)))
        if not due:
            return
        records = await self._store.load([session_id for session_id, _ in due])
        for (_, pair), record in zip(due, records, strict=True):
            if pair.bought or record is None:
                self._count_outcome(pair)

    def _count_outcome(self, pair: _Comparison) -> None:
        self._metrics.shadow_outcomes.labels("purchase" if pair.bought else "none").inc()
        for name, probability in (("live", pair.live), ("candidate", pair.candidate)):
            likelihood = probability if pair.bought else 1.0 - probability
            self._metrics.shadow_log_loss.labels(name).observe(-log(max(likelihood, _SMALLEST_PROBABILITY)))
