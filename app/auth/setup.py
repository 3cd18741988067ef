"""Access control as the settings ask for: the API keys, their file, the rate limit, and the layers around the app."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from structlog.typing import FilteringBoundLogger

from app.auth.access import Access
from app.auth.keys import AccessError, read_keys
from app.auth.middleware import AccessControl
from app.auth.rate_limit import RateLimit
from app.auth.scopes import Rules
from app.auth.tokens import TokenStore
from app.monitoring.metrics import Metrics
from app.runtime.file_watch import FileWatch, Stamp
from app.settings import Settings

# A change is in use after two checks, so within a second.
KEYS_CHECKED_EVERY_S: Final = 0.5

_NO_KEYS: Final = (
    "there are no API keys: name a file of them in WILLBUY_API_KEYS_FILE (`willbuy key new` makes keys), "
    "or set WILLBUY_OPEN_ACCESS=true (`willbuy serve --open`) to accept requests without a key"
)

_CORS_METHODS: Final = ("GET", "POST", "DELETE")
_CORS_REQUEST_HEADERS: Final = (
    *("Authorization", "Content-Type", "Idempotency-Key", "If-None-Match", "X-API-Key", "X-Request-ID"),
)
_CORS_ANSWER_HEADERS: Final = ("ETag", "Retry-After", "X-Request-ID")


def read_access(settings: Settings) -> Access:
    """Return the accepted keys; raise `AccessError` unless there are either keys or open access."""
    try:
        keys = () if settings.api_keys_file is None else read_keys(settings.api_keys_file)
    except AccessError as exc:
        raise AccessError(f"WILLBUY_API_KEYS_FILE: {exc}") from exc
    if settings.open_access:
        if keys:
            raise AccessError("WILLBUY_OPEN_ACCESS=true lets in everybody: remove it, or remove the API keys")
        return Access(None)
    if not keys:
        raise AccessError(_NO_KEYS)
    return Access(keys)


@asynccontextmanager
async def following_keys(
    settings: Settings, access: Access, rate: RateLimit, logger: FilteringBoundLogger
) -> AsyncIterator[None]:
    """Read the key file again when it changes, for as long as the context lasts; then close the rate limit.

    A file that cannot be used is an error in the log and changes nothing: a typing error must not lock the shop out.
    """
    async with AsyncExitStack() as closing:
        closing.push_async_callback(rate.close)
        if settings.api_keys_file is not None:
            watch = _key_watch(settings.api_keys_file, access, logger)
            watch.start()
            closing.push_async_callback(watch.close)
        yield


def install_auth(
    app: FastAPI,
    settings: Settings,
    access: Access,
    rules: Rules,
    *,
    rate: RateLimit,
    tokens: TokenStore,
    metrics: Metrics,
) -> None:
    """Add the check of keys and scopes, and outside of it CORS, to the middleware that the app has so far."""
    app.add_middleware(
        AccessControl,
        access=access,
        rules=rules,
        rate=rate,
        tokens=tokens,
        metrics=metrics,
        timeout_s=settings.request_timeout_s,
    )
    if (cors := cors_options(settings)) is not None:
        # Outside of the check: a browser's preflight request carries no key.
        app.add_middleware(CORSMiddleware, **cors)


def cors_options(settings: Settings) -> dict[str, Any] | None:
    """Return the arguments of Starlette's `CORSMiddleware`; None when the settings allow no origin."""
    if not settings.cors_origins:
        return None
    return {
        "allow_origins": settings.cors_origins,
        "allow_methods": _CORS_METHODS,
        "allow_headers": _CORS_REQUEST_HEADERS,
        "expose_headers": _CORS_ANSWER_HEADERS,
    }


def log_open_access(access: Access, logger: FilteringBoundLogger) -> None:
    """Log a warning when access is open."""
    if access.is_open:
        logger.warning(
            "open_access",
            detail="Everybody who reaches this service may read and write every session: WILLBUY_OPEN_ACCESS is on.",
        )


def _key_watch(path: Path, access: Access, logger: FilteringBoundLogger) -> FileWatch:
    async def read_again(_stamp: Stamp | None) -> None:
        try:
            # In a thread: the file may be on a network file system that hangs.
            keys = await asyncio.to_thread(read_keys, path)
        except AccessError as exc:
            logger.error("api_keys_refused", reason=str(exc))  # noqa: TRY400 - a bad file needs no traceback
            return
        if access.replace(keys):
            logger.info("api_keys_read", names=sorted({key.name for key in keys}), count=len(keys))

    # Without a known stamp: the file may have changed since the service read it.
    return FileWatch(
        path, read_again, every_s=KEYS_CHECKED_EVERY_S, name="key-file", logger=logger, failed="api_keys_watch_failed"
    )
