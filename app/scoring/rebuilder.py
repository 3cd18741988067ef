"""Rebuilds states of another model by folding the sessions' histories through the current model, in the background.

One task of the service does all rebuilds, so that a batch never waits for one. In each turn it folds a part of several
histories in a thread: a long history does not delay a short one, and the event loop is free. A rebuilt state is stored
by compare-and-set even when the event's caller has left, so a retry finds it.
"""

import asyncio
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from typing import Final

from msgspec.structs import replace
from structlog.typing import FilteringBoundLogger

from app.errors import OverloadedError, PredictionError
from app.monitoring import tracing
from app.monitoring.metrics import Metrics
from app.scoring.isolation import await_isolated, map_isolated
from app.scoring.session_update import random_versions
from app.store.interface import Commit, StateStore
from app.store.record_codec import Record
from model.events import Event
from model.interface import SessionScorer

# Sessions in progress, and events of each in one turn. One session alone takes about 0.2 ms an event, 64 take 0.4 ms.
SESSIONS_AT_ONCE: Final = 64
EVENTS_AT_ONCE: Final = 128
# Most events of all histories in memory, unless one session has more.
_MOST_EVENTS: Final = 65_536
# Most sessions that wait; each has an event in the queue, or had one.
_MOST_WAITING: Final = 10_000
_MOST_FAILURES: Final = 1000


@dataclass(slots=True, eq=False)
class _Rebuild:
    """One session's rebuild.

    Attributes:
        session_id: the session.
        record: the record with the former state.
        model: the model that folds the history.
        done: resolved when the session may be tried again.
        started_s: when the rebuild was requested, by `time.perf_counter`.
        history: the events that are not folded yet, oldest first.
        state: the state after those that are.
        probability: the last one.
    """

    session_id: str
    record: Record
    model: SessionScorer
    done: "asyncio.Future[None]"
    started_s: float
    history: Sequence[Event] = ()
    state: bytes | None = None
    probability: float = 0.0


class Rebuilder:
    """Rebuilds the states of sessions, each once at a time.

    Args:
        store: records and histories.
        metrics: counts rebuilds.
        logger: gets failures.
    """

    def __init__(self, store: StateStore, *, metrics: Metrics, logger: FilteringBoundLogger) -> None:
        self._store = store
        self._metrics = metrics
        self._logger = logger
        self._by_session: dict[Hashable, _Rebuild] = {}
        self._waiting: deque[_Rebuild] = deque()
        self._active: list[_Rebuild] = []
        # Version of the record that could not be rebuilt, and the reason, by session.
        self._failures: OrderedDict[str, tuple[bytes, Exception]] = OrderedDict()
        self._versions = random_versions(SESSIONS_AT_ONCE)
        self._task: asyncio.Task[None] | None = None

    def pending(self, session_id: Hashable) -> "asyncio.Future[None] | None":
        """Return the future that ends with the session's rebuild, if one is in progress."""
        rebuild = self._by_session.get(session_id)
        return None if rebuild is None else rebuild.done

    def start(self, session_id: str, record: Record, model: SessionScorer) -> None:
        """Begin to rebuild a session's state, unless that is in progress; `pending` tells when it ends.

        Raises:
            OverloadedError: too many sessions wait for a rebuild.
        """
        if session_id in self._by_session:
            return
        if len(self._waiting) >= _MOST_WAITING:
            raise OverloadedError(f"{len(self._waiting)} sessions wait for another model's state; send again.")
        done = asyncio.get_running_loop().create_future()
        rebuild = _Rebuild(session_id, record, model, done, time.perf_counter())
        self._by_session[session_id] = rebuild
        self._waiting.append(rebuild)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="rebuilder")

    def failure(self, session_id: str, record: Record) -> Exception | None:
        """Return why the last rebuild of this record failed, once; None if it did not fail."""
        version, error = self._failures.pop(session_id, (b"", None))
        return error if version == record.version else None

    async def close(self) -> None:
        """Stop. Callers that still wait try again, and find that the service is shutting down."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for rebuild in [*self._by_session.values()]:
            self._end(rebuild)

    async def _run(self) -> None:
        while self._by_session:
            try:
                await self._admit()
                await self._fold()
                await self._commit([rebuild for rebuild in self._active if not rebuild.history])
            except Exception as exc:
                self._logger.exception("rebuild_failed")
                for rebuild in [*self._active]:
                    self._fail(rebuild, exc)

    async def _admit(self) -> None:
        """Load the next sessions, as far as there is room."""
        room = _MOST_EVENTS - sum(len(rebuild.history) for rebuild in self._active)
        admitted: list[_Rebuild] = []
        while self._waiting and len(self._active) + len(admitted) < SESSIONS_AT_ONCE:
            if self._waiting[0].record.events > room and (self._active or admitted):
                break
            rebuild = self._waiting.popleft()
            room -= rebuild.record.events
            admitted.append(rebuild)
        if not admitted:
            return
        # Here at once, so that a failure below ends them all.
        self._active += admitted
        found = await await_isolated(self._store.load_sessions, [rebuild.session_id for rebuild in admitted])
        for rebuild, session in zip(admitted, found, strict=True):
            if isinstance(session, Exception):
                self._fail(rebuild, session)
            elif session is None or session[0].outcome or not is_foreign(session[0], rebuild.model):
                self._end(rebuild)
            else:
                rebuild.record, rebuild.history = session

    async def _fold(self) -> None:
        """Fold the next part of every session's history."""
        by_model: dict[int, list[_Rebuild]] = defaultdict(list)
        for rebuild in self._active:
            by_model[id(rebuild.model)].append(rebuild)
        for group in by_model.values():
            model = group[0].model
            parts = [(rebuild.history[:EVENTS_AT_ONCE], rebuild.state) for rebuild in group]
            folds = await asyncio.to_thread(map_isolated, _folding(model), parts, self._logger)
            for rebuild, (part, _), folded in zip(group, parts, folds, strict=True):
                if isinstance(folded, Exception):
                    self._fail(rebuild, folded)
                elif not isfinite(folded[0][-1]):
                    self._fail(rebuild, PredictionError("The model's answer is not a number."))
                else:
                    rebuild.probability, rebuild.state = folded[0][-1], folded[1]
                    rebuild.history = rebuild.history[len(part) :]
                    self._metrics.rebuilt_events.inc(len(part))

    async def _commit(self, rebuilds: Sequence[_Rebuild]) -> None:
        """Store the states of sessions whose histories are folded, and let their events be tried again."""
        commits = [
            Commit(
                session_id=rebuild.session_id,
                expected=rebuild.record.version,
                record=replace(
                    rebuild.record,
                    version=version,
                    model=rebuild.model.fingerprint,
                    probability=rebuild.probability,
                    state=rebuild.state or b"",
                ),
                previous=rebuild.record,
            )
            for rebuild, version in zip(rebuilds, islice(self._versions, len(rebuilds)), strict=True)
        ]
        for rebuild, stored in zip(rebuilds, await await_isolated(self._store.commit, commits), strict=True):
            if isinstance(stored, Exception):
                self._fail(rebuild, stored)
                continue
            # Not stored: another event came first, so the session's new record is tried.
            if stored:
                self._metrics.rebuilds.inc()
                self._metrics.rebuild_seconds.observe(time.perf_counter() - rebuild.started_s)
            else:
                self._metrics.conflicts.inc()
            self._end(rebuild)

    def _fail(self, rebuild: _Rebuild, error: Exception) -> None:
        self._metrics.rebuild_failures.inc()
        self._failures[rebuild.session_id] = (rebuild.record.version, error)
        if len(self._failures) > _MOST_FAILURES:
            self._failures.popitem(last=False)
        self._end(rebuild)

    def _end(self, rebuild: _Rebuild) -> None:
        self._by_session.pop(rebuild.session_id, None)
        if rebuild in self._active:
            self._active.remove(rebuild)
        if not rebuild.done.done():
            rebuild.done.set_result(None)


def is_foreign(record: Record, model: SessionScorer) -> bool:
    """Return whether the record has a state that the model cannot continue."""
    return record.events > 0 and (record.model != model.fingerprint or not model.reads(record.state))


_Part = tuple[Sequence[Event], bytes | None]


def _folding(model: SessionScorer) -> Callable[[Sequence[_Part]], list[tuple[list[float], bytes]]]:
    def fold(parts: Sequence[_Part]) -> list[tuple[list[float], bytes]]:
        with tracing.model_span("fold", model.fingerprint, len(parts)):
            return model.fold([events for events, _ in parts], [state for _, state in parts])

    return fold
