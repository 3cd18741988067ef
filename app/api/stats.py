"""`GET /v1/stats`: how the service is doing, all replicas together."""

import asyncio

from fastapi import APIRouter, Request, Response

from app.api.responses import documented
from app.api.services import services_of
from app.board.content import ContentResponse
from app.errors import DeadlineExceededError, StoreUnavailableError
from app.schemas.board import StatsOut

router = APIRouter(tags=["board"])


@router.get(
    "/v1/stats",
    summary="How the service is doing",
    response_model=StatsOut,
    responses=documented(DeadlineExceededError, StoreUnavailableError),
)
async def get_stats(request: Request) -> Response:
    """Answer with sessions, rates, latency, spread of scores, outcomes and trust, whichever replica is asked.

    Put together at most once a second; numbers of other replicas may be a second older.
    """
    services = services_of(request)
    content = services.dashboards.stats.kept()
    if content is None:
        timeout_s = services.settings.request_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                content = await services.dashboards.stats.content()
        except TimeoutError as exc:
            raise DeadlineExceededError(f"No answer within {timeout_s:g} s.") from exc
    return ContentResponse(content)
