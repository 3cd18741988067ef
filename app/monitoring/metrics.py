"""The Prometheus metrics of the service; `docs/reference/metrics.md` explains each.

Every app has its own registry, so that one process can have several. Where workers share a directory
(`app.monitoring.worker_metrics`), any worker answers for all; a gauge's mode says how the workers' values are combined.
"""

import platform
from collections.abc import Callable
from importlib.metadata import version
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from app.monitoring.worker_metrics import merged_exposition, shared_directory

_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.0, 5.0)
_DIFFERENCES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """One app's metrics; each attribute has the metric's name without prefix and unit suffix."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:  # noqa: PLR0915 - one statement a metric
        self.registry = registry = CollectorRegistry()
        self._shared = shared_directory()
        self._watched: list[tuple[Gauge, Callable[[], float]]] = []

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"willbuy_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"willbuy_{name}", text, labels, buckets=buckets, registry=registry)

        def gauge(
            name: str, text: str, *labels: str, of_workers: Literal["livesum", "livemin", "livemax", "mostrecent"]
        ) -> Gauge:
            return Gauge(f"willbuy_{name}", text, labels, multiprocess_mode=of_workers, registry=registry)

        self.requests = counter("requests", "Requests answered", "method", "route", "status")
        self.request_seconds = histogram("request_seconds", "Request to answer", _SECONDS, "route")
        self.errors = counter("errors", "Problems answered to callers, by code", "code")
        self.rate_limit_failures = counter("rate_limit_failures", "Requests accepted without a count")

        self.build_info = gauge(
            "build_info", "The running release; always 1", "version", "python", of_workers="livemax"
        )
        self.build_info.labels(version("willbuy"), platform.python_version()).set(1)
        self.ready = gauge("ready", "Whether events can be answered", of_workers="livemin")
        self.loop_delay_seconds = histogram("loop_delay_seconds", "Delay of a timer of the event loop", _SECONDS)
        self.queue_length = gauge("queue_length", "Events waiting for a batch", of_workers="livesum")
        self.queue_capacity = gauge("queue_capacity", "Events that may wait for a batch", of_workers="livesum")
        self.batch_size = histogram("batch_size", "Sessions in a batch", _SIZES)
        self.batch_seconds = histogram("batch_seconds", "One batch: load, step, commit", _SECONDS)
        self.step_seconds = histogram("step_seconds", "The model's step of a batch", _SECONDS)
        self.store_seconds = histogram("store_seconds", "One round trip to the store", _SECONDS, "operation")

        self.store_failures = counter("store_failures", "Failures of Redis, by cause", "cause")
        self.redis_evicts = gauge("redis_evicts", "Whether Redis may evict sessions", of_workers="mostrecent")
        self.store_breakers_open = gauge(
            "store_breakers_open", "Redis servers with an open circuit breaker", of_workers="livesum"
        )
        self.live_sessions = gauge("live_sessions", "Sessions that have not ended", of_workers="mostrecent")

        self.events_folded = counter("events_folded", "Events folded into sessions")
        self.sessions_started = counter("sessions_started", "Sessions with their first event")
        self.purchases = counter("purchases", "Sessions closed by a purchase")
        self.duplicates = counter("duplicates", "Events answered from a session's last answers")
        self.conflicts = counter("conflicts", "Commits refused because another commit came first")
        self.rebuilds = counter("rebuilds", "Sessions whose state was rebuilt from history")
        self.rebuilt_events = counter("rebuilt_events", "Events folded again by rebuilds")
        self.rebuild_failures = counter("rebuild_failures", "Sessions whose state could not be rebuilt")
        self.rebuild_seconds = histogram("rebuild_seconds", "One rebuild, from request to stored state", _SECONDS)
        self.abandoned_events = counter("abandoned_events", "Events dropped because their callers had disconnected")
        self.streams_open = gauge("streams_open", "Open streams of server-sent events", of_workers="livesum")
        self.sessions_deleted = counter("sessions_deleted", "Requests to erase a session")
        self.late_events = counter("late_events", "Events older than one folded before")
        self.future_events = counter("future_events", "Events ahead of the server's clock, counted as happening now")
        self.unseen_names = counter("unseen_names", "Events with a name outside the model's vocabulary")
        self.purchase_like_names = counter(
            "purchase_like_names", "Events whose unknown name reads like a purchase, but is taken for none"
        )
        self.suspicious_fields = counter("suspicious_fields", "Values accepted though they look wrong", "kind")
        self.closed_session_events = counter("closed_session_events", "Events after their session's purchase")

        self.vendor_events = counter("vendor_events", "Records of vendors, by what became of them", "vendor", "result")

        self.outcomes = counter("outcomes", "Ended sessions published", "outcome", "closed_by")
        self.outcomes_lost = counter("outcomes_lost", "Ended sessions whose outcome was lost")
        self.closer_failures = counter("closer_failures", "Failed sweeps for ended sessions")

        def figure(name: str, text: str, *labels: str) -> Gauge:
            # Every worker reads the same counts, so the latest value is right for all.
            return gauge(name, text, *labels, of_workers="mostrecent")

        self.trust_sessions = figure("trust_sessions", "Ended sessions behind the figures", "events")
        self.trust_figure = figure("trust_figure", "Model quality on ended sessions", "figure", "events")
        self.drift_sessions = figure("drift_sessions", "Ended sessions whose inputs were counted")
        self.drift_max_psi = figure("drift_max_psi", "Largest population stability index of all features")
        self.drift_unseen_name_share = figure("drift_unseen_name_share", "Share of events with an unknown name")
        self.drift_failures = counter("drift_failures", "Failures to count inputs")

        self.rule_on = figure("rule_on", "Whether a rule may fire", "rule")
        self.experiment_sessions = figure("experiment_sessions", "Ended sessions of a rule", "rule", "group")
        self.experiment_buyers = figure("experiment_buyers", "The buyers among them", "rule", "group")
        self.experiment_revenue = figure("experiment_revenue", "Value of their purchases", "rule", "group")
        self.webhook_attempts = counter("webhook_attempts", "Attempts to send a message", "webhook", "result")
        self.webhook_dead = counter("webhook_dead", "Messages that are not sent any more", "webhook", "cause")
        self.webhook_dropped = counter("webhook_dropped", "Dead messages dropped for newer ones", "webhook")

        self.kafka_messages = counter("kafka_messages", "Messages whose offset is committed")
        self.kafka_dead_letters = counter("kafka_dead_letters", "Messages sent to the dead-letter topic", "code")
        self.kafka_retries = counter("kafka_retries", "Batches of messages tried again after a temporary failure")
        self.kafka_errors = counter("kafka_errors", "Errors of Kafka, by code", "code")
        self.kafka_lag = gauge(
            "kafka_lag", "Messages of a partition that are not committed", "partition", of_workers="livemax"
        )
        self.kafka_partitions = gauge("kafka_partitions", "Partitions that this replica reads", of_workers="livesum")
        self.kafka_paused = gauge("kafka_paused", "Whether reading is paused", of_workers="livemax")

        self.model_compiled = gauge("model_compiled", "Whether the step runs compiled", of_workers="livemin")
        self.model_info = gauge("model_info", "The model in use; always 1", "fingerprint", of_workers="livemax")
        self.model_reloads = counter("model_reloads", "Attempts to load another artifact", "result")
        for result in ("swapped", "unchanged", "refused"):
            # From zero: a series that begins at one shows no increase in Prometheus.
            self.model_reloads.labels(result)

        def summary(name: str, text: str, *labels: str) -> Summary:
            return Summary(f"willbuy_{name}", text, labels, registry=registry)

        self.shadow_info = gauge("shadow_info", "The candidate; always 1", "fingerprint", of_workers="livemax")
        self.shadow_difference = histogram("shadow_difference", "Between candidate and live model", _DIFFERENCES)
        self.shadow_probability = summary("shadow_probability", "Of sessions that both scored", "model")
        self.shadow_log_loss = summary("shadow_log_loss", "Of sessions that ended", "model")
        self.shadow_outcomes = counter("shadow_outcomes", "Sessions that both scored and that ended", "outcome")
        self.shadow_dropped = counter("shadow_dropped", "Comparisons dropped because the queue was full")
        self.shadow_failures = counter("shadow_failures", "Comparisons that failed")

    def watch(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Set a gauge from `read`, which is called in any thread."""
        self._watched.append((gauge, read))

    def sample(self) -> None:
        """Update the watched gauges; other workers see the values of the last call."""
        for gauge, read in self._watched:
            gauge.set(read())

    def retire(self, info: Gauge, *labels: str) -> None:
        """Remove a series of a gauge that is always 1."""
        # A worker's file keeps each series; the answer leaves out zeros.
        info.labels(*labels).set(0)
        if self._shared is None:
            info.remove(*labels)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format; takes milliseconds, more with each worker."""
        self.sample()
        return generate_latest(self.registry) if self._shared is None else merged_exposition(self._shared)
