"""What the scorer asks of a store, whatever it is made of."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal, Protocol

import msgspec

from app.errors import CorruptRecordError, StoreError
from app.store.board import BoardStore
from app.store.history_codec import encode_event, properties_code
from app.store.outcomes import OutcomeStore
from app.store.record_codec import Record
from app.store.replicas import ReplicaStore
from model.events import Event


class Commit(msgspec.Struct, frozen=True):
    """One session's new record and the events that led to it.

    Attributes:
        session_id: the session.
        expected: version of the record that was read; None when there was none.
        record: what to store; its version is new, unless the record is only written again to be confirmed.
        appended: events to append to the history, oldest first; may be empty.
        probabilities: what each of them was answered; empty: not known.
        model: fingerprint of the model that answered, where it is not the one of the history's last event.
        closed_by: who closes the session with this commit: a purchase event, or the shop by a call; None: nobody, or
            it was closed before.
        previous: the record as it was read, so that its history can be continued; None when there was none, or it is
            not known: then the first of the entries stands alone.
    """

    session_id: str
    expected: bytes | None
    record: Record
    appended: Sequence[Event] = ()
    probabilities: Sequence[float] = ()
    model: str | None = None
    closed_by: Literal["event", "api"] | None = None
    previous: Record | None = None

    def entries(self) -> list[bytes]:
        """Return the bytes of what is to be appended to the history."""
        previous, after_ms, code = self.previous, None, 0
        if previous is not None and previous.events:
            after_ms, code = previous.last_event_ms, previous.properties_code
        # What is not known of a history cannot be continued, nor can what is put behind it.
        is_known = previous is not None or self.expected is None
        entries: list[bytes] = []
        last = len(self.appended) - 1
        for place, (event, probability) in enumerate(zip_longest(self.appended, self.probabilities)):
            # The record has the code of the last one.
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
            if is_known:
                after_ms, code = max(after_ms or 0, event.timestamp_ms), own_code
        return entries


def whole_history(record: Record, history: list[Event]) -> list[Event]:
    """Return the history if it is as long as the record says; raise `CorruptRecordError` if not."""
    if len(history) != record.events:
        raise CorruptRecordError(f"The record counts {record.events} events and the history has {len(history)}.")
    return history


class StateStore(Protocol):
    """Sessions under compare-and-set.

    A call about many sessions answers for each of them, in the order asked: a session that cannot be read or written
    is an error in its place, not an exception for all. A store that is gone altogether gives every one of them
    `StoreUnavailableError`.
    """

    @property
    def confirms_by_writing(self) -> bool:
        """Whether what was read may not be acknowledged before it was written again, see `RedisStore`."""
        ...

    @property
    def board(self) -> BoardStore:
        """The live board, read only."""
        ...

    @property
    def outcomes(self) -> OutcomeStore:
        """The sessions that ended, and what is counted of them."""
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

        One that idled out may have its events until it is closed, though its record is gone.
        """
        ...

    async def load_session(self, session_id: str) -> tuple[Record, list[Event]] | None:
        """Return a session's record and its history of the same moment; None where there is no session.

        Raises:
            CorruptRecordError: they cannot be read, or the history is not as long as the record says.
            StoreUnavailableError: the store is gone.
        """
        ...

    async def commit(self, commits: Sequence[Commit]) -> list[bool | StoreError]:
        """Store each record if its session is still as expected, and say for each whether it was.

        Atomic for a session: record, history and live board change together or not at all, and with them the stream
        of closed sessions, where a session is closed. The session's lifetime starts again. The same commit may be sent
        twice: the second changes nothing and answers True while its record stands.
        """
        ...

    async def delete(self, session_id: str) -> None:
        """Erase everything of a session, if there is anything; raise `StoreUnavailableError` if that is not sure."""
        ...

    async def ping(self) -> None:
        """Return when the store answers; raise `StoreUnavailableError` when it does not."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...
