"""The parts that routes call, as one object: built in `app.main`, read from `request.app.state.services`."""

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request
from structlog.typing import FilteringBoundLogger

from app.batcher import Batcher
from app.board.opening import Dashboards
from app.deadlines import Deadlines
from app.drain import Drain
from app.intake import Intake, Submission
from app.metrics import Metrics
from app.models import LiveModel
from app.outcomes.opening import Outcomes
from app.readiness import Readiness
from app.settings import Settings
from app.stepper import Model
from app.stores.base import StateStore
from app.task import Score
from app.tracer import Tracer
from app.trust.trust import Trust
from app.vitals import Vitals


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
