"""The parts that routes call, as one object: built in `app.main`, read from `request.app.state.services`."""

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request
from structlog.typing import FilteringBoundLogger

from app.board.setup import Dashboards
from app.monitoring.health import Vitals
from app.monitoring.metrics import Metrics
from app.monitoring.readiness import Readiness
from app.outcomes.setup import Outcomes
from app.quality.model_quality import Trust
from app.runtime.deadlines import Deadlines
from app.runtime.drain import Drain
from app.scoring.batcher import Batcher
from app.scoring.events import Intake, Submission
from app.scoring.model_holder import LiveModel
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
    models: LiveModel
    drain: Drain
    readiness: Readiness
    vitals: Vitals
    store: StateStore
    intake: Intake
    batcher: Batcher[Submission, Score]
    tracer: Tracer
    outcomes: Outcomes
    dashboards: Dashboards
    deadlines: Deadlines
    now_ms: Callable[[], int]

    @property
    def model(self) -> Model:
        """The model in use now; another one may be a moment later, so ask once for what belongs together."""
        return self.models.current

    @property
    def trust(self) -> Trust:
        """How the model does on sessions that have ended."""
        return self.outcomes.trust


def services_of(request: Request) -> Services:
    """Return the parts of the app that got the request."""
    services: Services = request.app.state.services
    return services
