"""`POST /v1/events`: one event in, the session's probability out; the only place that answers this call.

Most requests by far are this one. The framework's routing, its request object and its layers cost more than the
prediction (docs/performance.md). So one flat ASGI callable before the framework does all of it, in this order:

    request id -> head limit -> scope and rate limit of the key -> body limit -> content type -> body -> event
    -> batcher -> answer -> metrics

Every request takes the same way, whatever its head. `app.api.events` has the call's description for OpenAPI.
"""

import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.bodies import (
    BodyForm,
    asks_control,
    check_headers,
    gunzip,
    out_of_time,
    read_body,
    score_json,
    too_late,
)
from app.api.middleware import KnownRoute, RequestObserver, bounded_body, check_head, first_headers
from app.api.responses import client_gone
from app.api.services import Services
from app.auth.access import Access
from app.auth.middleware import route_path
from app.auth.rate_limit import RateLimit
from app.auth.scopes import Scope as KeyScope
from app.errors import DeadlineExceededError, WillbuyError
from app.runtime.deadlines import RequestTimeout
from app.scoring.parsing import parse_event, with_idempotency_key
from app.settings import Settings

EVENTS_PATH: Final = "/v1/events"
_ROUTE: Final = KnownRoute(EVENTS_PATH)
_JSON: Final = b"application/json"
_PLAIN: Final = BodyForm()


class Ingest:
    """Answers `POST /v1/events` and passes everything else on; ASGI middleware.

    Args:
        app: answers everything else.
        settings: limits of head, body and time.
        services: returns the service's parts, once the service runs.
        access: the keys.
        rate: counts the events of keys that have a limit.
        observer: ids, metrics and failures of requests.
        cors: arguments of Starlette's `CORSMiddleware`; None: no origin is allowed.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        services: Callable[[], Services],
        access: Access,
        rate: RateLimit,
        observer: RequestObserver,
        cors: dict[str, Any] | None,
    ) -> None:
        self._app = app
        self._max_body_bytes = settings.max_body_bytes
        self._timeout_s = settings.request_timeout_s
        self._services = services
        self._access = access
        self._rate = rate
        self._observer = observer
        self._cors = None if cors is None else CORSMiddleware(app, **cors)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or scope["method"] != "POST" or route_path(scope) != EVENTS_PATH:
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        scope["route"] = _ROUTE
        head, observer = first_headers(scope), self._observer
        request_id = observer.begin(head)
        if self._cors is not None:
            send = partial(self._cors.send, send=send, request_headers=Headers(scope=scope))
        status = 0
        try:
            try:
                body = await self._answer(scope, head, receive)
            except Exception as exc:  # noqa: BLE001 - each is answered
                response = self._problem(exc, scope, request_id)
                status, headers, body = response.status_code, response.raw_headers, bytes(response.body)
            else:
                status = 200
                headers = [(b"content-length", b"%d" % len(body)), (b"content-type", _JSON)]
            headers += observer.headers(request_id)
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        finally:
            observer.end("POST", EVENTS_PATH, status, time.perf_counter() - started)

    async def _answer(self, scope: Scope, head: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """Return the answer to one event as JSON."""
        check_head(scope)
        services = self._services()
        is_read = with_control = False
        scopes: Collection[KeyScope] | None = None
        try:
            with RequestTimeout(scope, services.deadlines, self._timeout_s) as timeout:
                if not self._access.is_open:
                    key = self._access.check(scope["headers"], KeyScope.EVENTS_WRITE)
                    scopes = key.scopes
                    if self._rate.is_limited(key):
                        await self._rate.take(key)
                if query := scope["query_string"]:
                    with_control = asks_control(query, scopes)
                receive = bounded_body(head, receive, self._max_body_bytes)
                content_type, content_encoding = head.get(b"content-type"), head.get(b"content-encoding")
                form = _PLAIN
                # Nearly every request declares exactly this.
                if content_type != _JSON or content_encoding is not None:
                    form = check_headers(_text(content_type), _text(content_encoding))
                body = await read_body(receive)
                is_read = True
                event = parse_event(gunzip(body, self._max_body_bytes) if form.is_gzip else body)
                if (key_text := head.get(b"idempotency-key")) and not event.event_id:
                    event = with_idempotency_key(event, key_text)
                queued = services.intake.submission(
                    event, now_ms=services.now_ms(), model=services.models.current, give_up_at=timeout.at
                )
                return score_json(await services.batcher.submit(queued), with_control=with_control)
        except TimeoutError as exc:
            error = DeadlineExceededError(too_late(self._timeout_s))
            raise (error if is_read else await out_of_time(receive, self._timeout_s)) from exc

    def _problem(self, error: Exception, scope: Scope, request_id: bytes) -> Response:
        """Return the answer to a request that failed."""
        if isinstance(error, WillbuyError):
            return self._observer.problem(error)
        if isinstance(error, ClientDisconnect):
            return client_gone()
        return self._observer.failure(error, scope, request_id)


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
