"""The parts that routes call, as one object: built in `app.wiring`, read from `request.app.state.services`."""

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request
from structlog.typing import FilteringBoundLogger

from app.board.content import Content
from app.board.query import BoardQuery
from app.board.streams import Streams
from app.monitoring.health import Readiness
from app.monitoring.metrics import Metrics
from app.runtime.deadlines import Deadlines
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
    streams: Streams
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
