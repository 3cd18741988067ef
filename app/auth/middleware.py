"""Checks the key of every request before its body is read, its route is found, or a cached answer is given."""

import asyncio
from functools import partial
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth.access import Access
from app.auth.keys import ApiKey
from app.auth.rate_limit import RateLimit
from app.auth.scopes import Methods, Rules
from app.errors import DeadlineExceededError, UnauthorizedError, WillbuyError, error_response, problem, problem_response
from app.monitoring.metrics import Metrics

KEY_NAME: Final = "willbuy.key"
"""Entry of the ASGI scope with the name of the request's key."""

COUNT_EVENTS: Final = "willbuy.count_events"
"""Entry of the ASGI scope of a batch whose key has a limit: an async function that takes the number of its events, and
raises `RateLimitedError`."""

_BATCH_PATH: Final = "/v1/events/batch"
_STREAM_PATH: Final = "/v1/stream"


class AccessControl:
    """ASGI middleware: passes on requests whose key has the needed scope; with open access, all requests.

    Args:
        app: serves the accepted requests.
        access: the accepted keys.
        rules: the scope that each call needs. An unknown call is 404 or 405 with an accepted key, and 401 without.
        rate: counts the requests of keys that have a limit.
        metrics: counts refusals.
        timeout_s: longest wait for the count of a request, s.
    """

    def __init__(
        self, app: ASGIApp, *, access: Access, rules: Rules, rate: RateLimit, metrics: Metrics, timeout_s: float = 2.0
    ) -> None:
        self._timeout_s = timeout_s
        self._app = app
        self._access = access
        self._rules = rules
        self._rate = rate
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http" or self._access.is_open:
            await self._app(scope, receive, send)
            return
        path = route_path(scope)
        methods = self._rules.methods(path)
        method = scope["method"]
        if methods is None or method not in methods:
            await self._refuse_unknown(methods, scope, receive, send)
            return
        needed = methods[method]
        if needed is None:
            await self._app(scope, receive, send)
            return
        try:
            key = self._access.check(scope["headers"], needed)
            scope[KEY_NAME] = key.name
            if self._rate.is_limited(key):
                async with asyncio.timeout(self._timeout_s):
                    await self._rate.take(key)
                if path == _BATCH_PATH:
                    scope[COUNT_EVENTS] = partial(self._count_more, key)
        except (WillbuyError, TimeoutError) as exc:
            error = (
                exc
                if isinstance(exc, WillbuyError)
                else DeadlineExceededError(f"No answer within {self._timeout_s:g} s.")
            )
            self._metrics.errors.labels(error.code).inc()
            await error_response(error)(scope, receive, send)
            return
        if path == _STREAM_PATH:
            receive = _until_revoked(self._access, key, receive)
        await self._app(scope, receive, send)

    async def _count_more(self, key: ApiKey, events: int) -> None:
        """Count the events of a batch; the request itself was counted as the first of them."""
        if events > 1:
            await self._rate.take(key, events - 1)

    async def _refuse_unknown(self, methods: Methods | None, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 404 or 405 to a request with an accepted key, and 401 to others."""
        try:
            self._access.holder(scope["headers"])
        except UnauthorizedError as exc:
            self._metrics.errors.labels(exc.code).inc()
            await error_response(exc)(scope, receive, send)
            return
        status, code, title = (404, "not_found", "Not Found")
        headers: dict[str, str] = {}
        if methods is not None:
            status, code, title = (405, "method_not_allowed", "Method Not Allowed")
            headers = {"Allow": ", ".join(methods)}
        body = problem(status, code, title, f"{title}; /openapi.json lists what there is.")
        await problem_response(body, headers)(scope, receive, send)


def holder_of(scope: Scope) -> str | None:
    """Return the name of a request's key; None with open access."""
    name: str | None = scope.get(KEY_NAME)
    return name


def route_path(scope: Scope) -> str:
    """Return the path without the prefix that a proxy adds, as Starlette's routes match it."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    return path[len(prefix) :] if prefix and path.startswith(f"{prefix}/") else path


def _until_revoked(access: Access, key: ApiKey, receive: Receive) -> Receive:
    """Return a `receive` that reports a disconnect once the key is revoked, so that its stream ends."""

    async def receive_until_revoked() -> Message:
        message = asyncio.ensure_future(receive())
        try:
            while access.knows(key):
                changed = asyncio.ensure_future(access.changed.wait())
                try:
                    await asyncio.wait({message, changed}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if message.done():
                    return message.result()
            return {"type": "http.disconnect"}
        finally:
            message.cancel()

    return receive_until_revoked
