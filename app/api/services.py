"""The parts that routes call, as one object: built in `app.main`, read from `request.app.state.services`."""

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request
from structlog.typing import FilteringBoundLogger

from app.board.dashboards import Dashboards
from app.monitoring.health import HealthMonitor, Readiness
from app.monitoring.metrics import Metrics
from app.outcomes.sweeper import SessionSweeper
from app.quality.model_quality import ModelQuality
from app.runtime.deadlines import Deadlines
from app.runtime.drain import Drain
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
    health: HealthMonitor
    store: StateStore
    intake: EventValidator
    batcher: Batcher[QueuedEvent, Score]
    tracer: Tracer
    sweeper: SessionSweeper
    quality: ModelQuality
    dashboards: Dashboards
    deadlines: Deadlines
    now_ms: Callable[[], int]

    @property
    def model(self) -> Model:
        """The model in use now; another one may be a moment later, so ask once for what belongs together."""
        return self.models.current


def services_of(request: Request) -> Services:
    """Return the parts of the app that got the request."""
    services: Services = request.app.state.services
    return services
