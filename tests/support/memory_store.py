"""An implementation of `StateStore` in a dictionary, for tests of its callers; stores bytes, as Redis does."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from app.errors import CorruptRecordError, StoreError
from app.store.history_codec import Entry, decode_events, decode_history
from app.store.ingest import Reject, session_of
from app.store.interface import Commit, whole_history
from app.store.interventions import DecisionPage, IdleDecisions, IdlePage
from app.store.outcomes import ClosedCount, Counts, CountsOf, Due, Written
from app.store.record_codec import Record, decode_record, encode_record
from model.events import Event
from support.memory_board import MemoryBoard, MemoryReplicas, MemorySession
from support.memory_interventions import MemoryExperiments, NoWebhooks


@dataclass(slots=True)
class _Session:
    record: bytes
    history: list[bytes] = field(default_factory=list)
    expires_ms: int = 0


class NoOutcomes:
    """An `OutcomeStore` in which no session ever ends."""

    async def due(
        self, replica: str, *, lease_s: float, shards: Sequence[int] = (), one: bool = False
    ) -> dict[int, Due]:
        del replica, lease_s, shards, one
        return {}

    async def close_idle(self, idle: Mapping[int, Sequence[str]]) -> ClosedCount:
        del idle
        return ClosedCount()

    async def publish(self, sessions: Mapping[int, Sequence[Written]]) -> dict[int, list[bool]]:
        return {shard: [False] * len(some) for shard, some in sessions.items()}

    async def count(self, token: str, counts: Mapping[CountsOf, Counts], *, lifetime_s: int) -> None:
        pass

    async def counts(self, keys: Sequence[CountsOf]) -> list[Counts]:
        return [Counts()] * len(keys)


class MemoryDecisions:
    """A `DecisionStore` that gives every token up to the cap, without an end of the hour, and has nothing to read."""

    def __init__(self) -> None:
        self.taken: Counter[str] = Counter()

    async def read(self, after: Mapping[int, str], *, most: int = 1) -> dict[int, DecisionPage]:
        del most
        return {shard: DecisionPage((), place, is_more=False) for shard, place in after.items()}

    async def find_idle(
        self, places: Mapping[int, str], *, idle_ms: int, look_back_ms: int, band: tuple[float, float], most: int
    ) -> dict[int, IdlePage]:
        del idle_ms, look_back_ms, band, most
        return {shard: IdlePage((), place, is_more=False) for shard, place in places.items()}

    async def commit_idle(self, commits: Sequence[IdleDecisions]) -> list[bool]:
        return [False] * len(commits)

    async def take(self, wanted: Mapping[str, tuple[int, int]]) -> dict[str, int]:
        given = {rule: min(number, cap - self.taken[rule]) for rule, (number, cap) in wanted.items()}
        self.taken.update(given)
        return given


class MemoryIngest:
    """An `IngestStore` in which every visitor has one session."""

    def __init__(self) -> None:
        self.starts: dict[str, int] = {}
        self.rejected: list[Reject] = []

    async def assign(self, times: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
        return {
            one: [session_of(one, self.starts.setdefault(one, some[0])) for _ in some] for one, some in times.items()
        }

    async def add_rejects(self, rejects: Sequence[Reject]) -> None:
        self.rejected += rejects

    async def rejects(self, limit: int) -> list[Reject]:
        return self.rejected[-limit:][::-1]


class MemoryStore:
    """A store inside one process.

    Args:
        session_idle_s: idle time after which a session expires.
        now_ms: the clock.
    """

    def __init__(self, *, session_idle_s: int, now_ms: Callable[[], int]) -> None:
        self._session_idle_ms = session_idle_s * 1000
        self._now_ms = now_ms
        self.sessions: dict[str, _Session] = {}
        self.board = MemoryBoard(self._live_sessions)
        self.replicas = MemoryReplicas()
        self.outcomes = NoOutcomes()
        self.decisions = MemoryDecisions()
        self.experiments = MemoryExperiments()
        self.webhooks = NoWebhooks()
        self.ingest = MemoryIngest()

    @property
    def confirms_by_writing(self) -> bool:
        return False

    async def load(self, session_ids: Sequence[str]) -> list[Record | StoreError | None]:
        return [self._record(session_id) for session_id in session_ids]

    async def load_histories(self, session_ids: Sequence[str]) -> list[list[Event] | StoreError]:
        return [self._history(session_id) for session_id in session_ids]

    async def load_session(self, session_id: str) -> tuple[Record, list[Event]] | None:
        record, history = self._record(session_id), self._history(session_id)
        if isinstance(record, Exception):
            raise record
        if isinstance(history, Exception):
            raise history
        return None if record is None else (record, whole_history(record, history))

    async def load_sessions(self, session_ids: Sequence[str]) -> list[tuple[Record, list[Event]] | StoreError | None]:
        found: list[tuple[Record, list[Event]] | StoreError | None] = []
        for session_id in session_ids:
            try:
                found.append(await self.load_session(session_id))
            except StoreError as exc:
                found.append(exc)
        return found

    async def load_entries(self, session_id: str) -> tuple[Record, list[Entry]] | None:
        found, session = await self.load_session(session_id), self._live(session_id)
        return None if found is None or session is None else (found[0], decode_history(session.history))

    async def commit(self, commits: Sequence[Commit]) -> list[bool | StoreError]:
        return [self._committed(commit) for commit in commits]

    async def delete(self, session_id: str) -> None:
        self.sessions.pop(session_id, None)

    async def eviction_policy(self) -> str:
        return "noeviction"

    async def ping(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def _live(self, session_id: str) -> _Session | None:
        session = self.sessions.get(session_id)
        if session is not None and session.expires_ms <= self._now_ms():
            del self.sessions[session_id]
            return None
        return session

    def _live_sessions(self) -> Iterator[MemorySession]:
        for session_id in list(self.sessions):
            record, session = self._record(session_id), self._live(session_id)
            if isinstance(record, Record) and session is not None:
                seen_ms = session.expires_ms - self._session_idle_ms
                yield MemorySession(session_id, record, seen_ms, session.history)

    def _record(self, session_id: str) -> Record | StoreError | None:
        session = self._live(session_id)
        try:
            return None if session is None else decode_record(session.record)
        except CorruptRecordError as exc:
            return exc

    def _history(self, session_id: str) -> list[Event] | StoreError:
        session = self._live(session_id)
        try:
            return [] if session is None else decode_events(session.history)
        except CorruptRecordError as exc:
            return exc

    def _committed(self, commit: Commit) -> bool:
        session = self._live(commit.session_id)
        stored = None if session is None else session.record[1:9]
        if stored == commit.record.version:
            return True
        if stored != commit.expected:
            return False
        history = [] if session is None or commit.restarts else session.history
        history.extend(commit.entries())
        self.sessions[commit.session_id] = _Session(
            encode_record(commit.record), history, self._now_ms() + self._session_idle_ms
        )
        return True
