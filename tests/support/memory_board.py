"""The board and the replicas' reports of a store in memory, for tests of their callers."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from app.store.board import Order, Position, Row, Selection, Slice, Spread, row_of
from app.store.keys import shard_of
from app.store.record_codec import Outcome, Record


class MemorySession(NamedTuple):
    """A live session."""

    session_id: str
    record: Record
    seen_ms: int
    history: Sequence[bytes]

    @property
    def is_open(self) -> bool:
        """Whether the session is on the board."""
        return self.record.outcome is Outcome.OPEN and self.record.probability is not None


class MemoryBoard:
    """Implements `app.store.board.BoardStore`.

    Args:
        sessions: returns the live sessions.
    """

    def __init__(self, sessions: Callable[[], Iterable[MemorySession]]) -> None:
        self._sessions = sessions

    async def read(
        self, selection: Selection, after: Mapping[int, Position | None], *, count: int, look_at: int
    ) -> dict[int, Slice]:
        shards: dict[int, list[MemorySession]] = defaultdict(list)
        for session in self._sessions():
            shards[shard_of(session.session_id)].append(session)
        most = min(count, look_at)
        return {shard: _slice(selection, shards[shard], position, most) for shard, position in after.items()}

    async def rows(self, session_ids: Sequence[str], *, recent: int, with_properties: bool = False) -> list[Row | None]:
        found = {session.session_id: session for session in self._sessions()}
        rows: list[Row | None] = []
        for session_id in session_ids:
            session = found.get(session_id)
            entries = session.history if session and with_properties else session and session.history[-max(1, recent) :]
            rows.append(session and row_of(session.record, entries or (), recent, with_properties=with_properties))
        return rows

    async def spread(self, edges: Sequence[float]) -> Spread:
        sessions = list(self._sessions())
        scores = [session.record.probability or 0.0 for session in sessions if session.is_open]
        bounds = [float("-inf"), *edges, float("inf")]
        return Spread(
            len(sessions), len(scores), [sum(low <= score < high for score in scores) for low, high in pairwise(bounds)]
        )


class MemoryReplicas:
    """Implements `app.store.replicas.ReplicaStore` for one process."""

    def __init__(self) -> None:
        self._reports: dict[str, bytes] = {}

    async def report(self, name: str, report: bytes) -> None:
        if report:
            self._reports[name] = report
        else:
            self._reports.pop(name, None)

    async def reports(self) -> dict[str, bytes]:
        return dict(self._reports)


def _slice(selection: Selection, sessions: Sequence[MemorySession], after: Position | None, most: int) -> Slice:
    by_probability = selection.order is Order.PROBABILITY
    placed = sorted(
        (
            (Position(_score(session, by_probability=by_probability), session.session_id), session)
            for session in sessions
            if session.is_open or not by_probability
        ),
        reverse=True,
    )
    rest = [entry for entry in placed if (after is None or entry[0] < after) and _is_within(selection, entry[1])]
    entries = [position for position, _ in rest[:most]]
    return Slice(entries, entries[-1] if len(entries) < len(rest) else None, len(sessions))


def _score(session: MemorySession, *, by_probability: bool) -> float:
    return (session.record.probability or 0.0) if by_probability else float(session.seen_ms)


def _is_within(selection: Selection, session: MemorySession) -> bool:
    if session.seen_ms < selection.seen_since_ms or not session.session_id.startswith(selection.id_prefix):
        return False
    if not session.is_open:
        return True
    return selection.min_probability <= (session.record.probability or 0.0) <= selection.max_probability
