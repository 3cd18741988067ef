"""What the shop itself says of a session's end, by a call instead of an event."""

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
    metrics: Metrics,
    attempts: int = COMMIT_ATTEMPTS,
) -> Record:
    """Close a session with an outcome, once, and return it as it stands; saying the same again changes nothing.

    Args:
        store: where the session is.
        session_id: the session.
        outcome: what became of it; not `OPEN`.
        outcome_ms: when.
        attempts: how often to try while events come in at the same time.
        metrics: where purchases are counted.

    Raises:
        SessionNotFoundError: there is no such session, or no longer.
        OutcomeConflictError: it was closed with the other outcome.
        ConflictError: others committed to it in each attempt.
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
        # What was said before is written again where replicas have to confirm it.
        said = with_outcome(record, outcome, outcome_ms=outcome_ms) if is_new else record
        commit = Commit(session_id, record.version, said, closed_by="api" if is_new else None)
        (stored,) = await store.commit([commit])
        if isinstance(stored, Exception):
            raise stored
        if stored:
            if is_new and outcome is Outcome.PURCHASE:
                metrics.purchases.inc()
            return said
        metrics.conflicts.inc()
    raise ConflictError(f"Others committed to this session in each of {attempts} attempts; send it again.")


def with_outcome(record: Record, outcome: Outcome, *, outcome_ms: int) -> Record:
    """Return the record of an open session once the shop has said what became of it."""
    return replace(record, version=os.urandom(VERSION_BYTES), outcome=outcome, outcome_ms=outcome_ms)
