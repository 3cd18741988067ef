"""`GET /v1/sessions/{session_id}`: a session as it stands.

The id is the rest of the path, so that ids with slashes work, plain or as `%2F`. Ids of `.` and `..` cannot be read
back by clients that resolve such paths.
"""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response

from app.errors import (
    CorruptRecordError,
    InvalidRequestError,
    SessionNotFoundError,
    StoreUnavailableError,
)
from app.routes.responses import documented, json_response
from app.schemas import SessionId, SessionOut
from app.services import services_of
from app.stores.records import Outcome

router = APIRouter(tags=["sessions"])


@router.get(
    "/v1/sessions/{session_id:path}",
    summary="Read a session",
    response_model=SessionOut,
    responses=documented(SessionNotFoundError, InvalidRequestError, CorruptRecordError, StoreUnavailableError),
)
async def get_session(
    request: Request, session_id: Annotated[SessionId, Path(description="The shop's id; slashes are allowed.")]
) -> Response:
    """Answer with the session's probability and how it came to be; reading changes nothing, lifetime included."""
    (record,) = await services_of(request).store.load([session_id])
    if isinstance(record, Exception):
        raise record
    if record is None:
        raise SessionNotFoundError("The session never was, or it ended and its idle time has passed.")
    session = SessionOut(
        session_id=session_id,
        probability=record.probability,
        events=record.events,
        first_seen=_time(record.first_seen_ms),
        last_seen=_time(record.last_seen_ms),
        model=record.model,
        outcome="open" if record.outcome is Outcome.OPEN else "purchase",
    )
    return json_response(session.model_dump_json().encode())


def _time(timestamp_ms: int) -> datetime:
    return datetime.fromtimestamp(timestamp_ms / 1000, tz=UTC)
