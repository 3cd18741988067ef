"""States of another model, made anew by folding histories through the current one."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from app.errors import CorruptRecordError
from app.monitoring import tracing
from app.monitoring.metrics import Metrics
from app.scoring.batcher import REQUEUE
from app.scoring.isolation import map_isolated
from app.scoring.session_update import SessionUpdate
from app.store.interface import StateStore
from app.store.record_codec import Record
from model.events import Event
from model.interface import SessionScorer

# Most events of histories that one batch folds again: other sessions wait for the batch.
MAX_REBUILD_EVENTS: Final = 8192


@dataclass(slots=True)
class RebuildBudget:
    """How much one batch may still fold again.

    A batch that meets many records of another model, as the first ones after a release do, would hold up all others;
    what goes beyond the budget is answered in a later batch. The first rebuild of a batch is always allowed, so that
    whatever the sizes some session gets its turn.
    """

    events_left: int
    is_untouched: bool = True

    def take(self, events: int) -> bool:
        """Return whether a history of so many events may be folded in this batch, and count it if so."""
        if events > self.events_left and not self.is_untouched:
            return False
        self.is_untouched = False
        self.events_left -= events
        return True


class Rebuilder:
    """Rebuilds the states of runs.

    Args:
        store: where histories are.
        metrics: where it is counted.
        logger: where failures are told.
        last_attempt: number of the attempt in which a history that does not fit its record is an error.
    """

    def __init__(self, store: StateStore, *, metrics: Metrics, logger: FilteringBoundLogger, last_attempt: int) -> None:
        self._store = store
        self._metrics = metrics
        self._logger = logger
        self._last_attempt = last_attempt

    async def rebuild(
        self, model: SessionScorer, runs: Sequence[SessionUpdate], budget: RebuildBudget
    ) -> list[SessionUpdate]:
        """Replace each run's state by the fold of the session's history through the model.

        Returns:
            Runs whose history is not the record's: somebody committed between the two reads, to be tried again.
        """
        within = []
        for run in runs:
            if budget.take(_record(run).events):
                within.append(run)
            else:
                self._metrics.rebuilds_postponed.inc()
                run.fail(REQUEUE)
        if not within:
            return []
        histories = await self._store.load_histories([run.session_id for run in within])
        changed: list[SessionUpdate] = []
        whole: list[tuple[SessionUpdate, list[Event]]] = []
        for run, history in zip(within, histories, strict=True):
            if isinstance(history, Exception):
                run.unfoldable = history
            elif len(history) == _record(run).events:
                whole.append((run, history))
            elif run.conflicts + 1 < self._last_attempt:
                # Somebody committed, or the session expired, between the two reads; or else the server has thrown
                # the history away, which shows when it is so in every attempt.
                changed.append(run)
            else:
                run.unfoldable = CorruptRecordError(
                    f"The record counts {_record(run).events} events and the history has {len(history)}, so the state "
                    "cannot be made anew for the current model."
                )
        await self._fold(model, whole)
        return changed

    async def _fold(self, model: SessionScorer, whole: Sequence[tuple[SessionUpdate, list[Event]]]) -> None:
        started = time.perf_counter()
        # In a thread: long histories would hold up every other request.
        histories = [history for _, history in whole]
        folds = await asyncio.to_thread(map_isolated, lambda some: _refold(model, some), histories, self._logger)
        self._metrics.rebuild_seconds.observe(time.perf_counter() - started)
        for (run, history), folded in zip(whole, folds, strict=True):
            if isinstance(folded, Exception):
                run.unfoldable = folded
                continue
            self._metrics.rebuilds.inc()
            self._metrics.rebuilt_events.inc(len(history))
            probability, state = folded
            run.current = replace(_record(run), model=model.fingerprint, probability=probability, state=state)


def _refold(model: SessionScorer, histories: Sequence[Sequence[Event]]) -> Sequence[tuple[float, bytes]]:
    with tracing.model_span("refold", model.fingerprint, len(histories)):
        return model.refold(histories)


def _record(run: SessionUpdate) -> Record:
    if run.current is None:
        raise RuntimeError("a session without a record was to be rebuilt")
    return run.current
