"""The parts that routes call, as one object: built in `app.wiring`, read from `request.app.state.services`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import Request
from structlog.typing import FilteringBoundLogger

from app.board.content import Content
from app.board.query import BoardQuery
from app.board.streams import Streams
from app.errors import DeadlineExceededError
from app.interventions.experiments import Experiments
from app.interventions.sender import WebhookSender
from app.monitoring.health import Readiness
from app.monitoring.metrics import Metrics
from app.quality.model_quality import ModelQuality
from app.runtime.deadlines import Deadlines, Timeout
from app.runtime.drain import Drain
from app.runtime.single_flight import SingleFlightCache
from app.scoring.batcher import Batcher
from app.scoring.events import EventValidator, QueuedEvent
from app.scoring.model_holder import ModelHolder
from app.scoring.session_update import Score
from app.scoring.tracer import Tracer
from app.settings import Settings
from app.store.interface import StateStore
from model.interface import Model


@dataclass(frozen=True, slots=True)
class Services:
    """One app's parts, running."""

    settings: Settings
    metrics: Metrics
    logger: FilteringBoundLogger
    models: ModelHolder
    drain: Drain
    readiness: Readiness
    store: StateStore
    intake: EventValidator
    batcher: Batcher[QueuedEvent, Score]
    tracer: Tracer
    board: SingleFlightCache[BoardQuery, Content]
    stats: SingleFlightCache[None, Content]
    quality: ModelQuality
    streams: Streams
    experiments: Experiments
    sender: WebhookSender
    deadlines: Deadlines
    now_ms: Callable[[], int]

    @property
    def model(self) -> Model:
        """The model in use now. A reload may replace it, so read this once for values that belong together."""
        return self.models.current


def services_of(request: Request) -> Services:
    """Return the parts of the app that got the request."""
    services: Services = request.app.state.services
    return services


@contextmanager
def in_time(request: Request) -> Iterator[None]:
    """Raise `DeadlineExceededError` at the request's deadline."""
    services = services_of(request)
    timeout_s = services.settings.request_timeout_s
    try:
        with Timeout(services.deadlines, services.deadlines.of_request(request.scope, timeout_s)):
            yield
    except TimeoutError as exc:
        raise DeadlineExceededError(f"No answer within {timeout_s:g} s; send it again.") from exc
