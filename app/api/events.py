"""`POST /v1/events`: one event in, the session's probability out.

Most requests by far are this one, and finding its route, building the framework's request and calling through its
layers costs more than the prediction (docs/performance.md). So `EventsShortcut` answers it before the routing. The
route is there for the API's description, and does the same.
"""

from collections.abc import Callable, Iterable

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from app.api.bodies import read_body_in_time, score_json, too_late
from app.api.known_route import KnownRoute
from app.api.problems import client_gone, error_answer
from app.api.quick_events import EVENTS_PATH, mark_plain, raise_decided
from app.api.responses import documented, json_response
from app.api.services import Services, services_of
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
    WillbuyError,
)
from app.monitoring.metrics import Metrics
from app.schemas.events import EVENT_EXAMPLE, ScoreOut
from app.scoring.events import check_headers, parse_event

router = APIRouter(tags=["events"])


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
async def post_event(request: Request) -> Response:
    """Answer with the probability that the session ends in a purchase, after this event.

    The answer leaves once the event is stored. An error means that the caller cannot know whether it was: send it
    again with the same `event_id`, and it counts once. An unknown session is started by its first event.
    """
    return json_response(await _answer(services_of(request), request.scope["headers"], request.receive))


class EventsShortcut:
    """Answers `POST /v1/events` and passes everything else on; ASGI middleware.

    Must stand behind whatever decides who may ask and how long a body may be.

    Args:
        app: what answers everything else.
        services: returns the service's parts, once it runs.
        metrics: where problems are counted.
        logger: where failures are told.
    """

    def __init__(
        self, app: ASGIApp, *, services: Callable[[], Services], metrics: Metrics, logger: FilteringBoundLogger
    ) -> None:
        self._app = app
        self._services = services
        self._metrics = metrics
        self._logger = logger
        self._route = KnownRoute(EVENTS_PATH)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["path"] != EVENTS_PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route
        try:
            raise_decided(scope)
            body = await _answer(self._services(), scope["headers"], receive)
        except WillbuyError as exc:
            await error_answer(exc, self._metrics, self._logger)(scope, receive, send)
        except ClientDisconnect:
            await client_gone()(scope, receive, send)
        else:
            mark_plain(scope)
            # The two messages of `json_response`, without the object between.
            headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})


async def _answer(services: Services, headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> bytes:
    """Return the answer to one event as JSON."""
    content_type = content_encoding = None
    for name, value in headers:
        if name == b"content-type":
            content_type = value
        elif name == b"content-encoding":
            content_encoding = value
    # What nearly everybody sends needs no closer look.
    if content_type != b"application/json" or content_encoding is not None:
        check_headers(_text(content_type), _text(content_encoding))
    timeout_s = services.settings.request_timeout_s
    body, deadline = await read_body_in_time(receive, timeout_s, services.deadlines)
    submission = services.intake.submission(parse_event(body), now_ms=services.now_ms(), knows=services.model.knows)
    try:
        score = await services.batcher.submit(submission, give_up_at=deadline)
    except TimeoutError as exc:
        raise DeadlineExceededError(too_late(timeout_s)) from exc
    return score_json(score)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
