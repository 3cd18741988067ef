"""Checks the key of every request before its body is read, its route is found, or a cached answer is given."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.auth.access import Access
from app.auth.keys import ApiKey
from app.auth.rate_limit import RateLimit
from app.auth.scopes import INGEST_PATH, Methods, Rules
from app.auth.scopes import Scope as KeyScope
from app.auth.tokens import TokenStore, token_of
from app.auth.vendors import CHECK_SIGNATURE, key_headers, signature_of, signer_of
from app.errors import (
    DeadlineExceededError,
    ForbiddenError,
    UnauthorizedError,
    WillbuyError,
    error_response,
    problem,
    problem_response,
)
from app.monitoring.metrics import Metrics

KEY_NAME: Final = "willbuy.key"
"""Entry of the ASGI scope with the name of the request's key."""

KEY_SCOPES: Final = "willbuy.key_scopes"
"""Entry of the ASGI scope with the scopes of the request's key; absent with open access."""

_KEY_SHA256: Final = "willbuy.key_sha256"

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
        tokens: what tokens of browsers allow.
        timeout_s: longest wait for Redis, s.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        access: Access,
        rules: Rules,
        rate: RateLimit,
        tokens: TokenStore,
        metrics: Metrics,
        timeout_s: float = 2.0,
    ) -> None:
        self._timeout_s = timeout_s
        self._app = app
        self._access = access
        self._rules = rules
        self._rate = rate
        self._tokens = tokens
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = route_path(scope)
        sent, query = token_of(scope["headers"], scope["query_string"])
        headers, query = key_headers(path, scope["headers"], query)
        # Routes know no such parameters, and they belong in no log.
        scope["query_string"] = query
        if self._access.is_open:
            await self._app(scope, receive, send)
            return
        methods = self._rules.methods(path)
        method = scope["method"]
        if methods is None or method not in methods:
            await self._refuse_unknown(methods, scope, receive, send)
            return
        needed = methods[method]
        if needed is None:
            await self._app(scope, receive, send)
            return
        if (signature := signature_of(path, headers)) is not None and self._access.signers:
            scope[CHECK_SIGNATURE] = partial(self._check_signature, scope, signature)
            await self._app(scope, receive, send)
            return
        left_s: float | None = None
        try:
            if sent is None:
                key = self._access.check(headers, needed)
            else:
                async with asyncio.timeout(self._timeout_s):
                    key, left_s = await self._by_token(sent, method, path)
            _name_key(scope, key)
            if self._rate.is_limited(key):
                await self._limit(key, scope, path)
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
            receive = _until_revoked(self._access, key, receive, left_s)
        await self._app(scope, receive, send)

    def _check_signature(self, scope: Scope, signature: bytes, texts: Sequence[bytes]) -> None:
        """Take a request for one of the key whose secret signed it; raise `UnauthorizedError` where none did."""
        key = signer_of(signature, texts, self._access.signers)
        _name_key(scope, key)
        if self._rate.is_limited(key):
            scope[COUNT_EVENTS] = partial(self._rate.take, key)

    async def _by_token(self, sent: str, method: str, path: str) -> tuple[ApiKey, float]:
        """Return the key that a token was made with, and the seconds until the token's end.

        Raises:
            UnauthorizedError: the token is unknown, or has ended.
            ForbiddenError: it does not allow the call.
            StoreError: Redis does not answer.
        """
        found = await self._tokens.find(sent)
        key = None if found is None else self._access.of_digest(found.key_sha256)
        if found is None or key is None or KeyScope.SESSIONS_READ not in key.scopes:
            raise UnauthorizedError("The service does not know this token, or it has ended.", came_with_key=True)
        if not found.allows(method, path):
            what = "the board" if found.session_id is None else "one session"
            raise ForbiddenError(f"This token allows to read {what}, and nothing else.", KeyScope.SESSIONS_READ)
        return key, found.left_s

    async def _limit(self, key: ApiKey, scope: Scope, path: str) -> None:
        """Count the request of a key with a limit; the events of a batch are counted when they are known.

        Raises:
            RateLimitedError: the limit is exceeded.
            TimeoutError: Redis does not answer.
        """
        async with asyncio.timeout(self._timeout_s):
            await self._rate.take(key)
        if path == _BATCH_PATH or path.startswith(INGEST_PATH):
            scope[COUNT_EVENTS] = partial(self._count_more, key)

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


def key_sha256_of(scope: Scope) -> str:
    """Return the SHA-256 of a request's key in hexadecimal; empty with open access."""
    digest: str = scope.get(_KEY_SHA256, "")
    return digest


def route_path(scope: Scope) -> str:
    """Return the path without the prefix that a proxy adds, as Starlette's routes match it."""
    path: str = scope["path"]
    prefix: str = scope.get("root_path", "")
    return path[len(prefix) :] if prefix and path.startswith(f"{prefix}/") else path


def _name_key(scope: Scope, key: ApiKey) -> None:
    """Put the key of a request where routes find it."""
    scope[KEY_NAME] = key.name
    scope[KEY_SCOPES] = key.scopes
    scope[_KEY_SHA256] = key.sha256


def _until_revoked(access: Access, key: ApiKey, receive: Receive, left_s: float | None) -> Receive:
    """Return a `receive` that reports a disconnect once the key is revoked or a time is over, so that streams end."""
    loop = asyncio.get_running_loop()
    until_s = None if left_s is None else loop.time() + left_s

    async def receive_until_revoked() -> Message:
        message = asyncio.ensure_future(receive())
        try:
            while access.knows(key) and (until_s is None or loop.time() < until_s):
                changed = asyncio.ensure_future(access.changed.wait())
                try:
                    wait_s = None if until_s is None else max(0.0, until_s - loop.time())
                    await asyncio.wait({message, changed}, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if message.done():
                    return message.result()
            return {"type": "http.disconnect"}
        finally:
            message.cancel()

    return receive_until_revoked
