"""The one place that wires: from the settings to running parts, started in order and closed in reverse order."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Final, Protocol

from structlog.typing import FilteringBoundLogger

from app.api.services import Services
from app.auth.rate_limit import WINDOW_S, RateLimit
from app.board.carts import carts_of
from app.board.content import Content
from app.board.meter import Meter
from app.board.query import BoardQuery
from app.board.reader import read_board
from app.board.stake import AtStake
from app.board.stats import STATS_INTERVAL_S, Stats
from app.board.streams import Streams
from app.interventions.experiments import Experiments
from app.interventions.idle import IdleRules
from app.interventions.rule_file import RuleFile
from app.interventions.sender import WebhookSender
from app.monitoring.failures import Failures
from app.monitoring.health import HealthMonitor, Readiness
from app.monitoring.metrics import Metrics
from app.outcomes.sweeper import SessionSweeper
from app.quality.model_quality import ModelQuality
from app.runtime.deadlines import Deadlines
from app.runtime.drain import Drain
from app.runtime.file_watch import stamp_of
from app.runtime.single_flight import SingleFlightCache
from app.scoring.batcher import Batcher, Callers, Requeue
from app.scoring.events import EventValidator, QueuedEvent
from app.scoring.model_holder import ArtifactFile, ModelHolder
from app.scoring.rebuilder import Rebuilder
from app.scoring.scorer import Scorer, max_events_per_session
from app.scoring.session_update import Score
from app.scoring.shadow import Shadow
from app.scoring.tracer import Tracer
from app.settings import Settings
from app.store.interface import StateStore
from app.store.keys import Keys
from app.store.outcomes import OutcomeLimits
from app.store.redis.connection import ConnectionOptions, open_client
from app.store.sessions import RedisStore
from model.artifact import ArtifactError, BaseRateUnknownError, Manifest, read_manifest
from model.interface import Model

# One batch is stepped while Redis works for the other: the batch route takes 14,700 instead of 11,300 events a second,
# and three bring no more (docs/performance.md).
_BATCHES_AT_ONCE: Final = 2
# However many dashboards poll, a replica reads a page of the board at most twice a second.
BOARD_KEPT_S: Final = 0.5
# Scoring goes first: readings of the board use at most so many connections to Redis at a time.
_BOARD_READINGS_AT_ONCE: Final = 2


class _Part(Protocol):
    def start(self) -> None: ...

    async def close(self) -> None: ...


@asynccontextmanager
async def running_services(
    settings: Settings,
    models: ModelHolder,
    drain: Drain,
    rule_file: RuleFile,
    *,
    store: StateStore | None,
    metrics: Metrics,
    logger: FilteringBoundLogger,
    now_ms: Callable[[], int],
) -> AsyncIterator[Services]:
    """Run the parts that need the event loop, for as long as the context lasts.

    Args:
        settings: the settings.
        models: the model in use.
        drain: whether the replica is shutting down.
        rule_file: the rules and webhooks.
        store: None uses the settings' Redis.
        metrics: where everything is counted.
        logger: the log.
        now_ms: the server's clock.
    """
    models.current.warm_up()
    store = store or open_store(settings, metrics, logger)
    async with AsyncExitStack() as closing:
        closing.push_async_callback(store.close)

        def run(part: _Part) -> None:
            part.start()
            closing.push_async_callback(part.close)

        shadow = open_shadow(settings, models, store, metrics=metrics, logger=logger, now_ms=now_ms)
        if shadow is not None:
            run(shadow)
        deadlines = Deadlines()
        deadlines.start()
        closing.callback(deadlines.close)
        rebuilder = Rebuilder(store, metrics=metrics, logger=logger)
        closing.push_async_callback(rebuilder.close)
        run(rule_file)
        experiments, sender = await closing.enter_async_context(
            running_interventions(rule_file, store, metrics=metrics, logger=logger, now_ms=now_ms)
        )
        batcher = open_batcher(settings, models, store, rebuilder, rule_file, shadow, metrics=metrics, logger=logger)
        run(batcher)
        quality = ModelQuality(
            store.outcomes,
            lambda: models.current,
            window_s=settings.trust_window_s,
            idle_s=settings.session_idle_s,
            now_ms=now_ms,
            metrics=metrics,
            logger=logger,
        )
        run(quality)
        sweeper = SessionSweeper(
            store.outcomes, every_s=settings.sweep_every_s, on_closed=quality.count, metrics=metrics, logger=logger
        )
        run(sweeper)
        idle_rules = IdleRules(store, lambda: rule_file.decider, now_ms=now_ms, metrics=metrics, logger=logger)
        run(idle_rules)
        readiness = Readiness(store, takes_events=lambda: batcher.running, is_draining=lambda: drain.draining)

        async def live_sessions() -> int:
            return (await store.board.spread(())).live

        health = HealthMonitor(live_sessions, readiness, metrics=metrics, logger=logger)
        run(health)
        carts = carts_of(lambda: models.current)
        board: SingleFlightCache[BoardQuery, Content] = SingleFlightCache(
            partial(read_board, store.board, carts, now_ms), kept_s=BOARD_KEPT_S, most_at_once=_BOARD_READINGS_AT_ONCE
        )
        closing.push_async_callback(board.close)
        reporter = Stats(
            store,
            Meter(
                metrics,
                queue_length=lambda: batcher.queue_length,
                queue_capacity=settings.max_queue,
                clock_s=time.monotonic,
            ),
            model=lambda: models.current.fingerprint,
            outcomes=quality.outcomes,
            quality=quality.summary,
            at_stake=AtStake(store.board, carts),
            logger=logger,
        )
        run(reporter)
        stats: SingleFlightCache[None, Content] = SingleFlightCache(lambda _: reporter.read(), kept_s=STATS_INTERVAL_S)
        closing.push_async_callback(stats.close)
        streams = Streams(
            board=board.get,
            stats=lambda: stats.get(None),
            decisions=store.decisions,
            has_rules=lambda: rule_file.decider is not None,
            most_streams=settings.max_streams,
            logger=logger,
        )
        metrics.watch(metrics.streams_open, lambda: streams.open)
        closing.callback(streams.close)
        if settings.watch_artifact_s:
            models.start_watch()
            closing.push_async_callback(models.close)
        yield Services(
            settings=settings,
            metrics=metrics,
            logger=logger,
            models=models,
            drain=drain,
            readiness=readiness,
            store=store,
            intake=EventValidator(settings, metrics, logger),
            batcher=batcher,
            tracer=Tracer(max_concurrent=1, timeout_s=settings.request_timeout_s, logger=logger),
            board=board,
            stats=stats,
            quality=quality,
            streams=streams,
            experiments=experiments,
            sender=sender,
            deadlines=deadlines,
            now_ms=now_ms,
        )


@asynccontextmanager
async def running_interventions(
    rule_file: RuleFile,
    store: StateStore,
    *,
    metrics: Metrics,
    logger: FilteringBoundLogger,
    now_ms: Callable[[], int],
) -> AsyncIterator[tuple[Experiments, WebhookSender]]:
    """Run what follows the rules' switches and sends decisions to webhooks; without a file, neither does anything."""
    experiments = Experiments(
        store.experiments,
        lambda: rule_file.rules,
        on_switched=rule_file.switch_off,
        metrics=metrics,
        logger=logger,
        now_ms=now_ms,
    )
    sender = WebhookSender(store.webhooks, store.decisions, metrics=metrics, logger=logger, now_ms=now_ms)
    sender.use(rule_file.webhooks)
    rule_file.on_change(lambda: sender.use(rule_file.webhooks))
    if rule_file.is_there:
        # A rule that is switched off fires at no event, not even at the first one after a restart.
        await experiments.try_follow()
        experiments.start()
        sender.start()
    try:
        yield experiments, sender
    finally:
        await sender.close()
        await experiments.close()


def open_models(settings: Settings, model: Model | None, metrics: Metrics, logger: FilteringBoundLogger) -> ModelHolder:
    """Return the holder of the settings' artifact, or of `model`.

    Raises:
        ValueError: the artifact cannot be used; one line that names the setting.
    """
    artifact = ArtifactFile(settings.artifact, settings.artifact_sha256, settings)
    stamp = stamp_of(artifact.path)
    return ModelHolder(
        model or _loaded(artifact),
        path=artifact.path,
        stamp=stamp,
        load_unless=artifact.load_unless,
        metrics=metrics,
        logger=logger,
        watch_every_s=settings.watch_artifact_s,
    )


def _loaded(artifact: ArtifactFile) -> Model:
    try:
        return artifact.load()
    except BaseRateUnknownError as exc:
        raise ValueError(f"WILLBUY_BASE_RATE: {str(exc).removeprefix('base_rate: ')}") from exc
    except ArtifactError as exc:
        raise ValueError(f"WILLBUY_ARTIFACT: {exc}") from exc


def read_artifact_manifest(settings: Settings) -> Manifest:
    """Return the manifest of the settings' artifact; raise `ValueError` that names the setting if it cannot be used."""
    try:
        return read_manifest(settings.artifact, sha256=settings.artifact_sha256)
    except ArtifactError as exc:
        raise ValueError(f"WILLBUY_ARTIFACT: {exc}") from exc


def check_redis_options(settings: Settings) -> None:
    """Raise `ValueError` that names the setting if the Redis URL or a file for TLS cannot be used; connects nowhere."""
    open_client(settings.redis_url.get_secret_value(), connection_options(settings))


def open_rate_limit(settings: Settings, metrics: Metrics, *, window_s: int = WINDOW_S) -> RateLimit:
    """Return the rate limits of API keys; they connect to Redis at the first request of a key with a limit."""
    return RateLimit(
        # With connections and circuit breakers of its own: an open one lets requests through and is no failing store.
        open_client(settings.redis_url.get_secret_value(), connection_options(settings)),
        events_per_s=settings.key_events_per_s,
        metrics=metrics,
        keys=Keys(settings.redis_key_prefix),
        window_s=window_s,
    )


def open_rule_file(
    settings: Settings, models: ModelHolder, *, now_ms: Callable[[], int], logger: FilteringBoundLogger
) -> RuleFile:
    """Return the settings' rules and webhooks; raise `ValueError` that names file, rule and field if they are bad."""
    return RuleFile(settings, model=lambda: models.current, now_ms=now_ms, logger=logger)


def open_store(settings: Settings, metrics: Metrics, logger: FilteringBoundLogger) -> StateStore:
    """Return the store, which connects to Redis at its first command."""

    def on_breaker(opened: bool) -> None:
        metrics.store_breakers_open.inc(1 if opened else -1)

    # Looking up a metric by its label costs time in each round trip.
    timer = cache(metrics.store_seconds.labels)

    return RedisStore(
        settings.redis_url.get_secret_value(),
        session_idle_s=settings.session_idle_s,
        outcome_grace_s=settings.outcome_grace_s,
        keys=Keys(settings.redis_key_prefix),
        outcomes=OutcomeLimits(most=settings.outcomes_kept, kept_s=settings.outcomes_kept_s),
        options=replace(
            connection_options(settings),
            on_breaker=on_breaker,
            on_failure=Failures(metrics.store_failures, logger, event="redis_failed").note,
        ),
        wait_replicas=settings.redis_wait_replicas,
        observe=lambda operation, seconds: timer(operation).observe(seconds),
    )


def open_shadow(
    settings: Settings,
    models: ModelHolder,
    store: StateStore,
    *,
    metrics: Metrics,
    logger: FilteringBoundLogger,
    now_ms: Callable[[], int],
) -> Shadow | None:
    """Return the comparison of the settings' candidate with the live model; None without a usable candidate."""
    if settings.shadow_artifact is None or not settings.shadow_share:
        return None
    try:
        candidate = ArtifactFile(settings.shadow_artifact, None, settings).load()
    except ValueError as exc:
        # The service runs without a candidate that cannot be loaded.
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


def open_batcher(
    settings: Settings,
    models: ModelHolder,
    store: StateStore,
    rebuilder: Rebuilder,
    rule_file: RuleFile,
    shadow: Shadow | None,
    *,
    metrics: Metrics,
    logger: FilteringBoundLogger,
) -> Batcher[QueuedEvent, Score]:
    """Return the batcher of the scorer; it is not started yet."""

    async def score(events: Sequence[QueuedEvent], callers: Callers[Score]) -> Sequence[Score | Exception | Requeue]:
        # A scorer a batch is cheap, and a batch keeps its model during a reload.
        scorer = Scorer(
            store,
            models.current,
            metrics=metrics,
            logger=logger,
            max_session_events=settings.max_session_events,
            max_session_bytes=settings.max_session_bytes,
            dedupe_window=settings.dedupe_window,
            restarts=settings.after_purchase == "restart",
            decider=rule_file.decider,
            rebuilder=rebuilder,
        )
        try:
            results = await scorer.score(events, callers)
        except Exception as exc:
            # The batcher finds the event that raises it, whose caller logs the traceback.
            logger.warning("batch_failed", events=len(events), error=type(exc).__name__)
            raise
        if shadow is not None:
            shadow.observe(events, results)
        return results

    batcher: Batcher[QueuedEvent, Score] = Batcher(
        score,
        key=lambda event: event.session_id,
        max_batch_size=settings.max_batch_size,
        max_queue=settings.max_queue,
        max_items_per_key=max_events_per_session(settings.dedupe_window),
        max_batches=_BATCHES_AT_ONCE,
        blocked=rebuilder.pending,
    )
    metrics.watch(metrics.queue_length, lambda: batcher.queue_length)
    metrics.queue_capacity.set(settings.max_queue)
    return batcher


def log_started(model: Model, settings: Settings, logger: FilteringBoundLogger) -> None:
    """Log the model, what runs it, and the Redis of this process."""
    logger.info(
        "started",
        model=model.fingerprint,
        device=model.device,
        device_reason=model.device_reason,
        engine=model.engine,
        engine_reason=model.engine_reason,
        redis=settings.masked_redis_url,
    )


def connection_options(settings: Settings) -> ConnectionOptions:
    """Return the settings' options of connections to Redis."""
    return ConnectionOptions(
        timeout_s=settings.redis_timeout_s,
        ca_file=settings.redis_ca_file,
        cert_file=settings.redis_cert_file,
        key_file=settings.redis_key_file,
    )
