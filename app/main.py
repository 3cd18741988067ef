"""The one place where the service is put together: `uvicorn --factory app.main:create_app`.

Nothing is global: two apps in one process share nothing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI
from pydantic import ValidationError
from structlog.typing import FilteringBoundLogger

from app.api import board, dashboard, events, operations, outcomes, sessions, stats, stream
from app.api.cached_answers import CachedAnswers
from app.api.events import BATCH_PATH
from app.api.ingest import Ingest
from app.api.middleware import BodyLimit, FrontedFastAPI, RequestContext, RequestObserver
from app.api.openapi import complete_openapi
from app.api.problems import handle_errors
from app.api.services import Services
from app.auth.access import Access
from app.auth.keys import AccessError
from app.auth.scopes import Rules
from app.auth.setup import cors_options, install_auth, log_open_access, read_access, watch_keys
from app.board.dashboards import open_dashboards
from app.monitoring import tracing
from app.monitoring.health import HealthMonitor, Readiness
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.monitoring.session_ids import hide_session_ids
from app.runtime.deadlines import Deadlines
from app.runtime.drain import Drain
from app.runtime.gc import settled_garbage_collector
from app.schemas.board import OutcomesOut
from app.scoring.artifact_file import ArtifactFile
from app.scoring.batcher import Batcher, Callers, Requeue
from app.scoring.events import EventValidator, QueuedEvent
from app.scoring.model_holder import ModelHolder, stamp_of
from app.scoring.scorer import Scorer, max_events_per_session
from app.scoring.session_update import Score
from app.scoring.shadow import Shadow
from app.scoring.tracer import Tracer
from app.settings import Settings, warn_of_removed_settings
from app.store.interface import StateStore
from app.wiring import open_quality, open_rate_limit, open_shadow, open_store, open_sweeper
from model.interface import Model

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_DESCRIPTION: Final = """Post what visitors do; after each event, read how likely the session is to end in a purchase.

Errors are `application/problem+json` (RFC 9457) with a stable `code`."""

# One is stepped while Redis works for the other: the batch route takes 14,700 instead of 11,300 events a second, and
# three bring no more (docs/performance.md).
_BATCHES_AT_ONCE: Final = 2


class StartupError(SystemExit):
    """The service cannot start; the message is one line that says why.

    A `SystemExit`, so that under any server the process ends with status 1 and that line, without a traceback.
    """


def create_app(
    settings: Settings | None = None,
    *,
    model: Model | None = None,
    store: StateStore | None = None,
    tracer_provider: "TracerProvider | None" = None,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> FastAPI:
    """Return the service, ready for a server.

    Args:
        settings: None reads them from the environment.
        model: None loads the settings' artifact.
        store: None uses the settings' Redis; it need not be there yet.
        tracer_provider: makes and sends the spans; None traces as OpenTelemetry's own variables say.
        now_ms: the server's clock.

    Raises:
        StartupError: a setting is invalid, the artifact cannot be used, or nothing says who may ask.
    """
    settings = settings or _settings_from_environment()
    metrics = _metrics()
    logger = _logger(settings, tracer_provider)
    models = _live_model(settings, model, metrics, logger)
    access = _access(settings, logger)
    rate = open_rate_limit(settings, metrics)
    drain = Drain(delay_s=settings.drain_delay_s, logger=logger)
    observer = RequestObserver(metrics, logger, is_draining=lambda: drain.draining)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services, shadow = _start(settings, models, drain, store, metrics, logger, now_ms)
        app.state.services = services
        # Keeps the task from being collected while it runs.
        closing: list[asyncio.Task[None]] = []

        def refuse() -> None:
            # The server waits for open answers, and streams would never end by themselves.
            services.dashboards.streams.close()
            closing.append(asyncio.create_task(services.batcher.close()))

        drain.install(refuse)
        _say_started(models.current, settings, logger)
        try:
            async with watch_keys(settings, access, rate, logger):
                with settled_garbage_collector():
                    yield
        finally:
            drain.uninstall()
            await models.close()
            await services.dashboards.close()
            await services.health.close()
            await services.sweeper.close()
            await services.quality.close()
            await services.batcher.close()
            services.deadlines.close()
            if shadow is not None:
                await shadow.close()
            await services.store.close()
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
        # The framework's own spans carry paths, and paths carry session ids; `app.monitoring.tracing` has ours.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    _include_routes(app)
    rules = Rules(metrics_public=settings.metrics_public)
    complete_openapi(app, rules)
    handle_errors(app, metrics, logger)
    # What is added last sees a request first.
    app.add_middleware(
        BodyLimit,
        max_body_bytes=settings.max_body_bytes,
        exceptions={BATCH_PATH: settings.max_batch_body_bytes},
        observer=observer,
    )
    app.add_middleware(CachedAnswers, dashboards=lambda: app.state.services.dashboards)
    install_auth(app, settings, access, rules, rate, metrics)
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


def _include_routes(app: FastAPI) -> None:
    for module in (events, board, outcomes, sessions, stats, stream, operations):
        app.include_router(module.router)
    app.include_router(dashboard.build_router())


def _start(
    settings: Settings,
    models: ModelHolder,
    drain: Drain,
    store: StateStore | None,
    metrics: Metrics,
    logger: FilteringBoundLogger,
    now_ms: Callable[[], int],
) -> tuple[Services, Shadow | None]:
    """Build and start everything that needs the event loop."""
    models.current.warm_up()
    store = store or open_store(settings, metrics)
    shadow = open_shadow(settings, models, store, metrics, logger, now_ms)

    async def score(
        queued_events: Sequence[QueuedEvent], callers: Callers[Score]
    ) -> Sequence[Score | Exception | Requeue]:
        # A new scorer for each batch, so that a batch keeps its model when another one is loaded. It costs little.
        scorer = Scorer(
            store,
            models.current,
            metrics=metrics,
            logger=logger,
            max_session_events=settings.max_session_events,
            dedupe_window=settings.dedupe_window,
        )
        results = await scorer.score(queued_events, callers)
        if shadow is not None:
            shadow.observe(queued_events, results)
        return results

    batcher: Batcher[QueuedEvent, Score] = Batcher(
        score,
        key=lambda queued: queued.session_id,
        max_batch_size=settings.max_batch_size,
        max_queue=settings.max_queue,
        max_items_per_key=max_events_per_session(settings.dedupe_window),
        max_batches=_BATCHES_AT_ONCE,
    )
    metrics.watch(metrics.queue_length, lambda: batcher.queue_length)
    metrics.queue_capacity.set(settings.max_queue)
    batcher.start()
    if settings.watch_artifact_s:
        models.start_watch(settings.watch_artifact_s)
    if shadow is not None:
        shadow.start()

    quality = open_quality(settings, store, models, metrics, logger, now_ms)
    sweeper = open_sweeper(settings, store, metrics, logger, on_closed=quality.count)
    sweeper.start()
    quality.start()

    async def ended_sessions() -> OutcomesOut:
        purchase, none = await quality.outcomes()
        return OutcomesOut(purchase=purchase, none=none, window_s=settings.trust_window_s)

    readiness = Readiness(store, takes_events=lambda: batcher.running, is_draining=lambda: drain.draining)

    async def live_sessions() -> int:
        return (await store.board.spread(())).live

    health = HealthMonitor(live_sessions, readiness, metrics=metrics, logger=logger)
    health.start()

    services = Services(
        settings=settings,
        metrics=metrics,
        logger=logger,
        models=models,
        drain=drain,
        readiness=readiness,
        health=health,
        store=store,
        intake=EventValidator(settings, metrics),
        deadlines=Deadlines(),
        batcher=batcher,
        # One: a second processor is rarely free, and events go first.
        tracer=Tracer(max_concurrent=1, timeout_s=settings.request_timeout_s, logger=logger),
        sweeper=sweeper,
        quality=quality,
        dashboards=open_dashboards(
            settings,
            store,
            metrics,
            logger,
            queue_length=lambda: batcher.queue_length,
            model=lambda: models.current.fingerprint,
            outcomes=ended_sessions,
            trust=quality.summary,
        ),
        now_ms=now_ms,
    )
    return services, shadow


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


def _logger(settings: Settings, tracer_provider: "TracerProvider | None") -> FilteringBoundLogger:
    """Return the log, which names the current trace, and start tracing."""
    logger = build_logger(
        log_format=settings.log_format,
        log_level=settings.log_level,
        fields=[hide_session_ids(settings.log_session_ids), tracing.add_fields],
    )
    tracing.start(logger, tracer_provider)
    warn_of_removed_settings(logger)
    return logger


# A function, since a name in the lifespan's frame would keep the first model for good.
def _say_started(model: Model, settings: Settings, logger: FilteringBoundLogger) -> None:
    logger.info(
        "started",
        model=model.fingerprint,
        device=model.device,
        device_reason=model.device_reason,
        redis=settings.masked_redis_url,
    )


def _metrics() -> Metrics:
    try:
        return Metrics()
    except ValueError as exc:
        raise StartupError(f"willbuy cannot start: {exc}") from exc


def _live_model(settings: Settings, model: Model | None, metrics: Metrics, logger: FilteringBoundLogger) -> ModelHolder:
    artifact = ArtifactFile(settings.artifact, settings.artifact_sha256, settings)
    stamp = stamp_of(artifact.path)
    try:
        first = model or artifact.load()
    except ValueError as exc:  # ArtifactError is one
        raise StartupError(f"willbuy cannot start: {exc}") from exc
    return ModelHolder(
        first,
        path=artifact.path,
        stamp=stamp,
        load_unless=artifact.load_unless,
        metrics=metrics,
        logger=logger,
    )


def _access(settings: Settings, logger: FilteringBoundLogger) -> Access:
    try:
        access = read_access(settings)
    except AccessError as exc:
        raise StartupError(f"willbuy cannot start: {exc}") from exc
    log_open_access(access, logger)
    return access
