"""One submission on its way through a batch, and the score at its end."""

from dataclasses import dataclass
from typing import Final

from app.errors import CorruptRecordError
from app.intake import Submission
from app.stores.base import Commit
from app.stores.records import Answer, Record

LATE: Final = "timestamp: earlier than an event before it; no time is counted between them"


@dataclass(frozen=True, slots=True)
class Score:
    """The answer to one submission."""

    session_id: str
    answer: Answer
    duplicate: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class Task:
    """One submission within an attempt: what was read, and what becomes of it.

    `result` is set once the submission is decided; until then it goes on to the next stage.
    """

    submission: Submission
    record: Record | None = None
    state: bytes | None = None
    following: Record | None = None
    answer: Answer | None = None
    folds: bool = False
    conflicted: bool = False
    broken_history: CorruptRecordError | None = None
    result: Score | Exception | None = None

    def begin_anew(self) -> None:
        """Forget what an attempt found; the next one looks at what is stored then."""
        self.record = self.state = self.following = self.answer = self.broken_history = None
        self.folds = self.conflicted = False

    @property
    def is_late(self) -> bool:
        """Whether the event is folded after one that happened later."""
        return self.folds and self.record is not None and self.submission.event.timestamp_ms < self.record.last_event_ms

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was accepted though it looks wrong."""
        return (*self.submission.warnings, LATE) if self.is_late else self.submission.warnings

    def commit(self) -> Commit:
        """Return what to store; only for a task that was given a following record."""
        if self.following is None:
            raise RuntimeError("a task without a record was committed")
        return Commit(
            session_id=self.submission.session_id,
            expected=None if self.record is None else self.record.version,
            record=self.following,
            appended=(self.submission.event,) if self.folds else (),
        )
