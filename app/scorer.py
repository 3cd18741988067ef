"""One batch of events of distinct sessions: load, rebuild where needed, advance, commit, redo what conflicted.

Each event gets its own answer or error; what is wrong with one session touches no other.
"""

import asyncio
import time
from collections.abc import Sequence
from math import isfinite

from structlog.typing import FilteringBoundLogger

from app.errors import ConflictError, CorruptRecordError, PredictionError, SessionFullError
from app.intake import Submission
from app.isolation import each
from app.metrics import Metrics
from app.stepper import Stepper
from app.stores.base import StateStore
from app.stores.records import Outcome, Record
from app.task import Score, Task
from app.transitions import with_fold, without_fold
from model.events import Event


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
    ) -> None:
        self._store = store
        self._model = model
        self._metrics = metrics
        self._logger = logger
        self._max_session_events = max_session_events
        self._dedupe_window = dedupe_window
        self._commit_attempts = commit_attempts

    async def score(self, submissions: Sequence[Submission]) -> list[Score | Exception]:
        """Fold each submission into its session and answer it.

        Args:
            submissions: of distinct sessions.

        Returns:
            For each, in order, its score or the error that its caller is to get.
        """
        started = time.perf_counter()
        tasks = [Task(submission) for submission in submissions]
        undecided = tasks
        for _ in range(self._commit_attempts):
            for task in undecided:
                task.begin_anew()
            await self._attempt(undecided)
            undecided = [task for task in undecided if task.result is None]
            if not undecided:
                break
        for task in undecided:
            task.result = task.broken_history or ConflictError(
                f"Others committed to this session in each of {self._commit_attempts} attempts; send the event again."
            )
        self._metrics.batch_size.observe(len(tasks))
        self._metrics.batch_seconds.observe(time.perf_counter() - started)
        return [task.result for task in tasks if task.result is not None]

    async def _attempt(self, tasks: Sequence[Task]) -> None:
        """Take every task to its result, or mark it as conflicted."""
        await self._load(tasks)
        folding = [task for task in tasks if task.result is None and task.folds]
        await self._rebuild([task for task in folding if self._is_foreign(task.record)])
        self._advance([task for task in folding if task.result is None and not task.conflicted])
        await self._commit([task for task in tasks if task.result is None and not task.conflicted])

    async def _load(self, tasks: Sequence[Task]) -> None:
        """Read records; decide duplicates, full sessions and whether there is anything to fold."""
        records = await self._store.load([task.submission.session_id for task in tasks])
        for task, record in zip(tasks, records, strict=True):
            if isinstance(record, Exception):
                task.result = record
                if isinstance(record, CorruptRecordError):
                    self._logger.error("record_corrupt", session_id=task.submission.session_id, detail=record.detail)
                continue
            task.record = record
            submission = task.submission
            if record is not None and (known := record.answers.find(submission.code)) is not None:
                if submission.has_event_id:
                    self._metrics.duplicates.inc()
                task.result = Score(submission.session_id, known, duplicate=submission.has_event_id)
            elif submission.is_purchase or (record is not None and record.outcome is not Outcome.OPEN):
                task.following, task.answer = without_fold(
                    record, submission, model=self._model.fingerprint, window=self._dedupe_window
                )
            elif record is not None and record.events >= self._max_session_events:
                task.result = SessionFullError(
                    f"The session has {record.events} events, and one may have {self._max_session_events}."
                )
            else:
                task.folds = True
                task.state = record.state if record is not None and record.events else None

    def _is_foreign(self, record: Record | None) -> bool:
        """Whether the record's state is not of the current model, or not stored as the current setting says."""
        return (
            record is not None
            and record.events > 0
            and (record.model != self._model.fingerprint or len(record.state) != self._model.state_size)
        )

    async def _rebuild(self, tasks: Sequence[Task]) -> None:
        """Replace each state by the fold of the session's history through the current model."""
        if not tasks:
            return
        histories = await self._store.load_histories([task.submission.session_id for task in tasks])
        whole: list[tuple[Task, list[Event]]] = []
        for task, history in zip(tasks, histories, strict=True):
            if isinstance(history, Exception):
                task.result = history
            elif task.record is not None and len(history) != task.record.events:
                # Somebody committed, or the session expired, between the two reads; or else the server has thrown
                # the history away, which shows when it is so in every attempt.
                self._conflict(task)
                task.broken_history = CorruptRecordError(
                    f"The record counts {task.record.events} events and the history has {len(history)}, so the state "
                    "cannot be made anew for the current model."
                )
            else:
                whole.append((task, history))
        started = time.perf_counter()
        # In a thread: long histories would hold up every other request.
        refolded = await asyncio.to_thread(each, self._model.refold, [history for _, history in whole], self._logger)
        self._metrics.rebuild_seconds.observe(time.perf_counter() - started)
        for (task, _), folded in zip(whole, refolded, strict=True):
            if isinstance(folded, Exception):
                task.result = folded
            else:
                self._metrics.rebuilds.inc()
                task.state = folded[1]

    def _advance(self, tasks: Sequence[Task]) -> None:
        """Step the model once for all tasks."""
        if not tasks:
            return
        started = time.perf_counter()
        steps = each(self._step, [(task.submission.event, task.state) for task in tasks], self._logger)
        self._metrics.step_seconds.observe(time.perf_counter() - started)
        for task, step in zip(tasks, steps, strict=True):
            if isinstance(step, Exception):
                task.result = step
            elif not isfinite(step[0]):
                self._logger.error("probability_not_finite", session_id=task.submission.session_id)
                task.result = PredictionError("The model's answer is not a number.")
            else:
                probability, state = step
                task.following, task.answer = with_fold(
                    task.record,
                    task.submission,
                    model=self._model.fingerprint,
                    probability=probability,
                    state=state,
                    window=self._dedupe_window,
                )

    def _step(self, inputs: Sequence[tuple[Event, bytes | None]]) -> list[tuple[float, bytes]]:
        probabilities, states = self._model.advance([event for event, _ in inputs], [state for _, state in inputs])
        return list(zip(probabilities, states, strict=True))

    async def _commit(self, tasks: Sequence[Task]) -> None:
        """Store what follows; what is stored is decided, what is not is conflicted."""
        if not tasks:
            return
        committed = await self._store.commit([task.commit() for task in tasks])
        for task, stored in zip(tasks, committed, strict=True):
            if isinstance(stored, Exception):
                task.result = stored
            elif not stored:
                self._conflict(task)
            elif task.answer is not None:
                self._count(task)
                task.result = Score(task.submission.session_id, task.answer, warnings=task.warnings)

    def _conflict(self, task: Task) -> None:
        self._metrics.conflicts.inc()
        task.conflicted = True

    def _count(self, task: Task) -> None:
        """Count a committed event."""
        if task.record is None:
            self._metrics.sessions_started.inc()
        if task.folds:
            self._metrics.events_folded.inc()
            if task.is_late:
                self._metrics.late_events.inc()
        elif task.record is not None and task.record.outcome is not Outcome.OPEN:
            self._metrics.closed_session_events.inc()
        else:
            self._metrics.purchases.inc()
