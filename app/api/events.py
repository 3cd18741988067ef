"""The calls that take events: OpenAPI's entry for `POST /v1/events`, and `POST /v1/events/batch`.

`app.api.ingest` answers `POST /v1/events` before a request reaches this router. The route here only describes it, and
lets the framework answer other methods of that path with 405.
"""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import msgspec
from fastapi import APIRouter, Request, Response

from app.api.bodies import ScoreBody, read_body_in_time, score_body, too_late
from app.api.ingest import EVENTS_PATH
from app.api.openapi import documented
from app.api.responses import json_response
from app.api.services import Services, services_of
from app.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ConflictError,
    DeadlineExceededError,
    InvalidEventError,
    InvalidJsonError,
    InvalidRequestError,
    OverloadedError,
    SessionFullError,
    ShuttingDownError,
    StoreUnavailableError,
    TooManyEventsError,
    TooManySessionEventsError,
    UnsupportedEncodingError,
    UnsupportedMediaTypeError,
    WillbuyError,
    to_problem,
)
from app.schemas.events import EVENT_EXAMPLE, BatchOut, EventBody, ScoreOut
from app.scoring.events import NDJSON, QueuedEvent, check_headers, parse_events
from app.scoring.session_update import Score

BATCH_PATH = "/v1/events/batch"
_OK: Final = 200

# All results at once: one by one, and put together afterwards, takes three times as long.
_encode = msgspec.json.Encoder().encode

router = APIRouter(tags=["events"])

_OF_ONE_EVENT = ", ".join(
    f"`{error.code}`"
    for error in (
        InvalidJsonError,
        InvalidEventError,
        TooManySessionEventsError,
        SessionFullError,
        ConflictError,
        DeadlineExceededError,
        StoreUnavailableError,
    )
)
_EVENT_SCHEMA = {"$ref": "#/components/schemas/EventIn"}


@router.post(
    EVENTS_PATH,
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
async def post_event() -> Response:
    """Answer with the probability that the session ends in a purchase, after this event.

    The answer leaves once the event is stored. An error means that the caller cannot know whether it was: send it
    again with the same `event_id`, and it counts once. An unknown session is started by its first event.
    """
    raise NotImplementedError  # pragma: no cover - app.api.ingest answers before the framework


@router.post(
    BATCH_PATH,
    summary="Fold many events into their sessions",
    response_model=BatchOut,
    response_description=f"One result an event. Problems of one event: {_OF_ONE_EVENT}.",
    responses=documented(
        InvalidJsonError,
        BodyTimeoutError,
        TooManyEventsError,
        BodyTooLargeError,
        UnsupportedMediaTypeError,
        UnsupportedEncodingError,
        InvalidRequestError,
        OverloadedError,
        ShuttingDownError,
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "array", "items": _EVENT_SCHEMA},
                    "example": [EVENT_EXAMPLE],
                },
                NDJSON: {"schema": _EVENT_SCHEMA, "example": json.dumps(EVENT_EXAMPLE)},
            },
        }
    },
)
async def post_events(request: Request) -> Response:
    """Answer 200 with one result an event, in the request's order; each has a status of its own.

    Events of one session are folded in the request's order. Each counts for itself: one that fails undoes no other,
    and later ones of its session go on without it. A request has at most as many events of one session as the service
    remembers, so that one whose answer was lost can be sent again, with the same `event_id`s, and counts once. A
    request that finds too little room in the queue is refused whole. In NDJSON, a line that is no JSON is a problem of
    that line; in an array, of the request.
    """
    services = services_of(request)
    is_lines = check_headers(
        request.headers.get("content-type"), request.headers.get("content-encoding"), or_lines=True
    )
    body, deadline = await read_body_in_time(request.receive, services.settings.request_timeout_s, services.deadlines)
    max_events = min(services.settings.max_batch_events, services.settings.max_queue)
    checked = _submissions(services, parse_events(body, is_lines=is_lines, max_events=max_events))
    wanted = [one for one in checked if isinstance(one, QueuedEvent)]
    answers = await services.batcher.submit_many(wanted, give_up_at=deadline)
    _log_failures(services, answers)
    answer = iter(answers)
    results = [_result(services, next(answer) if isinstance(one, QueuedEvent) else one) for one in checked]
    return json_response(_encode({"results": results}))


class _Result(msgspec.Struct, omit_defaults=True):
    """What became of one event: an `app.schemas.events.ItemOut`."""

    status: int
    score: ScoreBody | None = None
    problem: msgspec.Raw | None = None


def _submissions(services: Services, events: list[EventBody | WillbuyError]) -> list[QueuedEvent | WillbuyError]:
    """Return a submission for each event that may be folded, else what is wrong with it."""
    now_ms, model, most = services.now_ms(), services.model, services.settings.dedupe_window
    of_session: defaultdict[str, int] = defaultdict(int)
    checked: list[QueuedEvent | WillbuyError] = []
    for event in events:
        if isinstance(event, WillbuyError):
            checked.append(event)
            continue
        of_session[event.session_id] += 1
        if of_session[event.session_id] > most:
            checked.append(TooManySessionEventsError(f"Expected at most {most} events of one session in a request."))
            continue
        try:
            checked.append(services.intake.submission(event, now_ms=now_ms, model=model))
        except WillbuyError as exc:
            checked.append(exc)
    return checked


def _log_failures(services: Services, answers: Sequence[object]) -> None:
    """Log what no caller is to blame for, once however many events it befell."""
    failures = {id(one): one for one in answers if isinstance(one, Exception)}
    for failure in failures.values():
        if not isinstance(failure, WillbuyError):
            services.logger.error("events_failed", exc_info=failure)
        elif failure.status == 500:  # noqa: PLR2004 - a status is its own name
            services.logger.error(
                "events_failed", code=failure.code, detail=failure.detail, cause=repr(failure.__cause__)
            )


def _result(services: Services, answer: Score | Exception | None) -> _Result:
    if isinstance(answer, Score):
        return _Result(_OK, score_body(answer))
    if answer is None:
        answer = DeadlineExceededError(too_late(services.settings.request_timeout_s))
    elif not isinstance(answer, WillbuyError):
        answer = WillbuyError("The service failed on this event; the log says why.")
    services.metrics.errors.labels(answer.code).inc()
    problem = json.dumps(to_problem(answer), ensure_ascii=True, allow_nan=False).encode()
    return _Result(answer.status, problem=msgspec.Raw(problem))
