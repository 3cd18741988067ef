"""An ASGI callable that reads a body and answers: what uvicorn costs by itself.

uvicorn --factory benchmarks.hotpath.peers.nothing:create_app --http httptools --loop uvloop --no-access-log
"""

from starlette.types import ASGIApp, Receive, Scope, Send

_BODY = b'{"session_id": "s-81"}'
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_BODY))]


def create_app() -> ASGIApp:
    """Return the callable."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": _BODY})

    return app
