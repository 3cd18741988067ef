"""One batch: load, rebuild where needed, advance, commit, redo what conflicted.

Events of one session are folded one after another, each with its own answer or error, and committed together; the
model steps different sessions at once. What is wrong with one session touches no other, and what is wrong with one
event touches no other event, but for the version check: a session's events of a batch are stored all or none, and
those that are not stored are tried again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite

from structlog.typing import FilteringBoundLogger

from app.batcher import Later
from app.errors import ConflictError, CorruptRecordError, DeadlineExceededError, PredictionError, SessionFullError
from app.intake import Submission
from app.isolation import each
from app.metrics import Metrics
from app.rebuilder import RebuildBudget, Rebuilder, is_foreign
from app.stepper import Stepper
from app.stores.base import StateStore
from app.stores.records import Outcome
from app.task import Effect, Run, Score, Task, runs_of
from app.transitions import with_fold, without_fold
from model.events import Event


@dataclass(slots=True)
class _Tally:
    """What a batch has stored, for the metrics, which are told once a batch instead of once an event."""

    sessions_started: int = 0
    folded: int = 0
    late: int = 0
    purchases: int = 0
    after_purchase: int = 0
    duplicates: int = 0

    def add_to(self, metrics: Metrics) -> None:
        for counter, number in (
            (metrics.sessions_started, self.sessions_started),
            (metrics.events_folded, self.folded),
            (metrics.late_events, self.late),
            (metrics.purchases, self.purchases),
            (metrics.closed_session_events, self.after_purchase),
            (metrics.duplicates, self.duplicates),
        ):
            if number:
                counter.inc(number)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What stays the same in all attempts of a batch; one model, whatever is loaded meanwhile."""

    model: Stepper
    is_wanted: Callable[[int], bool]
    budget: RebuildBudget
    tally: _Tally = field(default_factory=_Tally)


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
        model: Stepper,
        *,
        metrics: Metrics,
        logger: FilteringBoundLogger,
        max_session_events: int,
        dedupe_window: int,
        commit_attempts: int,
        max_rebuild_events: int,
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
        self, submissions: Sequence[Submission], is_wanted: Callable[[int], bool] = lambda _place: True
    ) -> list[Score | Exception | Later]:
        """Fold each submission into its session and answer it.

        Args:
            submissions: those of one session in the order in which they are to be folded, at most `longest_run` of
                them.
            is_wanted: whether somebody still waits for the answer to the submission of a place. What nobody waits
                for just before the commit is not folded; a caller who goes during the commit is too late.

        Returns:
            For each, in order, its score, the error that its caller is to get, or `LATER`.
        """
        started = time.perf_counter()
        tasks = [Task(submission, place) for place, submission in enumerate(submissions)]
        undecided = runs_of(tasks)
        self._metrics.batch_size.observe(len(undecided))
        batch = _Batch(self._model, is_wanted, RebuildBudget(self._max_rebuild_events))
        # Ends: each attempt decides a run, counts a conflict, of which there may be so many, or drops a task.
        try:
            while undecided:
                await self._attempt(batch, undecided)
                undecided = [run for run in undecided if not run.is_decided]
        finally:
            batch.tally.add_to(self._metrics)
        self._metrics.batch_seconds.observe(time.perf_counter() - started)
        return [task.result for task in tasks if task.result is not None]

    async def _attempt(self, batch: _Batch, runs: Sequence[Run]) -> None:
        """Take every run to its results, or to its next attempt."""
        await self._load(runs)
        for turn in range(max(len(run.tasks) for run in runs)):
            pairs = [(run, run.tasks[turn]) for run in runs if turn < len(run.tasks) and not run.is_stopped]
            folding = [(run, task) for run, task in pairs if self._is_to_be_folded(batch, run, task)]
            foreign = [run for run, _ in folding if run.unfoldable is None and is_foreign(run.current, batch.model)]
            for changed in await self._rebuilder.rebuild(batch.model, foreign, batch.budget):
                self._conflict(changed)
            self._advance(batch, [(run, task) for run, task in folding if not run.is_stopped])
        await self._commit(batch, [run for run in runs if not run.is_stopped])

    async def _load(self, runs: Sequence[Run]) -> None:
        records = await self._store.load([run.session_id for run in runs])
        for run, record in zip(runs, records, strict=True):
            if isinstance(record, Exception):
                run.fail(record)
                if isinstance(record, CorruptRecordError):
                    self._logger.error("record_corrupt", session_id=run.session_id, detail=record.detail)
            else:
                run.begin(record)

    def _is_to_be_folded(self, batch: _Batch, run: Run, task: Task) -> bool:
        """Return whether the task is one for the model; propose its answer if not."""
        record, submission = run.current, task.submission
        if record is not None and (known := record.answers.find(submission.code)) is not None:
            task.proposed = Score(
                submission.session_id, known, duplicate=submission.has_event_id, warnings=submission.warnings
            )
        elif submission.is_purchase or (record is not None and record.outcome is not Outcome.OPEN):
            is_first = record is None or record.outcome is Outcome.OPEN
            run.current, answer = without_fold(
                record, submission, model=batch.model.fingerprint, window=self._dedupe_window
            )
            task.propose(answer, Effect.PURCHASE if is_first else Effect.AFTER_PURCHASE)
        elif record is not None and record.events >= self._max_session_events:
            task.proposed = SessionFullError(
                f"The session has {record.events} events, and one may have {self._max_session_events}."
            )
        else:
            return True
        return False

    def _advance(self, batch: _Batch, pairs: Sequence[tuple[Run, Task]]) -> None:
        """Step the model once for all pairs; they are of different runs."""
        inputs: list[tuple[Event, bytes | None]] = []
        stepped: list[tuple[Run, Task]] = []
        for run, task in pairs:
            if run.unfoldable is not None:
                task.proposed = run.unfoldable
                continue
            stepped.append((run, task))
            inputs.append((task.submission.event, run.current.state if run.current and run.current.events else None))
        if not stepped:
            return
        started = time.perf_counter()
        steps = each(lambda some: _step(batch.model, some), inputs, self._logger)
        self._metrics.step_seconds.observe(time.perf_counter() - started)
        for (run, task), step in zip(stepped, steps, strict=True):
            if isinstance(step, Exception):
                task.proposed = step
            elif not isfinite(step[0]):
                self._logger.error("probability_not_finite", session_id=run.session_id)
                task.proposed = PredictionError("The model's answer is not a number.")
            else:
                self._fold(batch, run, task, *step)

    def _fold(self, batch: _Batch, run: Run, task: Task, probability: float, state: bytes) -> None:
        event = task.submission.event
        is_late = run.current is not None and event.timestamp_ms < run.current.last_event_ms
        run.current, answer = with_fold(
            run.current,
            task.submission,
            model=batch.model.fingerprint,
            probability=probability,
            state=state,
            window=self._dedupe_window,
        )
        run.appended.append(event)
        run.probabilities.append(probability)
        task.propose(answer, Effect.FOLD, is_late=is_late)

    async def _commit(self, batch: _Batch, runs: Sequence[Run]) -> None:
        """Store what follows; what is stored is decided, what is not is tried again."""
        changed = []
        for run in runs:
            if not self._stands_without_the_gone(batch, run):
                continue
            if run.is_changed or (run.repeats_answers and self._store.confirms_by_writing):
                changed.append(run)
            else:
                self._accept(batch, run)
        if not changed:
            return
        for run, stored in zip(changed, await self._store.commit([run.commit() for run in changed]), strict=True):
            if isinstance(stored, Exception):
                run.fail(stored)
            elif stored:
                self._accept(batch, run)
            else:
                self._conflict(run)

    def _stands_without_the_gone(self, batch: _Batch, run: Run) -> bool:
        """Take out the tasks whose callers have gone; return whether the run is the same without them."""
        gone = [task.place for task in run.tasks if not batch.is_wanted(task.place)]
        if not gone:
            return True
        self._metrics.abandoned_events.inc(len(gone))
        return run.drop(gone, DeadlineExceededError("The caller had gone; the event was not folded.")) or not run.tasks

    def _conflict(self, run: Run) -> None:
        self._metrics.conflicts.inc()
        run.conflicts += 1
        run.is_stopped = True
        if run.conflicts == self._commit_attempts:
            many = self._commit_attempts
            run.fail(ConflictError(f"Others committed to this session in each of {many} attempts; send it again."))

    def _accept(self, batch: _Batch, run: Run) -> None:
        """Give each task what was proposed, and count what was stored."""
        run.accept()
        tally = batch.tally
        if run.read is None and run.is_changed:
            tally.sessions_started += 1
        for task in run.tasks:
            if task.effect is Effect.FOLD:
                tally.folded += 1
                tally.late += task.is_late
            elif task.effect is Effect.PURCHASE:
                tally.purchases += 1
            elif task.effect is Effect.AFTER_PURCHASE:
                tally.after_purchase += 1
            elif isinstance(task.result, Score) and task.result.duplicate:
                tally.duplicates += 1


def longest_run(dedupe_window: int) -> int:
    """Return how many events of one session a batch may have.

    A commit whose reply was lost is recognised by the answers that it left in the record. A quarter of the window, so
    that it still is when others have committed up to three quarters of one on top of it.
    """
    return max(1, dedupe_window // 4)


def _step(model: Stepper, inputs: Sequence[tuple[Event, bytes | None]]) -> list[tuple[float, bytes]]:
    probabilities, states = model.advance([event for event, _ in inputs], [state for _, state in inputs])
    return list(zip(probabilities, states, strict=True))
