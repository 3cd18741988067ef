"""The interface of a store of sessions: what scorer, sweeper and routes call."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Final, Literal, Protocol, TypeVar

import msgspec

from app.errors import HistoryGoneError, StoreError
from app.store.board import BoardStore
from app.store.experiments import ExperimentStore
from app.store.history_codec import Entry, encode_decision, encode_event, properties_code
from app.store.ingest import IngestStore
from app.store.interventions import DecisionStore
from app.store.outcomes import OutcomeStore
from app.store.record_codec import Record
from app.store.replicas import ReplicaStore
from app.store.webhooks import WebhookStore
from model.events import Event
from model.interventions.decide import Decision

# Attempts of a commit while other replicas commit to the same session. With n replicas, each attempt succeeds for one
# of them, so eight are enough unless many senders share a session. After that the caller has to retry.
COMMIT_ATTEMPTS: Final = 8


class Commit(msgspec.Struct, frozen=True):
    """One session's new record and the events that led to it.

    Attributes:
        session_id: the session.
        expected: version of the record that was read; None when there was none.
        record: the new record. Its version is new, unless the record is only written again for confirmation. It counts
            the history's bytes, the appended entries included.
        appended: events to append to the history, oldest first; may be empty.
        probabilities: the answer to each of them; empty: not known.
        model: fingerprint of the model that answered, if it differs from the model of the history's last event.
        closed_by: what closes the session with this commit: a purchase event or a call of the shop. None: the session
            stays open, or was closed before.
        value: of the purchase that closes the session; None: not known, or no purchase.
        currency: of that value; None: not sent with it.
        previous: the record that was read, whose history the entries continue. None: there was none, or it is not
            known; then the first entry is encoded without reference to the history.
        restarts: whether the session begins anew: its history is replaced, which an earlier commit has closed.
        encoded: the entries, if the caller has encoded them already.
        decided: the decisions of rules at the appended events. They are appended to the history, and handed over to the
            readers of decisions in the same step.
    """

    session_id: str
    expected: bytes | None
    record: Record
    appended: Sequence[Event] = ()
    probabilities: Sequence[float] = ()
    model: str | None = None
    closed_by: Literal["event", "api"] | None = None
    value: float | None = None
    currency: str | None = None
    previous: Record | None = None
    restarts: bool = False
    encoded: list[bytes] | None = None
    decided: Sequence[Decision] = ()

    def entries(self) -> list[bytes]:
        """Return the encoded history entries of the appended events, each with its decisions behind it."""
        if self.encoded is not None:
            return self.encoded
        previous, after_ms, code = self.previous, None, 0
        if previous is not None and previous.events:
            after_ms, code = previous.last_event_ms, previous.properties_code
        # Entries are encoded relative to the entry before them; without `previous` that one is unknown.
        is_known = previous is not None or self.expected is None or self.restarts
        entries: list[bytes] = []
        last = len(self.appended) - 1
        for place, (event, probability) in enumerate(zip_longest(self.appended, self.probabilities)):
            # The record already has the code of the last event.
            own_code = self.record.properties_code if place == last else properties_code(event.properties)
            entries.append(
                encode_event(
                    event,
                    probability,
                    None if place else self.model,
                    after_ms=after_ms,
                    repeats_properties=own_code == code != 0,
                )
            )
            if self.decided:
                number = self.record.events - last + place
                entries += [encode_decision(decision) for decision in self.decided if decision.event == number]
            if is_known:
                after_ms, code = max(after_ms or 0, event.timestamp_ms), own_code
        return entries


_Events = TypeVar("_Events", list[Event], list[Entry])


def whole_history(record: Record, history: _Events) -> _Events:
    """Return the history if its length matches the record; raise `HistoryGoneError` otherwise."""
    if len(history) != record.events:
        raise HistoryGoneError(f"The record counts {record.events} events and the history has {len(history)}.")
    return history


class StateStore(Protocol):
    """Sessions under compare-and-set.

    A call with several sessions returns one result for each, in order. A session that cannot be read or written has an
    error as its result; the others are not affected. If the store is unavailable, every result is a
    `StoreUnavailableError`.
    """

    @property
    def confirms_by_writing(self) -> bool:
        """Whether a stored answer has to be written again before it is acknowledged; see `RedisStore`."""
        ...

    @property
    def board(self) -> BoardStore:
        """The live board, read only."""
        ...

    @property
    def outcomes(self) -> OutcomeStore:
        """The sessions that ended, and the counts of their outcomes."""
        ...

    @property
    def experiments(self) -> ExperimentStore:
        """Counts by rule and group, and the switches of rules."""
        ...

    @property
    def webhooks(self) -> WebhookStore:
        """The queues of webhooks."""
        ...

    @property
    def decisions(self) -> DecisionStore:
        """The decisions of rules, for their readers."""
        ...

    @property
    def ingest(self) -> IngestStore:
        """What events of vendors need."""
        ...

    @property
    def replicas(self) -> ReplicaStore:
        """The reports of all replicas."""
        ...

    async def load(self, session_ids: Sequence[str]) -> list[Record | StoreError | None]:
        """Return each session's record, None where there is none."""
        ...

    async def load_histories(self, session_ids: Sequence[str]) -> list[list[Event] | StoreError]:
        """Return each session's events in the order they were folded; empty where there is none.

        A session whose idle time has passed has no record, but keeps its events until it is closed.
        """
        ...

    async def load_sessions(self, session_ids: Sequence[str]) -> list[tuple[Record, list[Event]] | StoreError | None]:
        """Return each session's record and its whole history, read atomically; None where there is no record."""
        ...

    async def load_session(self, session_id: str) -> tuple[Record, list[Event]] | None:
        """Return a session's record and history, read atomically; None if there is no session.

        Raises:
            CorruptRecordError: they cannot be decoded, or the length of the history does not match the record.
            StoreUnavailableError: the store is unavailable.
        """
        ...

    async def load_entries(self, session_id: str) -> tuple[Record, list[Entry]] | None:
        """Return a session's record and its events with scores and decisions; else like `load_session`."""
        ...

    async def commit(self, commits: Sequence[Commit]) -> list[bool | StoreError]:
        """Store each record if its session still has the expected version; return for each whether it was stored.

        Atomic for each session: record, history and live board change together or not at all, and so does the stream of
        closed sessions if the session is closed. The session's lifetime starts again. A commit may be sent twice: the
        second changes nothing, and returns True as long as its record is the current one.
        """
        ...

    async def delete(self, session_id: str) -> None:
        """Erase all data of a session, if any; raise `StoreUnavailableError` if that may not have happened."""
        ...

    async def eviction_policy(self) -> str:
        """Return what the store does when its memory is full: Redis' `maxmemory-policy`."""
        ...

    async def ping(self) -> None:
        """Return if the store answers; raise `StoreUnavailableError` otherwise."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...
