"""The one place where the service is put together: `uvicorn --factory app.main:create_app`.

Nothing is global: two apps in one process share nothing.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from structlog.typing import FilteringBoundLogger

from app.batcher import Batcher
from app.errors import InvalidRequestError, WillbuyError, problem
from app.intake import Intake, Submission, field_errors
from app.logging import build_logger
from app.metrics import Metrics
from app.middleware import BodyLimit, RequestContext
from app.openapi import complete_openapi
from app.routes import events, operations, sessions
from app.routes.responses import error_response, problem_response
from app.scorer import Scorer
from app.services import Services
from app.settings import Settings
from app.stepper import Model
from app.stores.base import StateStore
from app.stores.redis import RedisStore
from app.task import Score
from model.predictor import load_predictor

_DESCRIPTION: Final = """Post what visitors do; after each event, read how likely the session is to end in a purchase.

Errors are `application/problem+json` (RFC 9457) with a stable `code`."""

_FRAMEWORK_CODES: Final = {404: "not_found", 405: "method_not_allowed"}


class StartupError(SystemExit):
    """The service cannot start; the message is one line that says why.

    A `SystemExit`, so that under any server the process ends with status 1 and that line, without a traceback.
    """


def create_app(
    settings: Settings | None = None,
    *,
    model: Model | None = None,
    store: StateStore | None = None,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> FastAPI:
    """Return the service, ready for a server.

    Args:
        settings: None reads them from the environment.
        model: None loads the settings' artifact.
        store: None uses the settings' Redis; it need not be there yet.
        now_ms: the server's clock.

    Raises:
        StartupError: a setting is invalid, or the artifact cannot be used.
    """
    settings = settings or _settings_from_environment()
    model = model or _load_model(settings)
    metrics = Metrics()
    logger = build_logger(log_format=settings.log_format, log_level=settings.log_level)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = _start(settings, model, store, metrics, logger, now_ms)
        app.state.services = services
        logger.info("started", model=model.fingerprint, device=model.device, redis=settings.masked_redis_url)
        try:
            yield
        finally:
            await services.batcher.close()
            await services.store.close()
            logger.info("stopped")

    # No /docs: its page loads scripts from another host, and a service that holds visitors' sessions should not.
    app = FastAPI(
        title="willbuy",
        version=version("willbuy"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for router in (events.router, sessions.router, operations.router):
        app.include_router(router)
    complete_openapi(app)
    _handle_errors(app, metrics, logger)
    app.add_middleware(BodyLimit, max_body_bytes=settings.max_body_bytes, metrics=metrics)
    app.add_middleware(RequestContext, metrics=metrics, logger=logger)
    return app


def _start(
    settings: Settings,
    model: Model,
    store: StateStore | None,
    metrics: Metrics,
    logger: FilteringBoundLogger,
    now_ms: Callable[[], int],
) -> Services:
    """Build and start everything that needs the event loop."""
    model.warm_up()
    metrics.model_info.labels(model.fingerprint).set(1)
    store = store or RedisStore(
        settings.redis_url.get_secret_value(),
        session_idle_s=settings.session_idle_s,
        timeout_s=settings.redis_timeout_s,
        max_connections=settings.redis_max_connections,
        observe=lambda operation, seconds: metrics.store_seconds.labels(operation).observe(seconds),
    )
    scorer = Scorer(
        store,
        model,
        metrics=metrics,
        logger=logger,
        max_session_events=settings.max_session_events,
        dedupe_window=settings.dedupe_window,
        commit_attempts=settings.commit_attempts,
    )
    batcher: Batcher[Submission, Score] = Batcher(
        scorer.score,
        key=lambda submission: submission.session_id,
        max_batch_size=settings.max_batch_size,
        max_queue=settings.max_queue,
    )
    metrics.queue_length.set_function(lambda: batcher.queue_length)
    batcher.start()
    return Services(
        settings=settings,
        metrics=metrics,
        logger=logger,
        model=model,
        store=store,
        intake=Intake(settings, metrics),
        batcher=batcher,
        now_ms=now_ms,
    )


def _settings_from_environment() -> Settings:
    try:
        return Settings()
    except ValidationError as exc:
        faults = [
            "".join(f"WILLBUY_{str(part).upper()}: " for part in error["loc"][:1])
            + error["msg"].removeprefix("Value error, ")
            for error in exc.errors(include_url=False, include_context=False, include_input=False)
        ]
        raise StartupError("willbuy cannot start: " + "; ".join(faults)) from exc


def _load_model(settings: Settings) -> Model:
    try:
        return load_predictor(
            settings.artifact,
            device=settings.device,
            state_dtype=settings.state_dtype,
            max_batch_size=settings.max_batch_size,
            sha256=settings.artifact_sha256,
            # One a worker: workers with a full set each oversubscribe the cores.
            threads=1,
        )
    except ValueError as exc:  # ArtifactError is one
        raise StartupError(f"willbuy cannot start: {exc}") from exc


def _handle_errors(app: FastAPI, metrics: Metrics, logger: FilteringBoundLogger) -> None:
    """Make every error a problem, those of the framework too."""

    async def on_error(_request: Request, exc: Exception) -> Response:
        if not isinstance(exc, WillbuyError):  # pragma: no cover - registered for this class alone
            raise exc
        metrics.errors.labels(exc.code).inc()
        if exc.status == 500:  # noqa: PLR2004 - a status is its own name
            logger.error("request_failed", code=exc.code, detail=exc.detail, cause=repr(exc.__cause__))
        return error_response(exc)

    async def on_http_error(_request: Request, exc: Exception) -> Response:
        if not isinstance(exc, HTTPException):  # pragma: no cover - registered for this class alone
            raise exc
        code = _FRAMEWORK_CODES.get(exc.status_code, "http_error")
        metrics.errors.labels(code).inc()
        title = str(exc.detail)
        body = problem(exc.status_code, code, title, f"{title}; /openapi.json lists what there is.")
        return problem_response(body, dict(exc.headers or {}))

    async def on_invalid_request(request: Request, exc: Exception) -> Response:
        if not isinstance(exc, RequestValidationError):  # pragma: no cover - registered for this class alone
            raise exc
        errors = field_errors([{**error, "loc": error["loc"][1:]} for error in exc.errors()])
        detail = "; ".join(f"{error['field']}: {error['message']}" for error in errors)
        return await on_error(request, InvalidRequestError(detail, errors))

    async def on_disconnect(_request: Request, _exc: Exception) -> Response:
        # Nobody is there to read it; the status is for the metrics.
        return Response(status_code=499)

    app.add_exception_handler(WillbuyError, on_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
    app.add_exception_handler(ClientDisconnect, on_disconnect)
