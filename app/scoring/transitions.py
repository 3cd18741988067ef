"""What a session's record becomes with one more event; pure functions of the record, the event and the answer."""

import os
from collections.abc import Iterator

from msgspec.structs import replace

from app.scoring.events import QueuedEvent
from app.store.history_codec import properties_code
from app.store.record_codec import VERSION_BYTES, Answer, Answers, Outcome, Record


def with_fold(
    record: Record | None,
    submission: QueuedEvent,
    *,
    version: bytes,
    model: str,
    probability: float,
    state: bytes,
    window: int,
) -> tuple[Record, Answer]:
    """Return the record after an event that was folded, and the event's answer.

    Args:
        record: before the event; None when the session begins with it.
        submission: the event.
        version: the record's new one; random, as for nothing else.
        model: fingerprint of the model that was stepped.
        probability: the model's, after the event.
        state: the model's, after the event.
        window: how many answers the record keeps.
    """
    previous = record or _blank(submission, model)
    answer = Answer(probability, previous.events + 1, model, Outcome.OPEN, folded=True)
    following = replace(
        previous,
        version=version,
        model=model,
        probability=probability,
        events=previous.events + 1,
        last_seen_ms=max(previous.last_seen_ms, submission.received_ms),
        last_event_ms=max(previous.last_event_ms, submission.event.timestamp_ms),
        answers=previous.answers.with_answer(submission.code, answer, window),
        state=state,
        properties_code=properties_code(submission.event.properties),
    )
    return following, answer


def without_fold(
    record: Record | None, submission: QueuedEvent, *, version: bytes, model: str, window: int
) -> tuple[Record, Answer]:
    """Return the record after a purchase, or after whatever came once the session was closed, and the event's answer.

    Neither is ever an input of the model. The record is written all the same: its lifetime starts again, so that a
    visitor who browses on after buying stays in the session that is closed. What became of a session is said once: a
    purchase after the shop said that there is none does not change it.
    """
    previous = record or _blank(submission, model)
    outcome = Outcome.PURCHASE if previous.outcome is Outcome.OPEN else previous.outcome
    answer = Answer(previous.probability, previous.events, previous.model, outcome, folded=False)
    following = replace(
        previous,
        version=version,
        last_seen_ms=max(previous.last_seen_ms, submission.received_ms),
        outcome=outcome,
        outcome_ms=submission.event.timestamp_ms if previous.outcome is Outcome.OPEN else previous.outcome_ms,
        answers=previous.answers.with_answer(submission.code, answer, window),
    )
    return following, answer


def random_versions(count: int) -> Iterator[bytes]:
    """Return versions for records without end, drawn so many at a time: the system's call is most of drawing one."""
    while True:
        drawn = os.urandom(VERSION_BYTES * count)
        for start in range(0, len(drawn), VERSION_BYTES):
            yield drawn[start : start + VERSION_BYTES]


def _blank(submission: QueuedEvent, model: str) -> Record:
    """Return a session before its first event."""
    return Record(
        version=bytes(VERSION_BYTES),
        model=model,
        probability=None,
        events=0,
        first_seen_ms=submission.received_ms,
        last_seen_ms=submission.received_ms,
        last_event_ms=0,
        outcome=Outcome.OPEN,
        outcome_ms=0,
        answers=Answers(),
        state=b"",
    )
