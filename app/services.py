"""The parts that routes call, as one object: built in `app.main`, read from `request.app.state.services`."""

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request
from structlog.typing import FilteringBoundLogger

from app.batcher import Batcher
from app.drain import Drain
from app.intake import Intake, Submission
from app.metrics import Metrics
from app.models import LiveModel
from app.settings import Settings
from app.stepper import Model
from app.stores.base import StateStore
from app.task import Score
from app.tracer import Tracer


@dataclass(frozen=True, slots=True)
class Services:
    """One app's parts, running."""

    settings: Settings
    metrics: Metrics
    logger: FilteringBoundLogger
    models: LiveModel
    drain: Drain
    store: StateStore
    intake: Intake
    batcher: Batcher[Submission, Score]
    tracer: Tracer
    now_ms: Callable[[], int]

    @property
    def model(self) -> Model:
        """The model in use now; another one may be a moment later, so ask once for what belongs together."""
        return self.models.current


def services_of(request: Request) -> Services:
    """Return the parts of the app that got the request."""
    services: Services = request.app.state.services
    return services
