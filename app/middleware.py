"""What every request passes, as plain ASGI: a name for it, its metrics, a net for failures, and the body's limit."""

import re
import time
from collections.abc import Callable, Mapping
from typing import Final
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from app.errors import BodyTooLargeError, WillbuyError, problem
from app.metrics import Metrics
from app.routes.responses import error_response, problem_response

REQUEST_ID_HEADER: Final = "x-request-id"
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestContext:
    """Names, times and counts each request, and turns what nobody caught into a problem of code `internal_error`.

    While the service is draining, every answer asks its caller to connect anew.

    The name is the caller's `X-Request-ID` where it is a sensible one, else a random one; the answer carries it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        logger: FilteringBoundLogger,
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._logger = logger
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid4().hex
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_HEADER] = request_id
                if self._is_draining():
                    headers["connection"] = "close"
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, send_named)
        except Exception:
            self._logger.exception("request_failed", request_id=request_id, path=scope["path"])
            if status:
                raise  # the answer has begun; the server can only cut it off
            self._metrics.errors.labels(WillbuyError.code).inc()
            detail = f"The failure was logged under request id {request_id}."
            body = problem(500, WillbuyError.code, WillbuyError.title, detail, request_id=request_id)
            await problem_response(body)(scope, receive, send_named)
        finally:
            # Paths as they came would make a metric an id; the route's template does not.
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.requests.labels(method, route, status).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started)


class BodyLimit:
    """Refuses bodies of more than `max_body_bytes`: at once where the length is declared, else while reading.

    `exceptions` are paths with a limit of their own.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, exceptions: Mapping[str, int], metrics: Metrics) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._exceptions = exceptions
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._exceptions.get(scope["path"], self._max_body_bytes)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > most:
            error = _too_large(most)
            self._metrics.errors.labels(error.code).inc()
            await error_response(error)(scope, receive, send)
            return
        received_bytes = 0

        async def receive_counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > most:
                raise _too_large(most)
            return message

        await self._app(scope, receive_counted, send)


def _too_large(most: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"Expected a body of at most {most} bytes.")
