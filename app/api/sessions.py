"""`GET` and `DELETE /v1/sessions/{session_id}`: a session's score, its trace, and its erasure.

The id is the rest of the path, so that ids with slashes work, plain or as `%2F`. Ids of `.` and `..` cannot be read
back by clients that resolve such paths.
"""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from app.api.openapi import documented
from app.api.responses import json_response
from app.api.services import in_time, services_of
from app.auth.middleware import holder_of
from app.errors import (
    PROBLEM_JSON,
    CorruptRecordError,
    DeadlineExceededError,
    HistoryGoneError,
    InvalidRequestError,
    PredictionError,
    SessionNotFoundError,
    StoreUnavailableError,
    UnknownPathError,
)
from app.schemas.events import SessionId, SessionOut, TracedIntervention, TracedSessionOut, TracePoint
from app.store.record_codec import Record
from model.interventions.decide import Decision

router = APIRouter(tags=["sessions"])

_SessionId = Annotated[SessionId, Path(description="The shop's id; slashes are allowed.")]


@router.get(
    "/v1/sessions/{session_id:path}",
    summary="Read a session",
    response_model=SessionOut | TracedSessionOut,
    responses=documented(
        SessionNotFoundError,
        InvalidRequestError,
        CorruptRecordError,
        HistoryGoneError,
        PredictionError,
        DeadlineExceededError,
        StoreUnavailableError,
    ),
)
async def get_session(
    request: Request,
    session_id: _SessionId,
    trace: Annotated[
        bool, Query(description="Add the probability after each event, as the current model sees it.")
    ] = False,
) -> Response:
    """Answer with the session's probability, and its trace on request. Reading changes nothing, lifetime included."""
    services = services_of(request)
    services.intake.check_session_id(session_id)
    if trace:
        return json_response((await _traced(request, session_id)).model_dump_json().encode())
    with in_time(request):
        (record,) = await services.store.load([session_id])
    if isinstance(record, Exception):
        raise record
    if record is None:
        raise not_found()
    return json_response(session_out(session_id, record).model_dump_json().encode())


@router.delete(
    "/v1/sessions/{session_id:path}",
    summary="Erase a session",
    status_code=204,
    responses={
        404: {
            "description": "`not_found`: the id has a line break, so there is no such path and no such session.",
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        },
        **documented(InvalidRequestError, DeadlineExceededError, StoreUnavailableError),
    },
)
async def delete_session(request: Request, session_id: _SessionId) -> Response:
    """Erase the session: score, events and board entry. Answer 204 whether there was one or not.

    An event that comes at the same time is erased too, or starts a new session of the same id.
    """
    if request.scope.get("raw_path", b"").partition(b"?")[0].endswith(b"/outcome"):
        # An outcome cannot be deleted, and the session is another one. `X%2Foutcome` is a session's id.
        raise UnknownPathError
    services = services_of(request)
    services.intake.check_session_id(session_id)
    # A caller that leaves does not stop the erasure.
    with in_time(request):
        await services.store.delete(session_id)
        for webhook in services.sender.webhooks:
            await services.store.webhooks.forget(webhook.name, session_id)
    services.metrics.sessions_deleted.inc()
    services.logger.info("session_erased", session_id=session_id, key=holder_of(request.scope))
    return Response(status_code=204)


async def _traced(request: Request, session_id: str) -> TracedSessionOut:
    services = services_of(request)
    with in_time(request):
        found = await services.store.load_entries(session_id)
    if found is None:
        raise not_found()
    record, entries = found
    model = services.model
    probabilities = await services.tracer.trace(model, [entry.event for entry in entries])
    trace = [
        TracePoint(
            event_name=entry.event.event_name,
            timestamp=_time(entry.event.timestamp_ms),
            item_id=entry.event.item_id,
            probability=probability,
            interventions=[_intervention(decision) for decision in entry.decisions],
        )
        for entry, probability in zip(entries, probabilities, strict=True)
    ]
    session = session_out(session_id, record)
    return TracedSessionOut(**session.model_dump(), trace=trace, trace_model=model.fingerprint)


def session_out(session_id: str, record: Record) -> SessionOut:
    """Return the answer's body for a session."""
    return SessionOut(
        session_id=session_id,
        probability=None if record.outcome else record.probability,
        events=record.events,
        first_seen=_time(record.first_seen_ms),
        last_seen=_time(record.last_seen_ms),
        model=record.model,
        outcome=record.outcome.word,
    )


def _intervention(decision: Decision) -> TracedIntervention:
    return TracedIntervention(
        name=decision.rule,
        group=decision.group.word,
        probability=decision.probability,
        decided=_time(decision.decided_ms),
        idle=decision.idle,
    )


def not_found() -> SessionNotFoundError:
    """Return the error for an unknown session."""
    return SessionNotFoundError("The session never was, or it ended and its idle time has passed.")


def _time(timestamp_ms: int) -> datetime:
    return datetime.fromtimestamp(timestamp_ms / 1000, tz=UTC)
