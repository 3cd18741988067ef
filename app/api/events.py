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

from app.api.bodies import (
    CONTROL_PARAMETER,
    NDJSON,
    ScoreBody,
    asks_control,
    check_headers,
    gunzip,
    out_of_time,
    read_body,
    score_body,
    too_late,
)
from app.api.ingest import EVENTS_PATH
from app.api.openapi import documented
from app.api.responses import json_response
from app.api.services import Services, services_of
from app.auth.middleware import COUNT_EVENTS, KEY_SCOPES
from app.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ConflictError,
    DeadlineExceededError,
    EventIdReusedError,
    InvalidEventError,
    InvalidJsonError,
    InvalidRequestError,
    OverloadedError,
    SessionFullError,
    SessionTooLargeError,
    ShuttingDownError,
    StoreUnavailableError,
    TooManyEventsError,
    TooManySessionEventsError,
    UnsupportedEncodingError,
    UnsupportedMediaTypeError,
    WillbuyError,
    to_problem,
    without_traceback,
)
from app.runtime.deadlines import RequestTimeout, WhileConnected
from app.runtime.slices import Slices
from app.schemas.events import EVENT_EXAMPLE, LONGEST_EVENT_ID, BatchOut, EventBody, ScoreOut
from app.scoring.events import QueuedEvent
from app.scoring.parsing import parse_events
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
        EventIdReusedError,
        SessionFullError,
        SessionTooLargeError,
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
        SessionTooLargeError,
        ConflictError,
        BodyTooLargeError,
        UnsupportedMediaTypeError,
        UnsupportedEncodingError,
        InvalidEventError,
        EventIdReusedError,
        OverloadedError,
        ShuttingDownError,
        DeadlineExceededError,
        StoreUnavailableError,
    ),
    openapi_extra={
        "parameters": [
            CONTROL_PARAMETER,
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "The event's id where the body has none.",
                "schema": {"type": "string", "maxLength": LONGEST_EVENT_ID},
            },
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/EventIn"}, "example": EVENT_EXAMPLE},
            },
        },
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
        "parameters": [CONTROL_PARAMETER],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"type": "array", "items": _EVENT_SCHEMA},
                    "example": [EVENT_EXAMPLE],
                },
                NDJSON: {"schema": _EVENT_SCHEMA, "example": json.dumps(EVENT_EXAMPLE)},
            },
        },
    },
)
async def post_events(request: Request) -> Response:
    """Answer 200 with one result an event, in the request's order; each has a status of its own.

    Events of one session are folded in the request's order. Each counts for itself: one that fails undoes no other, and
    later ones of its session continue without it. A request has at most as many events of one session as the service
    remembers, so that one whose answer was lost can be sent again, with the same `event_id`s, and counts once. A
    request that finds too little room in the queue is refused whole. In NDJSON, a line that is no JSON is a problem of
    that line; in an array, of the request.
    """
    services = services_of(request)
    settings = services.settings
    form = check_headers(request.headers.get("content-type"), request.headers.get("content-encoding"), or_lines=True)
    with_control = asks_control(request.scope["query_string"], request.scope.get(KEY_SCOPES))
    timeout_s, is_read = settings.request_timeout_s, False
    try:
        with RequestTimeout(request.scope, services.deadlines, timeout_s) as timeout:
            body = await read_body(request.receive)
            is_read = True
            events = await parse_events(
                gunzip(body, settings.max_batch_body_bytes) if form.is_gzip else body,
                is_lines=form.is_lines,
                max_events=min(settings.max_batch_events, settings.max_queue),
                max_event_bytes=settings.max_body_bytes,
                count=request.scope.get(COUNT_EVENTS),
            )
            checked = await _submissions(services, events, give_up_at=timeout.at)
    except TimeoutError as exc:
        error = DeadlineExceededError(too_late(timeout_s))
        raise (error if is_read else await out_of_time(request.receive, timeout_s)) from exc
    wanted = [one for one in checked if isinstance(one, QueuedEvent)]
    # At the deadline, the events that are stored have their answers.
    with WhileConnected(request.scope):
        answers = iter(await services.batcher.submit_many(wanted, give_up_at=timeout.at))
    results = [next(answers) if isinstance(one, QueuedEvent) else one for one in checked]
    log_failures(services, results)
    return json_response(await _encoded(services, results, with_control=with_control))


class _Result(msgspec.Struct, omit_defaults=True):
    """What became of one event: an `app.schemas.events.ItemOut`."""

    status: int
    score: ScoreBody | None = None
    problem: msgspec.Raw | None = None


async def _submissions(
    services: Services, events: Sequence[EventBody | Exception], *, give_up_at: float
) -> list[QueuedEvent | Exception]:
    """Return a submission for each event that may be folded, else what is wrong with it."""
    now_ms, model, most = services.now_ms(), services.model, services.settings.dedupe_window
    of_session: defaultdict[str, int] = defaultdict(int)
    checked: list[QueuedEvent | Exception] = []
    slices = Slices()
    for event in events:
        if isinstance(event, Exception):
            checked.append(event)
            continue
        of_session[event.session_id] += 1
        if of_session[event.session_id] > most:
            checked.append(TooManySessionEventsError(f"Expected at most {most} events of one session in a request."))
            continue
        try:
            checked.append(services.intake.submission(event, now_ms=now_ms, model=model, give_up_at=give_up_at))
        except Exception as exc:  # noqa: BLE001 - whatever an event raises is answered to that event
            checked.append(without_traceback(exc))
        await slices.pause()
    return checked


def log_failures(services: Services, answers: Sequence[object]) -> None:
    """Log what no caller is to blame for, once however many events it befell."""
    failures = {(type(one), str(one)): one for one in answers if isinstance(one, Exception)}
    for failure in failures.values():
        if not isinstance(failure, WillbuyError):
            services.logger.error("events_failed", exc_info=failure)
        elif failure.status == 500:  # noqa: PLR2004 - a status is its own name
            services.logger.error(
                "events_failed", code=failure.code, detail=failure.detail, cause=repr(failure.__cause__)
            )


async def _encoded(services: Services, results: Sequence[Score | Exception | None], *, with_control: bool) -> bytes:
    """Return the answer to a batch as JSON; a result that cannot be encoded is a problem of its event."""
    slices = Slices()
    items: list[_Result] = []
    for result in results:
        try:
            items.append(_result(services, result, with_control=with_control))
        except Exception:
            services.logger.exception("answer_failed")
            items.append(_problem(services, _FAILED))
        await slices.pause()
    try:
        return _encode({"results": items})
    except Exception:
        services.logger.exception("answer_failed")
    return _encode({"results": [item if _is_encodable(item) else _problem(services, _FAILED) for item in items]})


def _is_encodable(item: _Result) -> bool:
    try:
        _encode(item)
    except Exception:  # noqa: BLE001 - the caller answers with a problem
        return False
    return True


def _result(services: Services, result: Score | Exception | None, *, with_control: bool) -> _Result:
    if isinstance(result, Score):
        return _Result(_OK, score_body(result, with_control=with_control))
    return _problem(services, result)


def _problem(services: Services, error: Exception | None) -> _Result:
    if error is None:
        error = DeadlineExceededError(too_late(services.settings.request_timeout_s))
    elif not isinstance(error, WillbuyError):
        error = _FAILED
    services.metrics.errors.labels(error.code).inc()
    problem = json.dumps(to_problem(error), ensure_ascii=True, allow_nan=False).encode()
    return _Result(error.status, problem=msgspec.Raw(problem))


_FAILED: Final = WillbuyError("The service failed on this event; the log says why.")
