"""`GET /v1/sessions`: the live board."""

import asyncio

from fastapi import APIRouter, Request, Response

from app.api.parameters import documented_query
from app.api.responses import documented
from app.api.services import services_of
from app.board.content import ContentResponse
from app.board.query import BoardParameters, parse_query
from app.errors import BoardBusyError, DeadlineExceededError, InvalidRequestError, StoreUnavailableError
from app.schemas.board import BoardOut

router = APIRouter(tags=["board"])


@router.get(
    "/v1/sessions",
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
    `limit` sessions although more follow; `next_cursor` says whether there are more. Those who ask the same within a
    moment share one answer. Send its `ETag` back as `If-None-Match`: nothing is sent again unless it has changed.
    """
    services = services_of(request)
    query = parse_query(request.scope["query_string"])
    content = services.dashboards.board.kept(query)
    if content is None:
        timeout_s = services.settings.request_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                content = await services.dashboards.board.content(query)
        except TimeoutError as exc:
            raise DeadlineExceededError(f"No answer within {timeout_s:g} s.") from exc
    return ContentResponse(content)
