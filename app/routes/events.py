"""`POST /v1/events`: one event in, the session's probability out."""

import asyncio

from fastapi import APIRouter, Request, Response

from app.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ConflictError,
    DeadlineExceededError,
    InvalidEventError,
    InvalidJsonError,
    OverloadedError,
    SessionFullError,
    ShuttingDownError,
    StoreUnavailableError,
    UnsupportedEncodingError,
    UnsupportedMediaTypeError,
)
from app.intake import check_headers, parse_event
from app.routes.responses import documented, json_response
from app.schemas import EVENT_EXAMPLE, ScoreOut
from app.services import services_of
from app.task import Score
from model.events import canonical_event_name

router = APIRouter(tags=["events"])


@router.post(
    "/v1/events",
    summary="Fold one event into its session",
    response_model=ScoreOut,
    responses=documented(
        InvalidJsonError,
        BodyTimeoutError,
        SessionFullError,
        ConflictError,
        BodyTooLargeError,
        UnsupportedMediaTypeError,
        UnsupportedEncodingError,
        InvalidEventError,
        OverloadedError,
        ShuttingDownError,
        DeadlineExceededError,
        StoreUnavailableError,
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/EventIn"}, "example": EVENT_EXAMPLE},
            },
        }
    },
)
async def post_event(request: Request) -> Response:
    """Answer with the probability that the session ends in a purchase, after this event.

    The answer leaves once the event is stored. An error means that the caller cannot know whether it was: send it
    again with the same `event_id`, and it counts once. An unknown session is started by its first event.
    """
    services = services_of(request)
    deadline = asyncio.get_running_loop().time() + services.settings.request_timeout_s
    check_headers(request.headers.get("content-type"), request.headers.get("content-encoding"))
    try:
        async with asyncio.timeout_at(deadline):
            body = await request.body()
    except TimeoutError as exc:
        raise BodyTimeoutError(f"The body did not arrive within {services.settings.request_timeout_s:g} s.") from exc
    event = parse_event(body)
    knows = services.model.knows(canonical_event_name(event.event_name))
    submission = services.intake.submission(event, now_ms=services.now_ms(), knows=knows)
    try:
        async with asyncio.timeout_at(deadline):
            score = await services.batcher.submit(submission)
    except TimeoutError as exc:
        raise DeadlineExceededError(
            f"No answer within {services.settings.request_timeout_s:g} s; send the event again with the same event_id."
        ) from exc
    return json_response(_score_out(score).model_dump_json().encode())


def _score_out(score: Score) -> ScoreOut:
    answer = score.answer
    return ScoreOut(
        session_id=score.session_id,
        probability=answer.probability,
        events=answer.events,
        model=answer.model,
        outcome="open" if answer.outcome == 0 else "purchase",
        folded=answer.folded,
        duplicate=score.duplicate,
        warnings=list(score.warnings),
    )
