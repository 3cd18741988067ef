"""Where the service can be traced; `app.monitoring.spans` traces, with the extra `otel` installed.

    request  ->  batch  ->  store.load, model.step, store.commit

Without it, or without a wish for it, neither OpenTelemetry's SDK nor an exporter is imported, and every part is used as
it is. (The API, which does nothing by itself, comes with FastAPI.)
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol

from fastapi import FastAPI
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from app.scoring.batcher import Batcher
from app.scoring.events import QueuedEvent
from app.scoring.session_update import Score
from app.store.interface import StateStore
from model.interface import SessionScorer

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Telemetry(Protocol):
    """Puts spans around the service's parts.

    Attributes:
        follows_requests: whether each request has to pass what `add_to` adds.
    """

    follows_requests: bool

    def add_fields(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """Name the current trace in a line of the log (a processor of structlog)."""
        ...

    def say(self, logger: FilteringBoundLogger) -> None:
        """Tell whether the service is traced."""
        ...

    def add_to(self, app: FastAPI) -> None:
        """Put a span around each request; to be called after all other middleware was added."""
        ...

    def batcher(self, batcher: Batcher[QueuedEvent, Score]) -> Batcher[QueuedEvent, Score]:
        """Return the batcher as routes are to use it, so that a batch knows the requests that wait for it."""
        ...

    def batch(self, submissions: Sequence[QueuedEvent]) -> AbstractContextManager[object]:
        """Put a span around the handling of a batch."""
        ...

    def store(self, store: StateStore) -> StateStore:
        """Return the store as its callers are to use it."""
        ...

    def stepper(self, model: SessionScorer) -> SessionScorer:
        """Return the model as one batch is to use it."""
        ...

    async def close(self) -> None:
        """Send what has not been sent, within a few seconds."""
        ...


class NoTelemetry:
    """Traces nothing and costs nothing (see `Telemetry`).

    Args:
        reason: why traces that somebody seems to expect are not there.
    """

    follows_requests = False

    def __init__(self, reason: str | None = None) -> None:
        self._reason = reason

    def add_fields(self, _logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        """See `Telemetry.add_fields`."""
        return event

    def say(self, logger: FilteringBoundLogger) -> None:
        """See `Telemetry.say`."""
        if self._reason is not None:
            logger.warning("not_traced", reason=self._reason)

    def add_to(self, app: FastAPI) -> None:
        """See `Telemetry.add_to`."""

    def batcher(self, batcher: Batcher[QueuedEvent, Score]) -> Batcher[QueuedEvent, Score]:
        """See `Telemetry.batcher`."""
        return batcher

    def batch(self, _submissions: Sequence[QueuedEvent]) -> AbstractContextManager[object]:
        """See `Telemetry.batch`."""
        return nullcontext()

    def store(self, store: StateStore) -> StateStore:
        """See `Telemetry.store`."""
        return store

    def stepper(self, model: SessionScorer) -> SessionScorer:
        """See `Telemetry.stepper`."""
        return model

    async def close(self) -> None:
        """See `Telemetry.close`."""


def open_telemetry() -> Telemetry:
    """Return what traces the service, as OpenTelemetry's own variables say.

    Traces need an endpoint of OTLP and the extra `otel`. `OTEL_SDK_DISABLED=true` or `OTEL_TRACES_EXPORTER=none`
    turns them off (https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).
    """
    has_endpoint = any(os.environ.get(name) for name in _ENDPOINTS)
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if not has_endpoint or is_disabled or os.environ.get("OTEL_TRACES_EXPORTER", "").lower() == "none":
        return NoTelemetry()
    try:
        from app.monitoring.spans import open_spans  # noqa: PLC0415  # an extra that need not be there
    except ModuleNotFoundError as exc:
        if not (exc.name or "").startswith("opentelemetry"):
            raise
        return NoTelemetry("OpenTelemetry is not installed: pip install 'willbuy[otel]'")
    return open_spans()
