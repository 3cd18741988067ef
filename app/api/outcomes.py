"""`POST /v1/sessions/{session_id}/outcome`: what became of a session, where no `purchase` event says it."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from app.api.bodies import read_body_in_time
from app.api.responses import documented, json_response
from app.api.services import services_of
from app.api.sessions import session_out
from app.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ConflictError,
    CorruptRecordError,
    DeadlineExceededError,
    InvalidJsonError,
    InvalidRequestError,
    OutcomeConflictError,
    SessionNotFoundError,
    StoreUnavailableError,
    UnsupportedEncodingError,
    UnsupportedMediaTypeError,
)
from app.outcomes.record_outcome import record_outcome
from app.schemas.events import SessionId, SessionOut
from app.scoring.events import check_headers, parse_outcome
from app.store.record_codec import Outcome

router = APIRouter(tags=["sessions"])

_OUTCOMES = {"purchase": Outcome.PURCHASE, "none": Outcome.NONE}


@router.post(
    "/v1/sessions/{session_id:path}/outcome",
    summary="Say what became of a session",
    response_model=SessionOut,
    responses=documented(
        InvalidJsonError,
        UnsupportedMediaTypeError,
        UnsupportedEncodingError,
        BodyTooLargeError,
        BodyTimeoutError,
        InvalidRequestError,
        SessionNotFoundError,
        OutcomeConflictError,
        ConflictError,
        CorruptRecordError,
        DeadlineExceededError,
        StoreUnavailableError,
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/OutcomeIn"}}},
        }
    },
)
async def post_outcome(
    request: Request, session_id: Annotated[SessionId, Path(description="The shop's id; slashes are allowed.")]
) -> Response:
    """Close the session as bought or not bought and answer with it as it stands; the same again changes nothing.

    For shops that learn of a purchase elsewhere, or know that a visitor has left. A `purchase` event does the same.
    """
    services = services_of(request)
    check_headers(request.headers.get("content-type"), request.headers.get("content-encoding"))
    body, deadline = await read_body_in_time(request.receive, services.settings.request_timeout_s, services.deadlines)
    said = parse_outcome(body)
    outcome_ms = services.intake.outcome_ms(said, now_ms=services.now_ms())
    try:
        async with asyncio.timeout_at(deadline):
            record = await record_outcome(
                services.store,
                session_id,
                _OUTCOMES[said.outcome],
                outcome_ms=outcome_ms,
                metrics=services.metrics,
            )
    except TimeoutError as exc:
        timeout_s = services.settings.request_timeout_s
        raise DeadlineExceededError(f"No answer within {timeout_s:g} s; send it again.") from exc
    return json_response(session_out(session_id, record).model_dump_json().encode())
