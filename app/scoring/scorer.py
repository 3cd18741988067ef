"""One batch: load, rebuild where needed, advance, commit, redo what conflicted.

Events of one session are folded one after another, each with its own answer or error, and committed together; the
model steps different sessions at once. What is wrong with one session touches no other, and what is wrong with one
event touches no other event, but for the version check: a session's events of a batch are stored all or none, and
those that are not stored are tried again.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Final

from structlog.typing import FilteringBoundLogger

from app.errors import ConflictError, CorruptRecordError, DeadlineExceededError, PredictionError, SessionFullError
from app.monitoring import tracing
from app.monitoring.metrics import Metrics
from app.scoring.batcher import Callers, Requeue
from app.scoring.events import QueuedEvent
from app.scoring.isolation import map_isolated
from app.scoring.rebuilder import MAX_REBUILD_EVENTS, RebuildBudget, Rebuilder
from app.scoring.session_update import Disposition, PendingEvent, Score, SessionUpdate, updates_by_session
from app.scoring.transitions import random_versions, with_fold, without_fold
from app.store.interface import COMMIT_ATTEMPTS, StateStore
from app.store.record_codec import Outcome
from model.events import Event
from model.interface import SessionScorer

# By name: a member looked up in its class takes 57 ns, a global 6, and every event needs some.
_FOLD: Final = Disposition.FOLD
_LATE_FOLD: Final = Disposition.LATE_FOLD
_OPEN: Final = Outcome.OPEN
# Sessions from which on a commit goes in two halves: at 64 connections that brings 5 to 14 % more events a second, for
# 6 % of the processor's time at most; thirds and quarters bring less (docs/performance.md).
_HALVED_FROM: Final = 32


@dataclass(slots=True)
class _Batch:
    """What stays the same in all attempts of a batch, and what it has stored so far.

    Attributes:
        model: one model, whatever is loaded meanwhile.
        fingerprint: the model's.
        reads: the model's.
        callers: who waits for them.
        budget: how much may still be rebuilt.
        versions: a new one for each record.
        effects: what the submissions that were answered did.
        sessions_started: sessions that were stored for the first time.
    """

    model: SessionScorer
    fingerprint: str
    reads: Callable[[bytes], bool]
    callers: Callers[Score]
    budget: RebuildBudget
    versions: Iterator[bytes]
    effects: list[Disposition] = field(default_factory=list)
    sessions_started: int = 0

    def add_to(self, metrics: Metrics) -> None:
        """Count what was stored: once a batch, as counting takes longer than adding."""
        count = self.effects.count
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


class _Nobody:
    """Callers who are not there, and so never go away."""

    def abandoned(self) -> Collection[int]:
        return ()

    def resolve(self, place: int, result: Score | Exception) -> None:
        pass


_NOBODY: Final = _Nobody()


class Scorer:
    """Scores batches.

    Args:
        store: where sessions are.
        model: what steps them.
        metrics: where it is counted.
        logger: where failures are told.
        max_session_events: most events of one session.
        dedupe_window: how many answers a session remembers.
        commit_attempts: how often a conflicting event is tried.
        max_rebuild_events: most events that a batch folds again for the current model, unless one session has more.
    """

    def __init__(
        self,
        store: StateStore,
        model: SessionScorer,
        *,
        metrics: Metrics,
        logger: FilteringBoundLogger,
        max_session_events: int,
        dedupe_window: int,
        commit_attempts: int = COMMIT_ATTEMPTS,
        max_rebuild_events: int = MAX_REBUILD_EVENTS,
    ) -> None:
        self._store = store
        self._model = model
        self._metrics = metrics
        self._logger = logger
        self._max_session_events = max_session_events
        self._dedupe_window = dedupe_window
        self._commit_attempts = commit_attempts
        self._max_rebuild_events = max_rebuild_events
        self._rebuilder = Rebuilder(store, metrics=metrics, logger=logger, last_attempt=commit_attempts)

    async def score(
        self, submissions: Sequence[QueuedEvent], callers: Callers[Score] | None = None
    ) -> list[Score | Exception | Requeue]:
        """Fold each submission into its session and answer it.

        Args:
            submissions: those of one session in the order in which they are to be folded, at most
            `max_events_per_session` of     them.
            callers: who waits for them. What nobody waits for just before the commit is not folded; a caller who goes
                during the commit is too late. They are told as soon as their events are stored. None: nobody waits.

        Returns:
            For each, in order, its score, the error that its caller is to get, or `REQUEUE`.
        """
        started = time.perf_counter()
        tasks = [PendingEvent(submission, place) for place, submission in enumerate(submissions)]
        undecided = updates_by_session(tasks)
        self._metrics.batch_size.observe(len(undecided))
        model = self._model
        budget, versions = RebuildBudget(self._max_rebuild_events), random_versions(len(submissions))
        batch = _Batch(model, model.fingerprint, model.reads, callers or _NOBODY, budget, versions)
        # Ends: each attempt decides a run, counts a conflict, of which there may be so many, or drops a task.
        try:
            with tracing.batch_span(submissions):
                while undecided:
                    await self._attempt(batch, undecided)
                    undecided = [run for run in undecided if not run.is_decided]
                    for run in undecided:
                        run.begin_again()
        finally:
            batch.add_to(self._metrics)
        self._metrics.batch_seconds.observe(time.perf_counter() - started)
        return [task.result for task in tasks if task.result is not None]

    async def _attempt(self, batch: _Batch, runs: Sequence[SessionUpdate]) -> None:
        """Take every run to its results, or to its next attempt."""
        await self._load(runs)
        for turn in range(max([len(run.tasks) for run in runs])):
            folding: list[tuple[SessionUpdate, PendingEvent]] = []
            foreign: list[SessionUpdate] = []
            for run in runs:
                if run.is_stopped or turn >= len(run.tasks) or not self._is_to_be_folded(batch, run, run.tasks[turn]):
                    continue
                folding.append((run, run.tasks[turn]))
                record = run.current
                if (
                    record is not None
                    and record.events
                    and (record.model != batch.fingerprint or not batch.reads(record.state))
                    and run.unfoldable is None
                ):
                    foreign.append(run)
            if foreign:
                for changed in await self._rebuilder.rebuild(batch.model, foreign, batch.budget):
                    self._conflict(changed)
                folding = [pair for pair in folding if not pair[0].is_stopped]
            self._advance(batch, folding)
        await self._commit(batch, [run for run in runs if not run.is_stopped])

    async def _load(self, runs: Sequence[SessionUpdate]) -> None:
        records = await self._store.load([run.session_id for run in runs])
        for run, record in zip(runs, records, strict=True):
            if isinstance(record, Exception):
                run.fail(record)
                if isinstance(record, CorruptRecordError):
                    self._logger.error("record_corrupt", session_id=run.session_id, detail=record.detail)
            else:
                run.read = run.current = record

    def _is_to_be_folded(self, batch: _Batch, run: SessionUpdate, task: PendingEvent) -> bool:
        """Return whether the task is one for the model; propose its answer if not."""
        record, submission = run.current, task.submission
        is_open = record is None or record.outcome is _OPEN
        if record is not None and (known := record.answers.find(submission.code)) is not None:
            is_duplicate = submission.has_event_id
            task.effect = Disposition.DUPLICATE if is_duplicate else Disposition.NONE
            task.proposed = Score(submission.session_id, known, duplicate=is_duplicate, warnings=submission.warnings)
        elif not is_open or submission.is_purchase:
            following, answer = without_fold(
                record,
                submission,
                version=next(batch.versions),
                model=batch.fingerprint,
                window=self._dedupe_window,
            )
            run.change(task, Disposition.PURCHASE if is_open else Disposition.AFTER_PURCHASE, following, answer)
        elif record is not None and record.events >= self._max_session_events:
            task.proposed = SessionFullError(
                f"The session has {record.events} events, and one may have {self._max_session_events}."
            )
        else:
            return True
        return False

    def _advance(self, batch: _Batch, pairs: Sequence[tuple[SessionUpdate, PendingEvent]]) -> None:
        """Step the model once for all pairs; they are of different runs."""
        inputs: list[tuple[Event, bytes | None]] = []
        stepped: list[tuple[SessionUpdate, PendingEvent]] = []
        for pair in pairs:
            run, task = pair
            if run.unfoldable is not None:
                task.proposed = run.unfoldable
                continue
            record = run.current
            stepped.append(pair)
            inputs.append((task.submission.event, record.state if record is not None and record.events else None))
        if not stepped:
            return
        started = time.perf_counter()
        steps = map_isolated(lambda some: _step(batch.model, some), inputs, self._logger)
        self._metrics.step_seconds.observe(time.perf_counter() - started)
        for (run, task), step in zip(stepped, steps, strict=True):
            if isinstance(step, Exception):
                task.proposed = step
            elif not isfinite(step[0]):
                self._logger.error("probability_not_finite", session_id=run.session_id)
                task.proposed = PredictionError("The model's answer is not a number.")
            else:
                self._fold(batch, run, task, *step)

    def _fold(self, batch: _Batch, run: SessionUpdate, task: PendingEvent, probability: float, state: bytes) -> None:
        record, submission = run.current, task.submission
        event = submission.event
        following, answer = with_fold(
            record,
            submission,
            version=next(batch.versions),
            model=batch.fingerprint,
            probability=probability,
            state=state,
            window=self._dedupe_window,
        )
        is_late = record is not None and event.timestamp_ms < record.last_event_ms
        run.change(task, _LATE_FOLD if is_late else _FOLD, following, answer)
        run.appended.append(event)
        run.probabilities.append(probability)

    async def _commit(self, batch: _Batch, runs: Sequence[SessionUpdate]) -> None:
        """Store what follows; what is stored is decided, what is not is tried again."""
        changed = []
        for run in self._drop_abandoned(batch, runs):
            if run.is_changed or (self._store.confirms_by_writing and run.repeats_answers):
                changed.append(run)
            else:
                _accept(batch, run)
        if not changed:
            return
        if len(changed) < _HALVED_FROM:
            await self._commit_part(batch, changed)
            return
        # The first half's callers are answered, and new requests read, while Redis has the second.
        middle = len(changed) // 2
        parts = [self._commit_part(batch, part) for part in (changed[:middle], changed[middle:])]
        # Whatever is raised in one, the other is seen to its end: its sessions must not be in two batches.
        for failure in await asyncio.gather(*parts, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _commit_part(self, batch: _Batch, runs: Sequence[SessionUpdate]) -> None:
        for run, stored in zip(runs, await self._store.commit([run.commit() for run in runs]), strict=True):
            if isinstance(stored, Exception):
                run.fail(stored)
            elif stored:
                _accept(batch, run)
            else:
                self._conflict(run)

    def _drop_abandoned(self, batch: _Batch, runs: Sequence[SessionUpdate]) -> Sequence[SessionUpdate]:
        """Take out the tasks whose callers have gone; return the runs of the others that are the same without them."""
        gone = frozenset(batch.callers.abandoned())
        if not gone:
            return runs
        standing = []
        for run in runs:
            places = [task.place for task in run.tasks if task.place in gone]
            self._metrics.abandoned_events.inc(len(places))
            stands = run.drop(places, DeadlineExceededError("The caller had gone; the event was not folded."))
            if stands and not run.is_decided:
                standing.append(run)
        return standing

    def _conflict(self, run: SessionUpdate) -> None:
        self._metrics.conflicts.inc()
        run.conflicts += 1
        run.is_stopped = True
        if run.conflicts == self._commit_attempts:
            many = self._commit_attempts
            run.fail(ConflictError(f"Others committed to this session in each of {many} attempts; send it again."))


def max_events_per_session(dedupe_window: int) -> int:
    """Return how many events of one session a batch may have.

    A commit whose reply was lost is recognised by the answers that it left in the record. A quarter of the window, so
    that it still is when others have committed up to three quarters of one on top of it.
    """
    return max(1, dedupe_window // 4)


def _accept(batch: _Batch, run: SessionUpdate) -> None:
    """Make what was proposed the result: it is stored, or there was nothing to store."""
    run.is_stopped = run.is_decided = True
    if run.read is None and run.is_changed:
        batch.sessions_started += 1
    resolve = batch.callers.resolve
    for task in run.tasks:
        task.result = proposed = task.proposed
        batch.effects.append(task.effect)
        if proposed is not None:
            resolve(task.place, proposed)


def _step(model: SessionScorer, inputs: Sequence[tuple[Event, bytes | None]]) -> list[tuple[float, bytes]]:
    events, states = zip(*inputs, strict=True)
    with tracing.model_span("step", model.fingerprint, len(events)):
        return list(zip(*model.advance(events, states), strict=True))
