"""What looks after sessions that have ended, put together as the settings say."""

from collections.abc import Callable
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from app.monitoring.metrics import Metrics
from app.outcomes.sweeper import Closer
from app.quality.model_quality import Trust
from app.scoring.model_holder import LiveModel
from app.settings import Settings
from app.store.interface import StateStore


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Closes sessions, and knows how the model did on them."""

    closer: Closer
    trust: Trust

    def start(self) -> None:
        """Begin; call once, inside the event loop."""
        self.closer.start()
        self.trust.start()

    async def close(self) -> None:
        """Stop; what is left is another replica's."""
        await self.closer.close()
        await self.trust.close()


def open_outcomes(
    settings: Settings,
    store: StateStore,
    models: LiveModel,
    metrics: Metrics,
    logger: FilteringBoundLogger,
    now_ms: Callable[[], int],
) -> Outcomes:
    """Return what looks after the store's ended sessions; it is not started yet."""
    trust = Trust(
        store.outcomes,
        lambda: models.current,
        window_s=settings.trust_window_s,
        drift_events_per_s=settings.drift_events_per_s,
        now_ms=now_ms,
        metrics=metrics,
        logger=logger,
    )
    closer = Closer(
        store.outcomes, every_s=settings.close_every_s, on_closed=trust.count, metrics=metrics, logger=logger
    )
    return Outcomes(closer, trust)
