"""What every request passes, as plain ASGI: a name for it, its metrics, a net for failures, and the body's limit."""

import re
import time
from collections.abc import Callable, Mapping
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from app.api.quick_events import started_before
from app.api.request_tally import RequestTally
from app.errors import BodyTooLargeError, WillbuyError, error_response, problem, problem_response
from app.monitoring.logging import REQUEST_ID
from app.monitoring.metrics import Metrics

_REQUEST_ID_HEADER: Final = b"x-request-id"
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestContext:
    """Names, times and counts each request, and turns what nobody caught into a problem of code `internal_error`.

    While the service is draining, every answer asks its caller to connect anew.

    The name is the caller's `X-Request-ID` where it is a sensible one, else one that no other request of any process
    gets; the answer carries it.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        tally: RequestTally,
        logger: FilteringBoundLogger,
        is_draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tally = tally
        self._logger = logger
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _header(scope, _REQUEST_ID_HEADER)
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = self._tally.new_name()
        REQUEST_ID.set(request_id)
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # A list of its own: an answer that is kept for others must not collect names.
                headers = [*message["headers"], (_REQUEST_ID_HEADER, request_id)]
                if self._is_draining():
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
            await send(message)

        started = started_before(scope) or time.perf_counter()
        try:
            await self._app(scope, receive, send_named)
        except Exception:
            name = request_id.decode()
            self._logger.exception("request_failed", request_id=name, path=scope["path"])
            if status:
                raise  # the answer has begun; the server can only cut it off
            self._metrics.errors.labels(WillbuyError.code).inc()
            detail = f"The failure was logged under request id {name}."
            body = problem(500, WillbuyError.code, WillbuyError.title, detail, request_id=name)
            await problem_response(body)(scope, receive, send_named)
        finally:
            # Paths as they came would make a metric an id; the route's template does not.
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._tally.observe(method, route, status, time.perf_counter() - started)


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
        declared = _header(scope, b"content-length")
        if declared is not None and declared.isdigit():
            if int(declared) > most:
                error = _too_large(most)
                self._metrics.errors.labels(error.code).inc()
                await error_response(error)(scope, receive, send)
            else:
                # The server gives no more than what was declared.
                await self._app(scope, receive, send)
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


def _header(scope: Scope, name: bytes) -> bytes | None:
    """Return the first header of that name, in lower case; None without one."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


def _too_large(most: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"Expected a body of at most {most} bytes.")
