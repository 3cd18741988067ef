"""A candidate model scores some sessions beside the live one, and nobody but the metrics hears of it.

Which sessions is decided by a hash of their ids, so every replica chooses the same ones. After the live model's commit
a session is put into a bounded line; in the background its history is folded through the candidate, and the result is
set beside the probability in its record. Several events of a session that come quickly are compared once. No state of
the candidate is stored: the history has all of it. What finds no place in line is dropped and counted.

Outcomes: a purchase is known at once. A session without one ends when its record is gone after the idle time; as its
last comparison was remembered, its loss is then known too. Sessions that went on at another replica are counted there.
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
from app.scoring.events import QueuedEvent
from app.scoring.isolation import map_isolated
from app.scoring.session_update import Score
from app.store.interface import StateStore
from app.store.record_codec import Outcome
from model.interface import SessionScorer

_AT_ONCE: Final = 32
_LONGEST_LINE: Final = 1024
_MOST_REMEMBERED: Final = 10_000
_LOOK_S: Final = 1.0
# A record may outlive its idle time by the journey of its last commit.
_MARGIN_MS: Final = 2000
_SMALLEST_PROBABILITY: Final = 1e-6


@dataclass(frozen=True, slots=True)
class _Pair:
    live: float
    candidate: float
    due_ms: int


class Shadow:
    """Compares a candidate with the live model.

    Args:
        store: where sessions are; only read.
        model: the candidate; used in threads, by nobody else.
        live: the live model's fingerprint now.
        share: of all sessions, from 0 to 1.
        session_idle_s: idle time after which a session ends.
        now_ms: the clock.
        metrics: what hears of it.
        logger: where failures are told.
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
        # Sessions to compare, each with whether it was closed by a purchase.
        self._line: OrderedDict[str, bool] = OrderedDict()
        self._remembered: OrderedDict[str, _Pair] = OrderedDict()
        self._wake = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        metrics.shadow_info.labels(model.fingerprint).set(1)

    def start(self) -> None:
        """Begin to compare; call once, inside the event loop."""
        self._runner = asyncio.create_task(self._run(), name="shadow")

    async def close(self) -> None:
        """Stop, without finishing the line."""
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.gather(self._runner, return_exceptions=True)

    def observe(self, submissions: Sequence[QueuedEvent], results: Sequence[object]) -> None:
        """Take note of a batch that the live model has answered; quick, and never raises."""
        for submission, result in zip(submissions, results, strict=False):
            if isinstance(result, Score) and not result.duplicate and self._is_sampled(submission.session_id):
                answer = result.answer
                if answer.folded or submission.is_purchase:
                    self._put_into_line(submission.session_id, bought=answer.outcome is Outcome.PURCHASE)

    def _is_sampled(self, session_id: str) -> bool:
        digest = blake2b(session_id.encode(), digest_size=8, person=b"shadow").digest()
        return int.from_bytes(digest, "little") < self._threshold

    def _put_into_line(self, session_id: str, *, bought: bool) -> None:
        if session_id not in self._line and len(self._line) >= _LONGEST_LINE:
            self._metrics.shadow_dropped.inc()
            return
        self._line[session_id] = bought or self._line.get(session_id, False)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                while self._line:
                    taken = [self._line.popitem(last=False) for _ in range(min(_AT_ONCE, len(self._line)))]
                    await self._compare(dict(taken))
                await self._settle()
            except Exception:
                # A failing candidate costs nothing but its own numbers.
                self._metrics.shadow_failures.inc()
                self._logger.exception("shadow_failed")

    async def _compare(self, sessions: dict[str, bool]) -> None:
        """Fold the sessions' histories through the candidate, and set the results beside their records."""
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
            # Another event came between the two reads, or another model wrote the record: it will be back in line.
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
            self._count(session_id, _Pair(live, result[0], self._now_ms() + self._idle_ms), bought=sessions[session_id])

    def _count(self, session_id: str, pair: _Pair, *, bought: bool) -> None:
        self._metrics.shadow_difference.observe(abs(pair.candidate - pair.live))
        self._metrics.shadow_probability.labels("live").observe(pair.live)
        self._metrics.shadow_probability.labels("candidate").observe(pair.candidate)
        self._remembered.pop(session_id, None)
        if bought:
            self._count_outcome(pair, bought=True)
            return
        self._remembered[session_id] = pair
        if len(self._remembered) > _MOST_REMEMBERED:
            self._remembered.popitem(last=False)
            self._metrics.shadow_dropped.inc()

    async def _settle(self) -> None:
        """Count the sessions that ended without a purchase, some at a time."""
        due: list[tuple[str, _Pair]] = []
        while self._remembered and len(due) < _AT_ONCE:
            session_id, pair = next(iter(self._remembered.items()))
            if pair.due_ms > self._now_ms():
                break
            due.append((session_id, self._remembered.pop(session_id)))
        if not due:
            return
        records = await self._store.load([session_id for session_id, _ in due])
        for (_, pair), record in zip(due, records, strict=True):
            if record is None:
                self._count_outcome(pair, bought=False)

    def _count_outcome(self, pair: _Pair, *, bought: bool) -> None:
        self._metrics.shadow_outcomes.labels("purchase" if bought else "none").inc()
        for name, probability in (("live", pair.live), ("candidate", pair.candidate)):
            likelihood = probability if bought else 1.0 - probability
            self._metrics.shadow_log_loss.labels(name).observe(-log(max(likelihood, _SMALLEST_PROBABILITY)))
