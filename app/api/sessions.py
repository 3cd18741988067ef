"""`GET` and `DELETE /v1/sessions/{session_id}`: a session's score, its trace, and its erasure.

The id is the rest of the path, so that ids with slashes work, plain or as `%2F`. Ids of `.` and `..` cannot be read
back by clients that resolve such paths.
"""

from collections.abc import Sequence
from math import log, log1p
from typing import Annotated, Any, Final

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
from app.schemas.events import SessionId
from app.schemas.sessions import (
    ChangeOut,
    ReasonOut,
    SessionOut,
    TracedIntervention,
    TracedSessionOut,
    TracePoint,
    WhyOut,
)
from app.scoring.reasons import reason
from app.store.history_codec import Entry
from app.store.record_codec import Record
from model.clock import utc
from model.events import Event
from model.explain import Explanation, probability_of
from model.interventions.decide import Decision

router = APIRouter(tags=["sessions"])

_SMALLEST: Final = 1e-12
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
    why: Annotated[bool, Query(description="Add which inputs moved the probability at the last event.")] = False,
) -> Response:
    """Answer with the session's probability, on request with its trace and why the last event moved it.

    Reading changes nothing, lifetime included.
    """
    services = services_of(request)
    services.intake.check_session_id(session_id)
    if trace or why:
        traced = await _traced(request, session_id, with_trace=trace, with_why=why)
        return json_response(traced.model_dump_json(exclude_unset=True).encode())
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


async def _traced(request: Request, session_id: str, *, with_trace: bool, with_why: bool) -> TracedSessionOut:
    services = services_of(request)
    with in_time(request):
        found = await services.store.load_entries(session_id)
    if found is None:
        raise not_found()
    record, entries = found
    model, history = services.model, [entry.event for entry in entries]
    more: dict[str, Any] = {"trace_model": model.fingerprint}
    if with_trace:
        more["trace"] = _trace(entries, await services.tracer.trace(model, history))
    if with_why:
        explanation = await services.tracer.explain(model, history)
        more["why"] = None if explanation is None else _why(explanation, history)
    return TracedSessionOut(**session_out(session_id, record).model_dump(), **more)


def _trace(entries: Sequence[Entry], probabilities: Sequence[float]) -> list[TracePoint]:
    before = [None, *map(_log_odds, probabilities)]
    return [
        TracePoint(
            event_name=entry.event.event_name,
            timestamp=utc(entry.event.timestamp_ms),
            item_id=entry.event.item_id,
            probability=probability,
            delta=None if last is None else _change(_log_odds(probability) - last, probability - probability_of(last)),
            interventions=[_intervention(decision) for decision in entry.decisions],
        )
        for entry, probability, last in zip(entries, probabilities, before, strict=False)
    ]


def _why(found: Explanation, history: Sequence[Event]) -> WhyOut:
    before, after = probability_of(found.before), probability_of(found.after)
    parts = sorted([found.repeat, *found.contributions], key=lambda part: -abs(part.probability))
    return WhyOut(
        event=len(history),
        event_name=history[-1].event_name,
        before=before,
        after=after,
        change=_change(found.after - found.before, after - before),
        reasons=[
            ReasonOut(
                input=part.group,
                text=f"{reason(part.group, history)}: {100 * part.probability:+.1f} points",
                log_odds=part.log_odds,
                points=100 * part.probability,
            )
            for part in parts
        ],
    )


def _change(log_odds: float, probability: float) -> ChangeOut:
    return ChangeOut(log_odds=log_odds, points=100 * probability)


def _log_odds(probability: float) -> float:
    # float32 has nothing between 1 - 6e-8 and 1.
    clipped = min(max(probability, _SMALLEST), 1.0 - _SMALLEST)
    return log(clipped) - log1p(-clipped)


def session_out(session_id: str, record: Record) -> SessionOut:
    """Return the answer's body for a session."""
    return SessionOut(
        session_id=session_id,
        probability=None if record.outcome else record.probability,
        events=record.events,
        first_seen=utc(record.first_seen_ms),
        last_seen=utc(record.last_seen_ms),
        model=record.model,
        outcome=record.outcome.word,
    )


def _intervention(decision: Decision) -> TracedIntervention:
    return TracedIntervention(
        name=decision.rule,
        group=decision.group.word,
        probability=decision.probability,
        decided=utc(decision.decided_ms),
        idle=decision.idle,
    )


def not_found() -> SessionNotFoundError:
    """Return the error for an unknown session."""
    return SessionNotFoundError("The session never was, or it ended and its idle time has passed.")
