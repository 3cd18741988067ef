"""`POST /v1/sessions/{session_id}/outcome`: what became of a session, where no `purchase` event says it."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from app.api.bodies import check_headers, gunzip, out_of_time, read_body
from app.api.openapi import documented
from app.api.responses import json_response
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
from app.runtime.deadlines import RequestTimeout
from app.schemas.events import OutcomeIn, SessionId
from app.schemas.sessions import SessionOut
from app.scoring.parsing import parse_object
from app.store.record_codec import Outcome
from model.text_rules import currency_code

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
    services.intake.check_session_id(session_id)
    form = check_headers(request.headers.get("content-type"), request.headers.get("content-encoding"))
    timeout_s, is_read = services.settings.request_timeout_s, False
    try:
        with RequestTimeout(request.scope, services.deadlines, timeout_s):
            body = await read_body(request.receive)
            is_read = True
            said = parse_object(gunzip(body, services.settings.max_body_bytes) if form.is_gzip else body, OutcomeIn)
            outcome_ms = services.intake.outcome_ms(said, now_ms=services.now_ms())
            record = await record_outcome(
                services.store,
                session_id,
                _OUTCOMES[said.outcome],
                outcome_ms=outcome_ms,
                value=said.value if said.outcome == "purchase" else None,
                currency=currency_code(said.currency or ""),
                metrics=services.metrics,
            )
    except TimeoutError as exc:
        error = DeadlineExceededError(f"No answer within {timeout_s:g} s; send it again.")
        raise (error if is_read else await out_of_time(request.receive, timeout_s)) from exc
    return json_response(session_out(session_id, record).model_dump_json().encode())
