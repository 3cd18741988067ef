"""The parts that stand behind the scorer, opened as the settings say."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import cache

from structlog.typing import FilteringBoundLogger

from app.auth.rate_limit import WINDOW_S, RateLimit
from app.monitoring.metrics import Metrics
from app.outcomes.sweeper import SessionSweeper
from app.quality.model_quality import ModelQuality
from app.scoring.artifact_file import ArtifactFile
from app.scoring.model_holder import ModelHolder
from app.scoring.shadow import Shadow
from app.settings import Settings
from app.store.interface import StateStore
from app.store.outcomes import ClosedSession, OutcomeLimits
from app.store.redis.connection import ConnectionOptions, open_client
from app.store.sessions import RedisStore


def open_shadow(
    settings: Settings,
    models: ModelHolder,
    store: StateStore,
    metrics: Metrics,
    logger: FilteringBoundLogger,
    now_ms: Callable[[], int],
) -> Shadow | None:
    """Return what compares the settings' candidate with the live model; None without one that can be used."""
    if settings.shadow_artifact is None or not settings.shadow_share:
        return None
    try:
        candidate = ArtifactFile(settings.shadow_artifact, None, settings).load()
    except ValueError as exc:
        # A bad candidate must not keep the service from its work.
        logger.error("shadow_refused", reason=str(exc))  # noqa: TRY400 - a bad file needs no traceback
        return None
    return Shadow(
        store,
        candidate,
        live=lambda: models.current.fingerprint,
        share=settings.shadow_share,
        session_idle_s=settings.session_idle_s,
        now_ms=now_ms,
        metrics=metrics,
        logger=logger,
    )


def open_rate_limit(settings: Settings, metrics: Metrics, *, window_s: int = WINDOW_S) -> RateLimit:
    """Return the rate limits of API keys; they connect to Redis at the first request of a key with a limit."""
    return RateLimit(
        # With connections and circuit breakers of its own: an open one lets requests through and is no failing store.
        open_client(settings.redis_url.get_secret_value(), _connection_options(settings)),
        events_per_s=settings.key_events_per_s,
        metrics=metrics,
        window_s=window_s,
    )


def open_store(settings: Settings, metrics: Metrics) -> StateStore:
    """Return the store, which connects to Redis at its first command."""

    def on_breaker(opened: bool) -> None:
        metrics.store_breakers_open.inc(1 if opened else -1)

    # Looking up a metric by its label costs time in each round trip.
    timer = cache(metrics.store_seconds.labels)

    return RedisStore(
        settings.redis_url.get_secret_value(),
        session_idle_s=settings.session_idle_s,
        outcome_grace_s=settings.outcome_grace_s,
        outcomes=OutcomeLimits(most=settings.outcomes_kept, kept_s=settings.outcomes_kept_s),
        options=replace(_connection_options(settings), on_breaker=on_breaker),
        wait_replicas=settings.redis_wait_replicas,
        observe=lambda operation, seconds: timer(operation).observe(seconds),
    )


def open_quality(
    settings: Settings,
    store: StateStore,
    models: ModelHolder,
    metrics: Metrics,
    logger: FilteringBoundLogger,
    now_ms: Callable[[], int],
) -> ModelQuality:
    """Return what compares served scores with outcomes; it is not started yet."""
    return ModelQuality(
        store.outcomes,
        lambda: models.current,
        window_s=settings.trust_window_s,
        now_ms=now_ms,
        metrics=metrics,
        logger=logger,
    )


def open_sweeper(
    settings: Settings,
    store: StateStore,
    metrics: Metrics,
    logger: FilteringBoundLogger,
    *,
    on_closed: Callable[[Sequence[ClosedSession]], Awaitable[None]],
) -> SessionSweeper:
    """Return what closes idle sessions; it is not started yet."""
    return SessionSweeper(
        store.outcomes, every_s=settings.sweep_every_s, on_closed=on_closed, metrics=metrics, logger=logger
    )


def _connection_options(settings: Settings) -> ConnectionOptions:
    return ConnectionOptions(timeout_s=settings.redis_timeout_s, ca_file=settings.redis_ca_file)
