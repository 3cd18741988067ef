"""`GET /v1/stream`: the board and the statistics as server-sent events."""

import asyncio
from typing import Final

from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from app.api.openapi import documented, documented_query
from app.api.services import services_of
from app.board.query import BoardParameters, BoardQuery, parse_query
from app.board.streams import Listener, Streams
from app.errors import InvalidRequestError, ShuttingDownError, TooManyStreamsError

router = APIRouter(tags=["board"])

_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # nginx would hold events back until its buffer is full
    (b"x-accel-buffering", b"no"),
]
# A caller that reads nothing for so long is gone.
_SEND_TIMEOUT_S: Final = 30.0
# Of a `Last-Event-ID`, a time in ms; any other text of that header is ignored.
_MOST_DIGITS: Final = 15


@router.get(
    "/v1/stream",
    summary="The board and the numbers as they change",
    response_class=Response,
    responses={
        **documented(InvalidRequestError, TooManyStreamsError, ShuttingDownError),
        200: {
            "description": "`event: board` with a body of `GET /v1/sessions` when it has changed, `event: stats` with "
            "one of `GET /v1/stats`, `event: interventions` with an array of the rules that have fired since, `event: "
            "problem` with a problem while they cannot be read; comments in between. With a `Last-Event-ID` of the "
            "last ten minutes, decisions since then come first; of the seconds before it, some come twice.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
    },
    openapi_extra={"parameters": documented_query(BoardParameters, without=("cursor",))},
)
async def get_stream(request: Request) -> Response:
    """Answer with a stream: the current state first, then changes, until the caller leaves or the replica stops."""
    query = parse_query(request.scope["query_string"], with_cursor=False)
    last_id = request.headers.get("last-event-id", "")
    after_ms = int(last_id) if last_id.isascii() and last_id.isdigit() and len(last_id) <= _MOST_DIGITS else None
    return EventStream(services_of(request).streams, query, after_ms)


class EventStream(Response):
    """Sends the events of a listener, and frees its place at the end."""

    def __init__(self, streams: Streams, query: BoardQuery, after_ms: int | None) -> None:
        self._streams = streams
        self._query = query
        self._after_ms = after_ms
        self.status_code = 200
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Answer one request."""
        with self._streams.listening(self._query, self._after_ms) as listener:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            leaving = asyncio.create_task(_close_when_left(listener, receive))
            try:
                async for frame in listener.frames():
                    async with asyncio.timeout(_SEND_TIMEOUT_S):
                        await send({"type": "http.response.body", "body": frame, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            except TimeoutError:
                return  # the server cuts off what was not finished
            finally:
                leaving.cancel()


async def _close_when_left(listener: Listener, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    listener.close()
