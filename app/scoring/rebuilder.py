"""Rebuilds states of another model by folding the sessions' histories through the current model."""

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
    """Number of events that one batch may still fold again.

    Without a limit, the first batches after a release would delay all other events, because most of their records are
    of the previous model. Rebuilds beyond the budget wait for a later batch. A batch's first rebuild is always allowed,
    so that every session gets rebuilt whatever its length.
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
    """Rebuilds the states of session updates.

    Args:
        store: the histories.
        metrics: counts rebuilds.
        logger: gets failures.
        last_attempt: number of the attempt in which a history that does not match its record is an error.
    """

    def __init__(self, store: StateStore, *, metrics: Metrics, logger: FilteringBoundLogger, last_attempt: int) -> None:
        self._store = store
        self._metrics = metrics
        self._logger = logger
        self._last_attempt = last_attempt

    async def rebuild(
        self, model: SessionScorer, updates: Sequence[SessionUpdate], budget: RebuildBudget
    ) -> list[SessionUpdate]:
        """Replace each update's state by the fold of the session's history through the model.

        Returns:
            Updates whose history does not match the record, because another replica committed between the two reads;
            they are to be tried again.
        """
        within = []
        for update in updates:
            if budget.take(_record(update).events):
                within.append(update)
            else:
                self._metrics.rebuilds_postponed.inc()
                update.fail(REQUEUE)
        if not within:
            return []
        histories = await self._store.load_histories([update.session_id for update in within])
        changed: list[SessionUpdate] = []
        complete: list[tuple[SessionUpdate, list[Event]]] = []
        for update, history in zip(within, histories, strict=True):
            if isinstance(history, Exception):
                update.rebuild_error = history
            elif len(history) == _record(update).events:
                complete.append((update, history))
            elif update.conflicts + 1 < self._last_attempt:
                # Another replica committed, or the session expired, between the two reads. If instead the server has
                # evicted the history, the lengths differ in every attempt.
                changed.append(update)
            else:
                update.rebuild_error = CorruptRecordError(
                    f"The record counts {_record(update).events} events and the history has {len(history)}, so the "
                    "state cannot be made anew for the current model."
                )
        await self._fold(model, complete)
        return changed

    async def _fold(self, model: SessionScorer, complete: Sequence[tuple[SessionUpdate, list[Event]]]) -> None:
        started = time.perf_counter()
        histories = [history for _, history in complete]
        # In a thread, because long histories would block every other request.
        folds = await asyncio.to_thread(map_isolated, lambda some: _refold(model, some), histories, self._logger)
        self._metrics.rebuild_seconds.observe(time.perf_counter() - started)
        for (update, history), folded in zip(complete, folds, strict=True):
            if isinstance(folded, Exception):
                update.rebuild_error = folded
                continue
            self._metrics.rebuilds.inc()
            self._metrics.rebuilt_events.inc(len(history))
            probability, state = folded
            update.current = replace(_record(update), model=model.fingerprint, probability=probability, state=state)


def _refold(model: SessionScorer, histories: Sequence[Sequence[Event]]) -> list[tuple[float, bytes]]:
    with tracing.model_span("refold", model.fingerprint, len(histories)):
        return model.refold(histories)


def _record(update: SessionUpdate) -> Record:
    if update.current is None:
        raise RuntimeError("a session without a record was to be rebuilt")
    return update.current
