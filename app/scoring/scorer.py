"""One batch: load records, fold, commit, and retry conflicts.

The model steps different sessions together. Events of one session are folded one after another, each with its own
answer or error, and are committed together. An error of one session affects no other session, and an error of one event
affects no other event. A session's events of a batch are stored all or none: after a conflict all of them are tried
again.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Final

from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from app.errors import (
    ConflictError,
    CorruptRecordError,
    DeadlineExceededError,
    EventIdReusedError,
    OverloadedError,
    PredictionError,
    SessionFullError,
    SessionTooLargeError,
    StoreError,
)
from app.monitoring import tracing
from app.monitoring.metrics import Metrics
from app.scoring.batcher import REQUEUE, Callers, Requeue
from app.scoring.events import QueuedEvent
from app.scoring.isolation import await_isolated, map_isolated
from app.scoring.rebuilder import Rebuilder, is_foreign
from app.scoring.session_update import (
    Disposition,
    PendingEvent,
    Score,
    SessionUpdate,
    random_versions,
    updates_by_session,
    with_decisions,
    with_fold,
    without_fold,
)
from app.store.interface import COMMIT_ATTEMPTS, StateStore
from app.store.record_codec import Outcome, Record
from model.events import Event
from model.interface import SessionScorer
from model.interventions.decide import NO_FACTS, Decider, Decision, advanced_facts, facts_of

# Module constants: a member lookup through its class takes 57 ns, a global 6, and every event needs some.
_FOLD: Final = Disposition.FOLD
_LATE_FOLD: Final = Disposition.LATE_FOLD
_OPEN: Final = Outcome.OPEN
# From so many sessions on, a commit is split in two halves: with 64 connections 5 to 14 % more events a second for at
# most 6 % more CPU time. Thirds and quarters bring less (docs/performance.md).
_SPLIT_COMMIT_FROM: Final = 32


@dataclass(slots=True)
class _Batch:
    """What all attempts of a batch share, and what the batch has stored so far.

    Attributes:
        model: the same for the whole batch, even if another one is loaded meanwhile.
        fingerprint: the model's.
        callers: the callers that wait for the events.
        versions: yields a version for each new record.
        dispositions: those of the events that have been answered.
        sessions_started: sessions stored for the first time.
    """

    model: SessionScorer
    fingerprint: str
    callers: Callers[Score]
    versions: Iterator[bytes]
    dispositions: list[Disposition] = field(default_factory=list)
    sessions_started: int = 0

    def add_to(self, metrics: Metrics) -> None:
        """Increment the counters; once a batch, because an increment costs more than an addition."""
        count = self.dispositions.count
        late = count(Disposition.LATE_FOLD)
        for counter, number in (
            (metrics.sessions_started, self.sessions_started),
            (metrics.events_folded, count(Disposition.FOLD) + late),
            (metrics.late_events, late),
            (metrics.purchases, count(Disposition.PURCHASE)),
            (metrics.closed_session_events, count(Disposition.AFTER_PURCHASE)),
            (metrics.duplicates, count(Disposition.DUPLICATE)),
        ):
            if number:
                counter.inc(number)


class _NoCallers:
    """Callers of a batch whose results are only returned; none of them is ever abandoned."""

    def abandoned(self) -> Collection[int]:
        return ()

    def resolve(self, index: int, result: Score | Exception) -> None:
        pass


_NO_CALLERS: Final = _NoCallers()


class Scorer:
    """Scores batches of events.

    Args:
        store: the sessions' records and histories.
        model: folds the events.
        metrics: counts batches, events and errors.
        logger: gets failures.
        max_session_events: most events of one session.
        max_session_bytes: largest size of one session's history.
        dedupe_window: number of answers that a record keeps.
        commit_attempts: number of attempts for a session whose commits conflict.
        decider: decides by the rules; None: there are no rules.
        restarts: whether a new visit begins after a purchase with the next event, instead of after the idle time.
        rebuilder: rebuilds states that the model cannot continue; their events are requeued meanwhile.
    """

    def __init__(
        self,
        store: StateStore,
        model: SessionScorer,
        *,
        metrics: Metrics,
        logger: FilteringBoundLogger,
        max_session_events: int,
        max_session_bytes: int,
        dedupe_window: int,
        commit_attempts: int = COMMIT_ATTEMPTS,
        restarts: bool = False,
        decider: Decider | None = None,
        rebuilder: Rebuilder | None = None,
    ) -> None:
        self._store = store
        self._model = model
        self._metrics = metrics
        self._logger = logger
        self._max_session_events = max_session_events
        self._max_session_bytes = max_session_bytes
        self._dedupe_window = dedupe_window
        self._commit_attempts = commit_attempts
        self._restarts = restarts
        self._decider = decider
        self._rebuilder = rebuilder or Rebuilder(store, metrics=metrics, logger=logger)

    async def score(
        self, events: Sequence[QueuedEvent], callers: Callers[Score] | None = None
    ) -> list[Score | Exception | Requeue]:
        """Fold each event into its session and answer it.

        Abandoned events are dropped just before the commit. A caller that leaves during the commit is too late; a retry
        with the same event id returns the stored answer.

        Args:
            events: those of one session in the order in which they are to be folded, at most `max_events_per_session`.
            callers: get their answers as soon as their events are stored. None: answers are only returned.

        Returns:
            For each event, in order, its score, the error for its caller, or `REQUEUE`.

        Raises:
            Exception: an unexpected one, of any event. Call again with fewer events: an event that was stored before
                the exception gets its stored answer.
        """
        started = time.perf_counter()
        all_pending = [PendingEvent(queued, index) for index, queued in enumerate(events)]
        undecided = updates_by_session(all_pending)
        self._metrics.batch_size.observe(len(undecided))
        model = self._model
        batch = _Batch(model, model.fingerprint, callers or _NO_CALLERS, random_versions(len(events)))
        # Terminates: each attempt decides an update, drops an event, or counts a conflict, whose number is limited.
        try:
            with tracing.batch_span(events):
                while undecided:
                    await self._attempt(batch, undecided)
                    undecided = [update for update in undecided if not update.is_decided]
                    for update in undecided:
                        update.reset()
        finally:
            batch.add_to(self._metrics)
        self._metrics.batch_seconds.observe(time.perf_counter() - started)
        return [pending.result for pending in all_pending if pending.result is not None]

    async def _attempt(self, batch: _Batch, updates: Sequence[SessionUpdate]) -> None:
        """Take every update to its results, or to its next attempt."""
        await self._load(updates)
        for turn in range(max([len(update.pending) for update in updates])):
            folding: list[tuple[SessionUpdate, PendingEvent]] = []
            for update in updates:
                if update.is_stopped or turn >= len(update.pending):
                    continue
                pending = update.pending[turn]
                if self._restarts and _begins_visit(update, pending):
                    if update.is_changed:
                        # The purchase is of this batch.
                        update.postpone(turn)
                        continue
                    update.restart(pending.queued, batch.fingerprint)
                if not self._needs_fold(batch, update, pending):
                    continue
                record = update.current
                if record is not None and is_foreign(record, batch.model) and update.rebuild_error is None:
                    self._rebuild(batch, update, record)
                if not update.is_stopped:
                    folding.append((update, pending))
            self._advance(batch, folding)
        await self._commit(batch, [update for update in updates if not update.is_stopped])

    def _rebuild(self, batch: _Batch, update: SessionUpdate, record: Record) -> None:
        """Have the state rebuilt and the events requeued; after a failure, set the update's error instead."""
        update.rebuild_error = self._rebuilder.failure(update.session_id, record)
        if update.rebuild_error is not None:
            return
        try:
            self._rebuilder.start(update.session_id, record, batch.model)
        except OverloadedError as exc:
            update.rebuild_error = exc
        else:
            update.fail(REQUEUE)

    async def _load(self, updates: Sequence[SessionUpdate]) -> None:
        records = await self._store.load([update.session_id for update in updates])
        for update, record in zip(updates, records, strict=True):
            if isinstance(record, Exception):
                update.fail(record)
                if isinstance(record, CorruptRecordError):
                    self._logger.error("record_corrupt", session_id=update.session_id, detail=record.detail)
            else:
                update.loaded = update.current = record
        if self._decider is not None:
            await self._find_facts(self._decider, updates)

    async def _find_facts(self, decider: Decider, updates: Sequence[SessionUpdate]) -> None:
        """Compute the facts of sessions that began before something asked for them, once each, from their histories.

        A session whose history cannot be read is scored as ever, and no rule that asks for facts fires in it.
        """
        asks = decider.asks_facts
        missing = [
            update
            for update in updates
            if (record := update.current) is not None
            and not record.facts
            and record.events
            and not record.outcome
            and (asks or any(pending.queued.visitor_id is not None for pending in update.pending))
        ]
        if not missing:
            return
        found = await self._store.load_sessions([update.session_id for update in missing])
        for update, session in zip(missing, found, strict=True):
            if session is not None and not isinstance(session, Exception):
                record, history = session
                update.loaded = update.current = replace(record, facts=facts_of(history))

    def _needs_fold(self, batch: _Batch, update: SessionUpdate, pending: PendingEvent) -> bool:
        """Return whether the model has to fold the event; propose the event's answer if not."""
        record, queued = update.current, pending.queued
        is_open = record is None or record.outcome is _OPEN
        if record is not None and (known := record.answers.find(queued.code)) is not None:
            is_duplicate = queued.has_event_id
            if is_duplicate and record.answers.stored_code(queued.code) not in (queued.code, queued.id_code):
                pending.proposed = EventIdReusedError(
                    "Another event of the session had this event_id; this one is not stored."
                )
                return False
            pending.disposition = Disposition.DUPLICATE if is_duplicate else Disposition.NONE
            decisions = record.decisions_at(known.events) if known.folded and record.decisions else ()
            pending.proposed = Score(
                queued.session_id, known, duplicate=is_duplicate, warnings=queued.warnings, decisions=decisions
            )
        elif not is_open or queued.is_purchase:
            following, answer = without_fold(
                record, queued, version=next(batch.versions), model=batch.fingerprint, window=self._dedupe_window
            )
            if is_open:
                update.value, update.currency = queued.event.worth, queued.event.currency
            update.apply(pending, Disposition.PURCHASE if is_open else Disposition.AFTER_PURCHASE, following, answer)
        elif record is not None and record.events >= self._max_session_events:
            pending.proposed = SessionFullError(
                f"The session has {record.events} events, and one may have {self._max_session_events}."
            )
        else:
            return True
        return False

    def _advance(self, batch: _Batch, pairs: Sequence[tuple[SessionUpdate, PendingEvent]]) -> None:
        """Step the model once for all pairs, which are of different sessions."""
        inputs: list[tuple[Event, bytes | None]] = []
        stepped: list[tuple[SessionUpdate, PendingEvent]] = []
        for pair in pairs:
            update, pending = pair
            if update.rebuild_error is not None:
                pending.proposed = update.rebuild_error
                continue
            record = update.current
            stepped.append(pair)
            inputs.append((pending.queued.event, record.state if record is not None and record.events else None))
        if not stepped:
            return
        started = time.perf_counter()
        steps = map_isolated(lambda some: _step(batch.model, some), inputs, self._logger)
        self._metrics.step_seconds.observe(time.perf_counter() - started)
        for (update, pending), step in zip(stepped, steps, strict=True):
            if isinstance(step, Exception):
                pending.proposed = step
            elif not isfinite(step[0]):
                self._logger.error("probability_not_finite", session_id=update.session_id)
                pending.proposed = PredictionError("The model's answer is not a number.")
            else:
                self._fold(batch, update, pending, *step)

    def _fold(
        self, batch: _Batch, update: SessionUpdate, pending: PendingEvent, probability: float, state: bytes
    ) -> None:
        record, queued = update.current, pending.queued
        event, decider = queued.event, self._decider
        facts = record.facts if record is not None else b""
        decisions: tuple[Decision, ...] = ()
        if decider is None:
            facts = b""
        elif facts or ((record is None or not record.events) and (decider.asks_facts or queued.visitor_id is not None)):
            facts = advanced_facts(facts or NO_FACTS, event, queued.visitor_id)
        following, answer = with_fold(
            record,
            queued,
            version=next(batch.versions),
            model=batch.fingerprint,
            probability=probability,
            state=state,
            window=self._dedupe_window,
            facts=facts,
        )
        if decider is not None and (facts or not decider.asks_facts):
            decisions = decider.at_event(
                queued.session_id,
                event,
                number=following.events,
                before=None if record is None else record.probability,
                probability=probability,
                facts=facts or NO_FACTS,
                decided=following.decisions,
                now_ms=queued.received_ms,
            )
            if decisions:
                following = with_decisions(following, decisions, self._dedupe_window)
        if update.may_exceed(self._max_session_bytes):
            size = update.history_bytes_with(following, event, probability, decisions)
            if size > self._max_session_bytes:
                pending.proposed = SessionTooLargeError(
                    f"With this event, the session would have {size} bytes, and one may have {self._max_session_bytes}."
                )
                return
        is_late = record is not None and event.timestamp_ms < record.last_event_ms
        update.apply(pending, _LATE_FOLD if is_late else _FOLD, following, answer, decisions)
        if decisions:
            update.decided += decisions
        update.appended.append(event)
        update.probabilities.append(probability)

    async def _commit(self, batch: _Batch, updates: Sequence[SessionUpdate]) -> None:
        """Store the new records; what is stored is decided, what is not stored is tried again."""
        changed = []
        for update in self._drop_abandoned(batch, updates):
            if update.is_changed or (self._store.confirms_by_writing and update.has_duplicates):
                changed.append(update)
            else:
                _accept(batch, update)
        if not changed:
            return
        if self._decider is not None and self._decider.caps:
            await self._take_tokens(self._decider, changed)
        if len(changed) < _SPLIT_COMMIT_FROM:
            await self._commit_part(batch, changed)
            return
        # While Redis works on the second half, the first half's callers are answered and new requests are read.
        middle = len(changed) // 2
        parts = [self._commit_part(batch, part) for part in (changed[:middle], changed[middle:])]
        # Wait for both halves even if one raises: a session must not be in two batches at once.
        for failure in await asyncio.gather(*parts, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _take_tokens(self, decider: Decider, updates: Sequence[SessionUpdate]) -> None:
        """Take a token for each decision of a rule with a cap; withdraw the decisions that get none.

        Before the commit: a token whose commit fails is lost, and no decision is ever without one.
        """
        missing = [(update, one) for update in updates for one in update.without_token(decider.caps)]
        if not missing:
            return
        wanted = Counter(decision.rule for _, decision in missing)
        left = Counter(
            await self._store.decisions.take({rule: (number, decider.caps[rule]) for rule, number in wanted.items()})
        )
        for update, decision in missing:
            if left[decision.rule] > 0:
                left[decision.rule] -= 1
                update.tokens = {**update.tokens, decision.rule: update.tokens.get(decision.rule, 0) + 1}
            else:
                update.withdraw(decision)

    async def _commit_part(self, batch: _Batch, updates: Sequence[SessionUpdate]) -> None:
        commits = [update.commit() for update in updates]
        unexpected: Exception | None = None
        # With the same versions again after an exception, so that what was stored counts as stored.
        for update, stored in zip(updates, await await_isolated(self._store.commit, commits), strict=True):
            try:
                if isinstance(stored, StoreError):
                    update.fail(stored)
                elif isinstance(stored, Exception):
                    unexpected = stored
                elif stored:
                    _accept(batch, update)
                else:
                    self._conflict(update)
            except Exception as exc:  # noqa: BLE001 - raised again, after the other sessions have their results
                unexpected = exc
        if unexpected is not None:
            raise unexpected

    def _drop_abandoned(self, batch: _Batch, updates: Sequence[SessionUpdate]) -> Sequence[SessionUpdate]:
        """Remove the events whose caller has left or whose deadline has passed; return what still holds."""
        now_s = asyncio.get_running_loop().time()
        # By the clock as well: a process that was stopped finds a reply of Redis before it ends what is too late.
        late = [one.index for update in updates for one in update.pending if one.queued.give_up_at <= now_s]
        abandoned = frozenset((*batch.callers.abandoned(), *late))
        if not abandoned:
            return updates
        holding = []
        for update in updates:
            self._metrics.abandoned_events.inc(sum(pending.index in abandoned for pending in update.pending))
            holds = update.drop(abandoned, DeadlineExceededError("The event was not stored in time; send it again."))
            if holds and not update.is_decided:
                holding.append(update)
        return holding

    def _conflict(self, update: SessionUpdate) -> None:
        self._metrics.conflicts.inc()
        update.conflicts += 1
        update.is_stopped = True
        if update.conflicts == self._commit_attempts:
            many = self._commit_attempts
            update.fail(ConflictError(f"Others committed to this session in each of {many} attempts; send it again."))


def max_events_per_session(dedupe_window: int) -> int:
    """Return how many events of one session a batch may have: a quarter of the window.

    A commit whose reply was lost is recognised by its answers in the record. They are still there when other commits
    have added up to three quarters of a window.
    """
    return max(1, dedupe_window // 4)


def _accept(batch: _Batch, update: SessionUpdate) -> None:
    """Make the proposed answers final: the record is stored, or there was nothing to store."""
    resolve = batch.callers.resolve
    for pending in update.pending:
        pending.result = proposed = pending.proposed
        if proposed is not None:
            resolve(pending.index, proposed)
    if (update.loaded is None or update.restarts) and update.is_changed:
        batch.sessions_started += 1
    batch.dispositions += [pending.disposition for pending in update.pending]
    update.is_stopped = update.is_decided = True


def _begins_visit(update: SessionUpdate, pending: PendingEvent) -> bool:
    """Return whether the event comes after its session's purchase, and is neither a repeated one nor a purchase."""
    record, queued = update.current, pending.queued
    return (
        record is not None
        and record.outcome is Outcome.PURCHASE
        and not queued.is_purchase
        and record.answers.find(queued.code) is None
    )


def _step(model: SessionScorer, inputs: Sequence[tuple[Event, bytes | None]]) -> list[tuple[float, bytes]]:
    events, states = zip(*inputs, strict=True)
    with tracing.model_span("step", model.fingerprint, len(events)):
        return list(zip(*model.advance(events, states), strict=True))
