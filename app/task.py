"""What a batch is made of: submissions, and runs of submissions of one session, which are committed together."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

import msgspec

from app.batcher import Later
from app.intake import Submission
from app.stores.base import Commit
from app.stores.records import Answer, Outcome, Record
from model.events import Event

LATE: Final = "timestamp: earlier than an event before it; no time is counted between them"


class Score(msgspec.Struct, frozen=True):
    """The answer to one submission."""

    session_id: str
    answer: Answer
    duplicate: bool = False
    warnings: tuple[str, ...] = ()


class Effect(Enum):
    """What a submission does to its session's record."""

    NONE = auto()
    FOLD = auto()
    PURCHASE = auto()
    AFTER_PURCHASE = auto()


@dataclass(slots=True)
class Task:
    """One submission within a batch.

    Attributes:
        submission: the submission.
        place: its place in the batch.
        effect: what it does in this attempt.
        is_late: whether it is folded after an event that happened later.
        proposed: what it is answered if this attempt's commit goes through.
        result: what it is answered; None as long as it is undecided.
    """

    submission: Submission
    place: int
    effect: Effect = Effect.NONE
    is_late: bool = False
    proposed: Score | Exception | None = None
    result: Score | Exception | Later | None = None

    def propose(self, answer: Answer, effect: Effect, *, is_late: bool = False) -> None:
        """Set what the submission does and is answered, if the commit goes through."""
        warnings = (*self.submission.warnings, LATE) if is_late else self.submission.warnings
        self.effect = effect
        self.is_late = is_late
        self.proposed = Score(self.submission.session_id, answer, warnings=warnings)


@dataclass(slots=True)
class Run:
    """The submissions of one session in a batch, in order, and what becomes of the session.

    Attributes:
        session_id: the session.
        tasks: those whose callers still wait.
        read: the record as it was read; None when there was none.
        current: the record after the tasks so far.
        appended: events that were folded so far.
        probabilities: what each of those is answered.
        conflicts: how many attempts failed since others committed to the session.
        unfoldable: why nothing can be folded in this attempt.
        is_stopped: whether this attempt is over for the run, be it decided or not.
        is_decided: whether each task has its result.
    """

    session_id: str
    tasks: list[Task] = field(default_factory=list)
    read: Record | None = None
    current: Record | None = None
    appended: list[Event] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    conflicts: int = 0
    unfoldable: Exception | None = None
    is_stopped: bool = False
    is_decided: bool = False

    def begin(self, record: Record | None) -> None:
        """Forget what an attempt found and begin the next one with what is stored now."""
        self.read = self.current = record
        self.appended, self.probabilities = [], []
        self.unfoldable = None
        self.is_stopped = False
        for task in self.tasks:
            task.effect, task.is_late, task.proposed = Effect.NONE, False, None

    @property
    def is_changed(self) -> bool:
        """Whether there is anything to store."""
        for task in self.tasks:  # noqa: SIM110 - `any` makes a generator, and this is asked twice an event
            if task.effect is not Effect.NONE:
                return True
        return False

    @property
    def repeats_answers(self) -> bool:
        """Whether an answer that was stored before is given again."""
        return any(isinstance(task.proposed, Score) and task.proposed.duplicate for task in self.tasks)

    def accept(self) -> None:
        """Make what was proposed the result: it is stored, or there was nothing to store."""
        self.is_stopped = self.is_decided = True
        for task in self.tasks:
            task.result = task.proposed

    def fail(self, error: Exception | Later) -> None:
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
        return all(task.effect is Effect.NONE for task in dropped)

    def commit(self) -> Commit:
        """Return what to store: the session after the run, or as it was read, if the run changed nothing."""
        if self.current is None:
            raise RuntimeError("a run without a record was committed")
        read, current = self.read, self.current
        has_history_of_model = read is not None and read.events > 0 and read.model == current.model
        was_open = read is None or read.outcome is Outcome.OPEN
        return Commit(
            session_id=self.session_id,
            expected=None if read is None else read.version,
            record=current,
            appended=self.appended,
            probabilities=self.probabilities,
            model=None if has_history_of_model else current.model,
            closed_by="event" if was_open and current.outcome is not Outcome.OPEN else None,
        )


def runs_of(tasks: Iterable[Task]) -> list[Run]:
    """Return the tasks by session, each session's in their order."""
    runs: dict[str, Run] = {}
    for task in tasks:
        session_id = task.submission.session_id
        if (run := runs.get(session_id)) is None:
            runs[session_id] = Run(session_id, [task])
        else:
            run.tasks.append(task)
    return list(runs.values())
