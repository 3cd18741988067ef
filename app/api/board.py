"""`GET /v1/sessions`, the live board, and `GET /v1/stats`: the routes and the layer before them share a TTL cache."""

from collections.abc import Callable
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.middleware import KnownRoute
from app.api.openapi import documented, documented_query
from app.api.responses import json_response
from app.api.services import Services, in_time, services_of
from app.auth.middleware import route_path
from app.board.content import Content, ContentResponse
from app.board.query import BoardParameters, parse_query
from app.errors import BoardBusyError, DeadlineExceededError, InvalidRequestError, StoreUnavailableError
from app.quality.model_quality import HISTORY_HOURS
from app.runtime.single_flight import Key, SingleFlightCache
from app.schemas.board import BoardOut, HistoryOut, StatsOut

_BOARD_PATH: Final = "/v1/sessions"
_STATS_PATH: Final = "/v1/stats"

router = APIRouter(tags=["board"])


@router.get(
    _BOARD_PATH,
    summary="The live board",
    response_model=BoardOut,
    responses={
        **documented(InvalidRequestError, BoardBusyError, DeadlineExceededError, StoreUnavailableError),
        304: {"description": "Nothing has changed since the answer whose `ETag` came as `If-None-Match`."},
    },
    openapi_extra={"parameters": documented_query(BoardParameters)},
)
async def list_sessions(request: Request) -> Response:
    """Answer with live sessions, by probability or last seen, page by page.

    A session that does not change is on exactly one page, whatever the others do meanwhile. A page may have fewer than
    `limit` sessions although more follow; `next_cursor` says whether there are more. Equal requests within half a
    second share one answer. Send its `ETag` back as `If-None-Match`: an unchanged answer is not sent again.
    """
    return await _answer(request, services_of(request).board, parse_query(request.scope["query_string"]))


@router.get(
    _STATS_PATH,
    summary="How the service is doing",
    response_model=StatsOut,
    responses=documented(DeadlineExceededError, StoreUnavailableError),
)
async def get_stats(request: Request) -> Response:
    """Answer with sessions, rates, latency, spread of scores, outcomes and model quality, for all replicas together.

    The answer is read at most once a second; numbers of other replicas may be a second older.
    """
    return await _answer(request, services_of(request).stats, None)


@router.get(
    "/v1/history",
    summary="The last day or week by the hour",
    response_model=HistoryOut,
    responses=documented(InvalidRequestError, DeadlineExceededError, StoreUnavailableError),
)
async def get_history(
    request: Request,
    hours: Annotated[int, Query(ge=1, le=HISTORY_HOURS, description="How many hours, at most a week.")] = 24,
) -> Response:
    """Answer with sessions, purchases, predicted and actual conversion and revenue of each hour, over all replicas.

    A session counts in the hour in which it began, once, when it has ended. The counts are in Redis for a week. An
    answer is read at most every 15 seconds.
    """
    with in_time(request):
        history = await services_of(request).quality.history(hours)
    return json_response(history.model_dump_json().encode())


async def _answer(request: Request, cache: SingleFlightCache[Key, Content], key: Key) -> Response:
    content = cache.kept(key)
    if content is None:
        with in_time(request):
            content = await cache.get(key)
    return ContentResponse(content)


class CachedAnswers:
    """ASGI middleware: answers polls from the cache before the routing, which costs several times the answer.

    Every dashboard polls the same once a second. A request whose answer is not in the cache takes its route. Must be
    inside the layers that check the key and the limits.

    Args:
        app: answers the other requests.
        services: returns the parts that have the caches, once the service runs.
    """

    def __init__(self, app: ASGIApp, *, services: Callable[[], Services]) -> None:
        self._app = app
        self._services = services
        self._routes = {path: KnownRoute(path) for path in (_BOARD_PATH, _STATS_PATH)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http" and scope["method"] == "GET" and (route := self._routes.get(route_path(scope))):
            content = self._kept(route.path, scope["query_string"])
            if content is not None:
                scope["route"] = route
                await ContentResponse(content)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _kept(self, path: str, query_string: bytes) -> Content | None:
        if path == _STATS_PATH:
            return self._services().stats.kept(None)
        try:
            return self._services().board.kept(parse_query(query_string))
        except InvalidRequestError:
            return None  # the route answers with the problem
