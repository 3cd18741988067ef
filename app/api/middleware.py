"""What holds for every request, as plain ASGI: its id, its metrics, its limits, and an answer to unexpected failures.

`POST /v1/events` passes `app.api.ingest` instead of these layers. Both call the same functions, so each rule is
written once.
"""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Final
from urllib.parse import unquote_to_bytes

from fastapi import FastAPI, Response
from prometheus_client import Counter, Histogram
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.typing import FilteringBoundLogger

from app.api.responses import error_answer
from app.auth.middleware import route_path
from app.errors import (
    BodyTooLargeError,
    HeadTooLargeError,
    UnknownPathError,
    WillbuyError,
    problem,
    problem_response,
)
from app.monitoring.logging import REQUEST_ID
from app.monitoring.metrics import Metrics

MAX_HEADERS: Final = 100
# Proxies forward 4 to 16 KiB (nginx: 4 x 8 KiB, ALB: 64 KiB); cookies and traces of real clients fit.
MAX_HEAD_BYTES: Final = 16384
# `name: value\r\n`
_AROUND_BYTES: Final = 4
_REQUEST_ID_HEADER: Final = b"x-request-id"
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(frozen=True, slots=True)
class KnownRoute:
    """A route's template, for the scope of a request that is answered before the routing; metrics and spans read it."""

    path: str


class FrontedFastAPI(FastAPI):
    """FastAPI whose added middleware runs before the framework's own layers instead of inside them.

    A request that middleware answers then costs nothing in the framework, whose layers cost more than an event does.
    """

    front: ASGIApp | None = None

    def move_middleware_to_front(self) -> None:
        """Take over the middleware that was added so far, in its order."""
        front: ASGIApp = super().__call__
        for layer in reversed(self.user_middleware):
            front = layer.cls(front, *layer.args, **layer.kwargs)
        self.user_middleware = []
        self.front = front

    def build_middleware_stack(self) -> ASGIApp:
        """Return the framework's layers without the one that answers unexpected failures in plain text.

        `RequestContext` is outside of them, sees the failure and answers with a problem.
        """
        stack = super().build_middleware_stack()
        return stack.app if isinstance(stack, ServerErrorMiddleware) else stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        await (self.front or super().__call__)(scope, receive, send)


class RequestObserver:
    """Gives each request an id, counts and times its answer, and logs what failed unexpectedly.

    Args:
        metrics: where requests and problems are counted.
        logger: where failures are logged.
        is_draining: whether the service is draining; then every answer asks its caller to connect anew.
    """

    def __init__(
        self, metrics: Metrics, logger: FilteringBoundLogger, *, is_draining: Callable[[], bool] = lambda: False
    ) -> None:
        self._metrics = metrics
        self._logger = logger
        self._is_draining = is_draining
        # A random start and a number: as unique as a random id for each request (0.1 against 1.9 µs).
        self._prefix = os.urandom(8).hex().encode() + b"-"
        self._numbers = count(1)
        # A metric is looked up by its labels once, not for each request.
        self._series: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def begin(self, headers: Mapping[bytes, bytes]) -> bytes:
        """Return the id of a request, and add it to the log lines of the current task.

        The id is the caller's `X-Request-ID` where that is well-formed. Otherwise no other request of any process gets
        the same id.
        """
        request_id = headers.get(_REQUEST_ID_HEADER)
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = b"%b%x" % (self._prefix, next(self._numbers))
        REQUEST_ID.set(request_id)
        return request_id

    def headers(self, request_id: bytes) -> list[tuple[bytes, bytes]]:
        """Return the headers that every answer has."""
        if self._is_draining():
            return [(_REQUEST_ID_HEADER, request_id), (b"connection", b"close")]
        return [(_REQUEST_ID_HEADER, request_id)]

    def problem(self, error: WillbuyError) -> Response:
        """Return an error as a problem; the error is counted, and logged when the service is at fault."""
        return error_answer(error, self._metrics, self._logger)

    def failure(self, error: Exception, scope: Scope, request_id: bytes) -> Response:
        """Return the problem of an unexpected failure, logged and counted."""
        name = request_id.decode()
        self._logger.error("request_failed", request_id=name, path=scope["path"], exc_info=error)
        self._metrics.errors.labels(WillbuyError.code).inc()
        detail = f"The failure was logged under request id {name}."
        return problem_response(problem(500, WillbuyError.code, WillbuyError.title, detail, request_id=name))

    def end(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count and time an answer.

        Args:
            method: of HTTP.
            route: its template; a path would make metrics of ids.
            status: of the answer; 0: there was none.
            seconds: from the request's head to the answer's end.
        """
        labels = (method, route, status)
        series = self._series.get(labels)
        if series is None:
            series = self._metrics.requests.labels(*labels), self._metrics.request_seconds.labels(route)
            self._series[labels] = series
        answered, timed = series
        answered.inc()
        timed.observe(seconds)


class RequestContext:
    """Outermost layer: the request's id, its metrics, the limit of its head, and an answer to unexpected failures."""

    def __init__(self, app: ASGIApp, *, observer: RequestObserver) -> None:
        self._app = app
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = self._observer.begin(first_headers(scope))
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # A new list, because a cached answer is sent again and must not collect ids.
                message["headers"] = [*message["headers"], *self._observer.headers(request_id)]
            await send(message)

        try:
            try:
                check_head(scope)
            except (HeadTooLargeError, UnknownPathError) as exc:
                await self._observer.problem(exc)(scope, receive, send_named)
            else:
                await self._app(scope, receive, send_named)
        except Exception as exc:
            failure = self._observer.failure(exc, scope, request_id)
            if status:
                raise  # the answer has begun, so the server can only close the connection
            await failure(scope, receive, send_named)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._observer.end(method, route, status, time.perf_counter() - started)


class BodyLimit:
    """Refuses bodies of more than `max_body_bytes`; `exceptions` are paths with a limit of their own."""

    def __init__(
        self, app: ASGIApp, *, max_body_bytes: int, exceptions: Mapping[str, int], observer: RequestObserver
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._exceptions = exceptions
        self._observer = observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "http":
            most = self._exceptions.get(route_path(scope), self._max_body_bytes)
            try:
                receive = bounded_body(first_headers(scope), receive, most)
            except BodyTooLargeError as exc:
                await self._observer.problem(exc)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def first_headers(scope: Scope) -> dict[bytes, bytes]:
    """Return the request's headers by their names in lower case; of several of one name, the first."""
    return dict(reversed(scope["headers"]))


def check_head(scope: Scope) -> None:
    """Check the address and the headers of a request.

    Raises:
        HeadTooLargeError: they have more bytes than the limit, or there are more than 100 headers.
        UnknownPathError: the path is not UTF-8; the server puts U+FFFD for what it cannot decode.
    """
    headers = scope["headers"]
    if len(headers) > MAX_HEADERS:
        raise HeadTooLargeError(f"Expected at most {MAX_HEADERS} headers.")
    size = len(scope["path"]) + len(scope["query_string"]) + _AROUND_BYTES * len(headers)
    for name, value in headers:
        size += len(name) + len(value)
    if size > MAX_HEAD_BYTES:
        raise HeadTooLargeError(f"Expected an address and headers of at most {MAX_HEAD_BYTES} bytes in all.")
    if "\ufffd" in scope["path"]:
        try:
            unquote_to_bytes(scope.get("raw_path", b"")).decode()
        except UnicodeDecodeError as exc:
            raise UnknownPathError("The path is not percent-encoded UTF-8.") from exc


def bounded_body(headers: Mapping[bytes, bytes], receive: Receive, max_body_bytes: int) -> Receive:
    """Return `receive`, which raises `BodyTooLargeError` once it has returned more bytes.

    Raises:
        BodyTooLargeError: the declared length is larger.
    """
    declared = headers.get(b"content-length")
    if declared is not None and declared.isdigit():
        if int(declared) > max_body_bytes:
            raise _too_large(max_body_bytes)
        # The server returns no more than the declared length.
        return receive
    received_bytes = 0

    async def receive_counted() -> Message:
        nonlocal received_bytes
        message = await receive()
        received_bytes += len(message.get("body", b""))
        if received_bytes > max_body_bytes:
            raise _too_large(max_body_bytes)
        return message

    return receive_counted


def _too_large(most: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"Expected a body of at most {most} bytes.")
