"""Outcomes that the shop records with a call instead of a `purchase` event."""

import os

from msgspec.structs import replace

from app.errors import ConflictError, OutcomeConflictError, SessionNotFoundError
from app.monitoring.metrics import Metrics
from app.store.interface import COMMIT_ATTEMPTS, Commit, StateStore
from app.store.record_codec import VERSION_BYTES, Outcome, Record


async def record_outcome(
    store: StateStore,
    session_id: str,
    outcome: Outcome,
    *,
    outcome_ms: int,
    value: float | None = None,
    currency: str | None = None,
    metrics: Metrics,
    attempts: int = COMMIT_ATTEMPTS,
) -> Record:
    """Close a session with an outcome, and return its record; the same outcome again changes nothing.

    Args:
        store: where the session is.
        session_id: the session.
        outcome: its outcome; not `OPEN`.
        outcome_ms: time of the outcome.
        value: of a purchase; None: not known.
        currency: of the value; None: that of the session's events.
        attempts: how often to commit while events are committed at the same time.
        metrics: where purchases are counted.

    Raises:
        SessionNotFoundError: the session does not exist.
        OutcomeConflictError: the session was closed with the other outcome.
        ConflictError: other commits to the session came first in each attempt.
        StoreError: the store is gone, or the record cannot be read.
    """
    for _ in range(attempts):
        (record,) = await store.load([session_id])
        if isinstance(record, Exception):
            raise record
        if record is None:
            raise SessionNotFoundError("The session never was, or it ended and its idle time has passed.")
        if record.outcome not in (Outcome.OPEN, outcome):
            raise OutcomeConflictError(f"The session was closed before, with the outcome {record.outcome.word!r}.")
        is_new = record.outcome is Outcome.OPEN
        if not is_new and not store.confirms_by_writing:
            return record
        # A stored outcome is written again where Redis replicas have to confirm it.
        closed = with_outcome(record, outcome, outcome_ms=outcome_ms) if is_new else record
        commit = Commit(
            session_id,
            record.version,
            closed,
            closed_by="api" if is_new else None,
            value=value,
            currency=currency,
        )
        (stored,) = await store.commit([commit])
        if isinstance(stored, Exception):
            raise stored
        if stored:
            if is_new and outcome is Outcome.PURCHASE:
                metrics.purchases.inc()
            return closed
        metrics.conflicts.inc()
    raise ConflictError(f"Others committed to this session in each of {attempts} attempts; send it again.")


def with_outcome(record: Record, outcome: Outcome, *, outcome_ms: int) -> Record:
    """Return an open session's record with an outcome."""
    return replace(record, version=os.urandom(VERSION_BYTES), outcome=outcome, outcome_ms=outcome_ms)
