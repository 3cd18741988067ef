"""The ASGI application: `uvicorn --factory app.main:create_app`.

Nothing is global: two apps in one process share nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, Protocol

from fastapi import FastAPI
from pydantic import ValidationError
from structlog.typing import FilteringBoundLogger

from app.api import board, dashboard, events, interventions, operations, outcomes, sessions, stream, tokens, vendors
from app.api.events import BATCH_PATH
from app.api.ingest import Ingest
from app.api.middleware import BodyLimit, FrontedFastAPI, RequestContext, RequestObserver
from app.api.openapi import complete_openapi
from app.api.responses import handle_errors
from app.api.services import Services
from app.auth.scopes import Rules
from app.auth.setup import cors_options, following_keys, install_auth, log_open_access, read_access
from app.auth.tokens import TokenStore
from app.monitoring import tracing
from app.monitoring.logging import build_logger, hide_session_ids, start_error
from app.monitoring.metrics import Metrics
from app.runtime.drain import Drain
from app.runtime.gc import settled_garbage_collector
from app.settings import Settings, faults_of, warn_of_ignored_settings
from app.store.interface import StateStore
from app.store.keys import Keys
from app.wiring import log_started, open_models, open_rate_limit, open_rule_file, running_services
from model.clock import now_ms
from model.interface import Model

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_DESCRIPTION: Final = """Post what visitors do; each answer has the probability that the session ends in a purchase.

Errors are `application/problem+json` (RFC 9457) with a stable `code`."""


class Feed(Protocol):
    """Brings events into the service by another way than requests."""

    async def start(self, services: Services) -> None:
        """Begin; call once, when the services run."""
        ...

    async def close(self) -> None:
        """Take no more events, and finish those that were taken; may be called again."""
        ...


class StartupError(SystemExit):
    """The service cannot start; the message is one line that says why.

    A `SystemExit`, so that under any server the process ends with status 1 and that line, without a traceback. The line
    has the form of the log.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(start_error(reason))


def create_app(
    settings: Settings | None = None,
    *,
    model: Model | None = None,
    store: StateStore | None = None,
    tracer_provider: "TracerProvider | None" = None,
    now_ms: Callable[[], int] = now_ms,
    feed: Feed | None = None,
) -> FastAPI:
    """Return the service, ready for a server.

    Args:
        settings: None reads them from the environment.
        model: None loads the settings' artifact.
        store: None uses the settings' Redis; it need not be there yet.
        tracer_provider: makes and sends the spans; None traces as OpenTelemetry's own variables say.
        now_ms: the server's clock.
        feed: brings events beside those of requests; None: there is none.

    Raises:
        StartupError: a setting is invalid, a file of it cannot be used, or there are neither keys nor open access.
    """
    settings = settings or _settings_from_environment()
    try:
        metrics = Metrics()
        logger = _logger(settings, tracer_provider)
        models = open_models(settings, model, metrics, logger)
        rule_file = open_rule_file(settings, models, now_ms=now_ms, logger=logger)
        access = read_access(settings)
        rate = open_rate_limit(settings, metrics)
    except ValueError as exc:  # ArtifactError, AccessError and RulesError among them
        raise StartupError(str(exc)) from exc
    log_open_access(access, logger)
    drain = Drain(delay_s=settings.drain_delay_s, logger=logger)
    observer = RequestObserver(metrics, logger, is_draining=lambda: drain.draining)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with (
            running_services(
                settings, models, drain, rule_file, store=store, metrics=metrics, logger=logger, now_ms=now_ms
            ) as services,
            following_keys(settings, access, rate, logger),
        ):
            app.state.services = services
            # Keeps the task from being collected while it runs.
            closing: list[asyncio.Task[None]] = []

            def refuse() -> None:
                # The server waits for open answers, and streams would never end by themselves.
                services.streams.close()
                closing.append(asyncio.create_task(_end_events(services, feed)))

            drain.install(refuse)
            # Not inlined: a local variable here would keep the first model alive after a reload.
            log_started(models.current, settings, logger)
            try:
                async with _fed(services, feed):
                    with settled_garbage_collector():
                        yield
            finally:
                drain.uninstall()
        await tracing.close()
        logger.info("stopped")

    # No /docs: its page loads scripts from another host, and a service that holds visitors' sessions should not.
    app = FrontedFastAPI(
        title="willbuy",
        version=version("willbuy"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": "/", "description": "this service"}],
        # Names for the functions of generated clients.
        generate_unique_id_function=lambda route: route.name,
        # The framework's own spans carry paths, and paths carry session ids; `app.monitoring.tracing` has ours.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    _include_routes(app)
    rules = Rules(metrics_public=settings.metrics_public)
    complete_openapi(app, rules)
    handle_errors(app, rules, metrics, logger)
    # What is added last sees a request first.
    app.add_middleware(
        BodyLimit,
        max_body_bytes=settings.max_body_bytes,
        exceptions=dict.fromkeys((BATCH_PATH, *vendors.INGEST_PATHS), settings.max_batch_body_bytes),
        observer=observer,
    )
    app.add_middleware(board.CachedAnswers, services=lambda: app.state.services)
    app.state.tokens = TokenStore(rate.client, keys=Keys(settings.redis_key_prefix))
    install_auth(app, settings, access, rules, rate=rate, tokens=app.state.tokens, metrics=metrics)
    app.add_middleware(RequestContext, observer=observer)
    app.add_middleware(
        Ingest,
        settings=settings,
        services=lambda: app.state.services,
        access=access,
        rate=rate,
        observer=observer,
        cors=cors_options(settings),
    )
    if tracing.is_enabled():
        app.add_middleware(tracing.RequestSpans)
    app.move_middleware_to_front()
    return app


@asynccontextmanager
async def _fed(services: Services, feed: Feed | None) -> AsyncIterator[None]:
    if feed is None:
        yield
        return
    await feed.start(services)
    try:
        yield
    finally:
        await feed.close()


async def _end_events(services: Services, feed: Feed | None) -> None:
    """Take no more events, and finish those that were taken."""
    if feed is not None:
        await feed.close()
    await services.batcher.close()


def _include_routes(app: FastAPI) -> None:
    for module in (events, vendors, board, outcomes, sessions, stream, interventions, tokens, operations):
        app.include_router(module.router)
    app.include_router(dashboard.build_router())


def _settings_from_environment() -> Settings:
    try:
        return Settings()
    except ValidationError as exc:
        raise StartupError("; ".join(faults_of(exc))) from exc


def _logger(settings: Settings, tracer_provider: "TracerProvider | None") -> FilteringBoundLogger:
    """Return the log, which names the current trace, and start tracing."""
    logger = build_logger(
        log_level=settings.log_level,
        fields=[hide_session_ids(settings.log_session_ids), tracing.add_fields],
    )
    tracing.start(logger, tracer_provider)
    warn_of_ignored_settings(logger)
    return logger
