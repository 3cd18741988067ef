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
from app.routes.bodies import read_body, score_json, too_late
from app.routes.responses import documented, json_response
from app.schemas import EVENT_EXAMPLE, ScoreOut
from app.services import services_of
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
    check_headers(request.headers.get("content-type"), request.headers.get("content-encoding"))
    body, deadline = await read_body(request)
    event = parse_event(body)
    knows = services.model.knows(canonical_event_name(event.event_name))
    submission = services.intake.submission(event, now_ms=services.now_ms(), knows=knows)
    try:
        async with asyncio.timeout_at(deadline):
            score = await services.batcher.submit(submission)
    except TimeoutError as exc:
        raise DeadlineExceededError(too_late(services.settings.request_timeout_s)) from exc
    return json_response(score_json(score))
