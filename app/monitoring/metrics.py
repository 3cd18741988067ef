"""What the service counts and times, in Prometheus' terms. `docs/metrics.md` explains each.

Every app has a registry of its own, so that many can live in one process. Where workers share a directory
(`app.monitoring.worker_metrics`), whichever of them is asked answers for all; a gauge's mode says how theirs are put
together.
"""

from collections.abc import Callable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from app.monitoring.worker_metrics import merged_exposition, shared_directory

_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.0, 5.0)
_DIFFERENCES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """One app's metrics; attributes are named as the metrics are, without prefix and unit suffixes."""

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
        self.errors = counter("errors", "Problems given to callers, by code", "code")
        self.rate_limit_failures = counter("rate_limit_failures", "Requests that could not be counted, and were let in")

        self.ready = gauge("ready", "Whether events can be answered", of_workers="livemin")
        self.loop_delay_seconds = histogram("loop_delay_seconds", "How late the event loop comes to a timer", _SECONDS)
        self.queue_length = gauge("queue_length", "Events waiting for a batch", of_workers="livesum")
        self.queue_capacity = gauge("queue_capacity", "Events that may wait for a batch", of_workers="livesum")
        self.batch_size = histogram("batch_size", "Sessions in a batch", _SIZES)
        self.batch_seconds = histogram("batch_seconds", "One batch: load, step, commit", _SECONDS)
        self.step_seconds = histogram("step_seconds", "The model's step of a batch", _SECONDS)
        self.store_seconds = histogram("store_seconds", "One round trip to the store", _SECONDS, "operation")

        self.store_breakers_open = gauge(
            "store_breakers_open", "Redis servers that are not asked for now", of_workers="livesum"
        )
        self.live_sessions = gauge("live_sessions", "Sessions that have not idled out", of_workers="mostrecent")

        self.events_folded = counter("events_folded", "Events folded into sessions")
        self.sessions_started = counter("sessions_started", "Sessions whose first event came")
        self.purchases = counter("purchases", "Sessions closed by a purchase")
        self.duplicates = counter("duplicates", "Events answered from a session's last answers")
        self.conflicts = counter("conflicts", "Commits refused because another came first")
        self.rebuilds = counter("rebuilds", "Sessions whose state was folded again from history")
        self.rebuilt_events = counter("rebuilt_events", "Events that were folded again from history")
        self.rebuilds_postponed = counter("rebuilds_postponed", "Sessions put off to a later batch, to bound rebuilds")
        self.rebuild_seconds = histogram("rebuild_seconds", "Folding histories again, a batch", _SECONDS)
        self.abandoned_events = counter("abandoned_events", "Events not folded, as their callers had gone")
        self.streams_open = gauge("streams_open", "Open streams of server-sent events", of_workers="livesum")
        self.sessions_deleted = counter("sessions_deleted", "Requests to erase a session")
        self.late_events = counter("late_events", "Events older than one folded before")
        self.future_events = counter("future_events", "Events ahead of the server's clock, taken as now")
        self.unseen_names = counter("unseen_names", "Events whose name the model does not know")
        self.closed_session_events = counter("closed_session_events", "Events after their session's purchase")

        self.outcomes = counter("outcomes", "Ended sessions taken on", "outcome", "closed_by")
        self.outcomes_lost = counter("outcomes_lost", "Ended sessions whose outcome was not written down")
        self.closer_failures = counter("closer_failures", "Turns of the closer that failed")

        def figure(name: str, text: str, *labels: str) -> Gauge:
            # Every worker reads the same counts, so the latest reading is everybody's.
            return gauge(name, text, *labels, of_workers="mostrecent")

        self.trust_sessions = figure("trust_sessions", "Ended sessions that the figures rest on", "events")
        self.trust_figure = figure("trust_figure", "How the model does on ended sessions", "figure", "events")
        self.drift_sessions = figure("drift_sessions", "Ended sessions whose inputs were looked at")
        self.drift_max_psi = figure("drift_max_psi", "Largest population stability index of all features")
        self.drift_unseen_name_share = figure("drift_unseen_name_share", "Share of events with an unknown name")
        self.drift_failures = counter("drift_failures", "Times that inputs could not be looked at")

        self.model_info = gauge("model_info", "The model in use; always 1", "fingerprint", of_workers="livemax")
        self.model_reloads = counter("model_reloads", "Attempts to load another artifact", "result")
        for result in ("swapped", "unchanged", "refused"):
            # From zero: the first of a series that begins at one is no increase to Prometheus.
            self.model_reloads.labels(result)

        def summary(name: str, text: str, *labels: str) -> Summary:
            return Summary(f"willbuy_{name}", text, labels, registry=registry)

        self.shadow_info = gauge("shadow_info", "The candidate; always 1", "fingerprint", of_workers="livemax")
        self.shadow_difference = histogram("shadow_difference", "Between candidate and live model", _DIFFERENCES)
        self.shadow_probability = summary("shadow_probability", "Of sessions that both scored", "model")
        self.shadow_log_loss = summary("shadow_log_loss", "Of sessions that ended", "model")
        self.shadow_outcomes = counter("shadow_outcomes", "Sessions that both scored and that ended", "outcome")
        self.shadow_dropped = counter("shadow_dropped", "Comparisons given up for lack of room")
        self.shadow_failures = counter("shadow_failures", "Comparisons that failed")

    def watch(self, gauge: Gauge, read: Callable[[], float]) -> None:
        """Make a gauge show what `read` returns; it is called in any thread."""
        self._watched.append((gauge, read))

    def sample(self) -> None:
        """Bring the gauges that are watched up to date; the other workers see them as they were at the last time."""
        for gauge, read in self._watched:
            gauge.set(read())

    def retire(self, info: Gauge, *labels: str) -> None:
        """Take away a series of a gauge that is always 1."""
        # The file of a worker keeps each series for good; a zero is left out of the answer.
        info.labels(*labels).set(0)
        if self._shared is None:
            info.remove(*labels)

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format; takes milliseconds, more with each worker."""
        self.sample()
        return generate_latest(self.registry) if self._shared is None else merged_exposition(self._shared)
