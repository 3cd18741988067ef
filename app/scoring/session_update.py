"""What a batch is made of: submissions, and runs of submissions of one session, which are committed together.

msgspec's structs, as every event makes some of them: making one takes less than half of a dataclass' time.
"""

from collections.abc import Iterable
from enum import Enum, auto
from typing import Final

import msgspec

from app.scoring.batcher import Requeue
from app.scoring.events import QueuedEvent
from app.store.interface import Commit
from app.store.record_codec import Answer, Outcome, Record
from model.events import Event

LATE: Final = "timestamp: earlier than an event before it; no time is counted between them"


class Score(msgspec.Struct, frozen=True):
    """The answer to one submission."""

    session_id: str
    answer: Answer
    duplicate: bool = False
    warnings: tuple[str, ...] = ()


class Disposition(Enum):
    """What a submission does to its session's record."""

    NONE = auto()
    """Nothing, and its answer is an error, or was given before to a caller without an event id."""
    DUPLICATE = auto()
    """Nothing, and its answer is the one that its event id was given before."""
    FOLD = auto()
    LATE_FOLD = auto()
    """It is folded after an event that happened later."""
    PURCHASE = auto()
    AFTER_PURCHASE = auto()


# By name: a member looked up in its class takes 57 ns, a global 6, and every event needs some.
_NONE: Final = Disposition.NONE
_LATE_FOLD: Final = Disposition.LATE_FOLD
_OPEN: Final = Outcome.OPEN
_WITHOUT_CHANGE: Final = frozenset({Disposition.NONE, Disposition.DUPLICATE})


class PendingEvent(msgspec.Struct):
    """One submission within a batch.

    Attributes:
        submission: the submission.
        place: its place in the batch.
        effect: what it does in this attempt.
        proposed: what it is answered if this attempt's commit goes through.
        result: what it is answered; None as long as it is undecided.
    """

    submission: QueuedEvent
    place: int
    effect: Disposition = _NONE
    proposed: Score | Exception | None = None
    result: Score | Exception | Requeue | None = None


class SessionUpdate(msgspec.Struct):
    """The submissions of one session in a batch, in order, and what becomes of the session.

    Attributes:
        session_id: the session.
        tasks: those whose callers still wait.
        read: the record as it was read; None when there was none.
        current: the record after the tasks so far.
        is_changed: whether there is anything to store.
        appended: events that were folded so far.
        probabilities: what each of those is answered.
        conflicts: how many attempts failed since others committed to the session.
        unfoldable: why nothing can be folded in this attempt.
        is_stopped: whether this attempt is over for the run, be it decided or not.
        is_decided: whether each task has its result.
    """

    session_id: str
    tasks: list[PendingEvent]
    read: Record | None = None
    current: Record | None = None
    is_changed: bool = False
    appended: list[Event] = []
    probabilities: list[float] = []
    conflicts: int = 0
    unfoldable: Exception | None = None
    is_stopped: bool = False
    is_decided: bool = False

    def begin_again(self) -> None:
        """Forget what an attempt found; the next one begins with what is stored then."""
        self.read = self.current = None
        self.is_changed = False
        self.appended, self.probabilities = [], []
        self.unfoldable = None
        self.is_stopped = False
        for task in self.tasks:
            task.effect, task.proposed = _NONE, None

    def change(self, task: PendingEvent, effect: Disposition, record: Record, answer: Answer) -> None:
        """Take the record after a task, and set what the task does and is answered, if the commit goes through."""
        submission = task.submission
        warnings = (*submission.warnings, LATE) if effect is _LATE_FOLD else submission.warnings
        self.current = record
        self.is_changed = True
        task.effect = effect
        task.proposed = Score(submission.session_id, answer, warnings=warnings)

    @property
    def repeats_answers(self) -> bool:
        """Whether an answer that was stored before is given again to who asks with its event id."""
        return any(task.effect is Disposition.DUPLICATE for task in self.tasks)

    def fail(self, error: Exception | Requeue) -> None:
        """Give an error to every task, as nothing of the run is stored."""
        self.is_stopped = self.is_decided = True
        for task in self.tasks:
            task.result = error

    def drop(self, places: Iterable[int], error: Exception) -> bool:
        """Give `error` to the tasks of these places and take them out; return whether the rest stands as it is."""
        gone = set(places)
        dropped = [task for task in self.tasks if task.place in gone]
        self.tasks = [task for task in self.tasks if task.place not in gone]
        for task in dropped:
            task.result = error
        self.is_decided = not self.tasks
        return all(task.effect in _WITHOUT_CHANGE for task in dropped)

    def commit(self) -> Commit:
        """Return what to store: the session after the run, or as it was read, if the run changed nothing."""
        read, current = self.read, self.current
        if current is None:
            raise RuntimeError("a run without a record was committed")
        is_closed = current.outcome is not _OPEN
        return Commit(
            session_id=self.session_id,
            expected=None if read is None else read.version,
            record=current,
            appended=self.appended,
            probabilities=self.probabilities,
            # The history's last event names its model, or the one before it.
            model=None if read is not None and read.events and read.model == current.model else current.model,
            closed_by="event" if is_closed and (read is None or read.outcome is _OPEN) else None,
            previous=read,
        )


def updates_by_session(tasks: Iterable[PendingEvent]) -> list[SessionUpdate]:
    """Return the tasks by session, each session's in their order."""
    runs: dict[str, SessionUpdate] = {}
    for task in tasks:
        session_id = task.submission.session_id
        if (run := runs.get(session_id)) is None:
            runs[session_id] = SessionUpdate(session_id, [task])
        else:
            run.tasks.append(task)
    return list(runs.values())
