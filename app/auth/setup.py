"""From the settings to the door and what stands behind it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from structlog.typing import FilteringBoundLogger

from app.auth.access import Access
from app.auth.key_file import KeyFile
from app.auth.keys import AccessError, read_keys
from app.auth.middleware import AccessControl
from app.auth.rate_limit import RateLimit
from app.auth.scopes import Rules
from app.monitoring.metrics import Metrics
from app.settings import Settings

_NO_KEYS: Final = (
    "there are no API keys: name a file of them in WILLBUY_API_KEYS_FILE (`willbuy key new` makes keys), "
    "or set WILLBUY_OPEN_ACCESS=true (`willbuy serve --open`) to let in whoever reaches the service"
)

_CORS_METHODS: Final = ("GET", "POST", "DELETE")
_CORS_REQUEST_HEADERS: Final = ("Authorization", "Content-Type", "If-None-Match", "X-API-Key", "X-Request-ID")
_CORS_ANSWER_HEADERS: Final = ("ETag", "Retry-After", "X-Request-ID")


def read_access(settings: Settings) -> Access:
    """Return who may ask; raise `AccessError` when the settings do not say it, or say two things."""
    keys = () if settings.api_keys_file is None else read_keys(settings.api_keys_file)
    if settings.open_access:
        if keys:
            raise AccessError("WILLBUY_OPEN_ACCESS=true lets in everybody: take it away, or the API keys")
        return Access(None)
    if not keys:
        raise AccessError(_NO_KEYS)
    return Access(keys)


@asynccontextmanager
async def watch_keys(
    settings: Settings, access: Access, rate: RateLimit, logger: FilteringBoundLogger
) -> AsyncIterator[None]:
    """Follow the keys' file, where there is one, for as long as the service runs; at the end close what was opened."""
    file = None
    if settings.api_keys_file is not None:
        file = KeyFile(settings.api_keys_file, access, logger)
        file.start()
    try:
        yield
    finally:
        if file is not None:
            await file.close()
        await rate.close()


def install_auth(
    app: FastAPI, settings: Settings, access: Access, rules: Rules, rate: RateLimit, metrics: Metrics
) -> None:
    """Add the check of keys and scopes, and outside of it CORS, to the middleware that the app has so far."""
    app.add_middleware(AccessControl, access=access, rules=rules, rate=rate, metrics=metrics)
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
    """Say in the log, loudly, that everybody may do everything."""
    if access.is_open:
        logger.warning(
            "open_access",
            detail="Whoever reaches this service may read and write every session: WILLBUY_OPEN_ACCESS is on.",
        )
