"""What the events of one batch do to one session's record: pure functions and the structs that carry them.

msgspec structs, because every event creates some of them and a dataclass takes twice as long to create.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum, auto
from types import MappingProxyType
from typing import Final

import msgspec
from msgspec.structs import replace

from app.scoring.batcher import REQUEUE, Requeue
from app.scoring.events import QueuedEvent
from app.store.history_codec import properties_code
from app.store.interface import Commit
from app.store.record_codec import VERSION_BYTES, Answer, Answers, Outcome, Record
from model.events import Event
from model.interventions.decide import Decision, Decisions

# More than any valid event: 32 properties of 64 and 256 characters, and three more texts, of four bytes a character.
LARGEST_ENTRY_BYTES: Final = 2**16
AFTER_OUTCOME: Final = (
    "session_id: the session's outcome is known; the event counts for nothing, and there is no probability"
)
LATE: Final = "timestamp: earlier than an event before it; no time is counted between them"


class Score(msgspec.Struct, frozen=True):
    """The answer to one event, with the rules that fired at it."""

    session_id: str
    answer: Answer
    duplicate: bool = False
    warnings: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()


class Disposition(Enum):
    """What an event does to its session's record."""

    NONE = auto()
    """Nothing: the answer is an error, or the stored answer of an earlier attempt without an event id."""
    DUPLICATE = auto()
    """Nothing: the answer is the stored one of the same event id."""
    FOLD = auto()
    LATE_FOLD = auto()
    """A fold after an event with a later timestamp."""
    PURCHASE = auto()
    AFTER_PURCHASE = auto()


# Module constants: a member lookup through its class takes 57 ns, a global 6, and every event needs some.
_NO_TOKENS: Final[Mapping[str, int]] = MappingProxyType({})
_NONE: Final = Disposition.NONE
_FOLD: Final = Disposition.FOLD
_OPEN: Final = Outcome.OPEN
_WITHOUT_CHANGE: Final = frozenset({Disposition.NONE, Disposition.DUPLICATE})


_WARNINGS: Final = {Disposition.LATE_FOLD: LATE, Disposition.AFTER_PURCHASE: AFTER_OUTCOME}


class PendingEvent(msgspec.Struct):
    """One event of a batch that has no answer yet.

    Attributes:
        queued: the event.
        index: its index in the batch.
        disposition: what the event does in this attempt.
        proposed: the answer if this attempt's commit succeeds.
        result: the final answer; None while undecided.
    """

    queued: QueuedEvent
    index: int
    disposition: Disposition = _NONE
    proposed: Score | Exception | None = None
    result: Score | Exception | Requeue | None = None


class SessionUpdate(msgspec.Struct):
    """The events of one session in a batch, in order, and the session's record as they change it.

    Attributes:
        session_id: the session.
        pending: the events whose callers still wait.
        loaded: the record as loaded; None when there was none.
        current: the record after the events so far.
        is_changed: whether there is anything to store.
        restarts: whether the events begin a new visit, after the purchase of the record that was loaded.
        appended: events folded so far.
        probabilities: the answer to each of those.
        decided: the decisions of rules at those.
        tokens: how many tokens of each rule with a cap this session holds; those of a failed attempt are used again.
        value: of the purchase that closes the session; None: not known.
        currency: of that value; None: not sent with it.
        conflicts: number of attempts that failed because another replica committed to the session.
        rebuild_error: why the state cannot be rebuilt; no event can be folded in this attempt.
        is_stopped: whether the current attempt has ended for this session, decided or not.
        is_decided: whether each event has its result.
    """

    session_id: str
    pending: list[PendingEvent]
    loaded: Record | None = None
    current: Record | None = None
    is_changed: bool = False
    restarts: bool = False
    appended: list[Event] = []
    probabilities: list[float] = []
    decided: tuple[Decision, ...] = ()
    tokens: Mapping[str, int] = _NO_TOKENS
    value: float | None = None
    currency: str | None = None
    conflicts: int = 0
    rebuild_error: Exception | None = None
    is_stopped: bool = False
    is_decided: bool = False

    def reset(self) -> None:
        """Discard the results of an attempt; the next attempt loads the record again."""
        self.loaded = self.current = None
        self.is_changed = self.restarts = False
        self.value = self.currency = None
        self.appended, self.probabilities = [], []
        self.decided = ()
        self.rebuild_error = None
        self.is_stopped = False
        for pending in self.pending:
            pending.disposition, pending.proposed = _NONE, None

    def apply(
        self,
        pending: PendingEvent,
        disposition: Disposition,
        record: Record,
        answer: Answer,
        decisions: tuple[Decision, ...] = (),
    ) -> None:
        """Set the record after an event, and the event's disposition and proposed answer."""
        queued = pending.queued
        warnings = queued.warnings
        # Compared first, because an enumeration's hash is a call of Python.
        if disposition is not _FOLD and (more := _WARNINGS.get(disposition)) is not None:
            warnings = (*warnings, more)
        self.current = record
        self.is_changed = True
        pending.disposition = disposition
        pending.proposed = Score(queued.session_id, answer, warnings=warnings, decisions=decisions)

    def without_token(self, caps: Mapping[str, int]) -> list[Decision]:
        """Return the decisions of rules with a cap for which the session holds no token."""
        missing: list[Decision] = []
        held = dict(self.tokens)
        for decision in self.decided:
            if decision.rule not in caps:
                continue
            if held.get(decision.rule, 0) > 0:
                held[decision.rule] -= 1
            else:
                missing.append(decision)
        return missing

    def withdraw(self, decision: Decision) -> None:
        """Remove a decision that has no token of its rule's cap, as if the rule had not fired."""
        self.decided = tuple(one for one in self.decided if one is not decision)
        if self.current is not None:
            kept = Decisions(one for one in self.current.decisions if one is not decision)
            self.current = replace(self.current, decisions=kept)
        for pending in self.pending:
            score = pending.proposed
            if isinstance(score, Score) and decision in score.decisions:
                pending.proposed = replace(
                    score, decisions=tuple(one for one in score.decisions if one is not decision)
                )

    @property
    def has_duplicates(self) -> bool:
        """Whether an event gets the stored answer of its event id."""
        return any(pending.disposition is Disposition.DUPLICATE for pending in self.pending)

    def restart(self, queued: QueuedEvent, model: str) -> None:
        """Begin a new visit in place of the loaded one, which has bought; answers to its events are still known."""
        if self.loaded is None:
            raise RuntimeError("a session without a record was begun anew")
        self.current = replace(_blank(queued, model), answers=self.loaded.answers)
        self.restarts = True

    def postpone(self, turn: int) -> None:
        """Requeue the events from `turn` on: what is before them has to be stored first."""
        for pending in self.pending[turn:]:
            pending.result = REQUEUE
        del self.pending[turn:]

    def fail(self, error: Exception | Requeue) -> None:
        """Answer every event with `error`; nothing of the session is stored."""
        self.is_stopped = self.is_decided = True
        for pending in self.pending:
            pending.result = error

    def drop(self, indices: Collection[int], error: Exception) -> bool:
        """Answer the events of these indices with `error` and remove them; return whether the record still holds.

        The record no longer holds if one of the removed events had changed it: then the attempt starts again.
        """
        dropped = [pending for pending in self.pending if pending.index in indices]
        self.pending = [pending for pending in self.pending if pending.index not in indices]
        for pending in dropped:
            pending.result = error
        self.is_decided = not self.pending
        return all(pending.disposition in _WITHOUT_CHANGE for pending in dropped)

    def may_exceed(self, most_bytes: int) -> bool:
        """Return whether the history could be larger than that after one more event."""
        before = 0 if self.loaded is None else self.loaded.history_bytes
        return before + (len(self.appended) + 1) * LARGEST_ENTRY_BYTES > most_bytes

    def history_bytes_with(
        self, record: Record, event: Event, probability: float, decisions: tuple[Decision, ...] = ()
    ) -> int:
        """Return the size of the history after one more event and its decisions, which lead to `record`."""
        appended, probabilities = [*self.appended, event], [*self.probabilities, probability]
        return self._commit(record, appended, probabilities, self.decided + decisions).record.history_bytes

    def commit(self) -> Commit:
        """Return the commit of the current record; of the loaded one if the events changed nothing."""
        if self.current is None:
            raise RuntimeError("an update without a record was committed")
        if self.restarts and not self.is_changed:
            # The first event of the new visit failed, and the loaded record is only written again for confirmation.
            self.current, self.restarts = self.loaded, False
            return self.commit()
        return self._commit(self.current, self.appended, self.probabilities, self.decided)

    def _commit(
        self, current: Record, appended: list[Event], probabilities: list[float], decided: tuple[Decision, ...]
    ) -> Commit:
        # A new visit continues nothing of the record that it replaces.
        loaded = None if self.restarts else self.loaded
        is_closed = current.outcome is not _OPEN
        commit = Commit(
            session_id=self.session_id,
            expected=None if self.loaded is None else self.loaded.version,
            record=current,
            appended=appended,
            probabilities=probabilities,
            # A history entry without a model has the model of the entry before it. The record may have another one,
            # whose rebuild has no entry, so the last answer is compared.
            model=None if loaded is not None and loaded.answers.last_model == current.model else current.model,
            closed_by="event" if is_closed and (loaded is None or loaded.outcome is _OPEN) else None,
            value=self.value,
            currency=self.currency,
            previous=loaded,
            restarts=self.restarts,
            decided=decided,
        )
        if not appended:
            return commit
        entries = commit.entries()
        # Each fold has kept the size that was loaded.
        size = current.history_bytes + sum(map(len, entries))
        return replace(commit, record=replace(current, history_bytes=size), encoded=entries)


def updates_by_session(events: Iterable[PendingEvent]) -> list[SessionUpdate]:
    """Return one update a session, with its events in their order."""
    updates: dict[str, SessionUpdate] = {}
    for pending in events:
        session_id = pending.queued.session_id
        if (update := updates.get(session_id)) is None:
            updates[session_id] = SessionUpdate(session_id, [pending])
        else:
            update.pending.append(pending)
    return list(updates.values())


def with_fold(
    record: Record | None,
    queued: QueuedEvent,
    *,
    version: bytes,
    model: str,
    probability: float,
    state: bytes,
    window: int,
    facts: bytes = b"",
) -> tuple[Record, Answer]:
    """Return the record after a folded event, and the event's answer.

    Args:
        record: the record before the event; None when the event starts the session.
        queued: the event.
        version: the new record's version; random and never used before.
        model: fingerprint of the model that folded the event.
        probability: the model's probability after the event.
        state: the model's state after the event.
        window: number of answers that the record keeps.
        facts: what rules ask of the session, this event included; empty if none does, as older ones no longer hold.
    """
    previous = record or _blank(queued, model)
    answer = Answer(probability, previous.events + 1, model, Outcome.OPEN, folded=True)
    following = replace(
        previous,
        version=version,
        model=model,
        probability=probability,
        events=previous.events + 1,
        last_seen_ms=max(previous.last_seen_ms, queued.received_ms),
        last_event_ms=max(previous.last_event_ms, queued.event.timestamp_ms),
        answers=previous.answers.with_answer(queued.code, answer, window),
        state=state,
        properties_code=properties_code(queued.event.properties),
        facts=facts,
    )
    return following, answer


def with_decisions(record: Record, decisions: tuple[Decision, ...], window: int) -> Record:
    """Return the record with the decisions at its last event.

    Of a rule that repeats, an older decision goes once the answer to its event is not kept any more.
    """
    kept = Decisions(record.decisions + decisions)
    latest = {one.rule: one for one in kept}
    if len(latest) < len(kept):
        oldest = record.events - window
        kept = Decisions(one for one in kept if one.event > oldest or latest[one.rule] is one)
    return replace(record, decisions=kept)


def without_fold(
    record: Record | None, queued: QueuedEvent, *, version: bytes, model: str, window: int
) -> tuple[Record, Answer]:
    """Return the record after a purchase, or after any event of a closed session, and the event's answer.

    Such an event is never an input of the model. The record is stored nevertheless, so that its lifetime starts again:
    a visitor who browses after buying stays in the closed session. The first outcome of a session stays: a purchase
    after the shop has reported that there is none does not change the outcome.
    """
    previous = record or _blank(queued, model)
    outcome = Outcome.PURCHASE if previous.outcome is Outcome.OPEN else previous.outcome
    answer = Answer(previous.probability, previous.events, previous.model, outcome, folded=False)
    following = replace(
        previous,
        version=version,
        last_seen_ms=max(previous.last_seen_ms, queued.received_ms),
        outcome=outcome,
        outcome_ms=queued.event.timestamp_ms if previous.outcome is Outcome.OPEN else previous.outcome_ms,
        answers=previous.answers.with_answer(queued.code, answer, window),
        # No rule fires in a closed session.
        facts=b"",
    )
    return following, answer


def random_versions(count: int) -> Iterator[bytes]:
    """Yield random record versions without end.

    Draws `count` versions with each `os.urandom`, because the system call is most of the cost.
    """
    while True:
        drawn = os.urandom(VERSION_BYTES * count)
        for start in range(0, len(drawn), VERSION_BYTES):
            yield drawn[start : start + VERSION_BYTES]


def _blank(queued: QueuedEvent, model: str) -> Record:
    """Return the record of a session before its first event."""
    return Record(
        version=bytes(VERSION_BYTES),
        model=model,
        probability=None,
        events=0,
        first_seen_ms=queued.received_ms,
        last_seen_ms=queued.received_ms,
        last_event_ms=0,
        outcome=Outcome.OPEN,
        outcome_ms=0,
        answers=Answers(),
        state=b"",
    )
