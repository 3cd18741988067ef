"""The board, the numbers and the streams, opened as the settings say, and closed together."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from structlog.typing import FilteringBoundLogger

from app.board.board import Board
from app.board.meter import Meter
from app.board.stats import Stats
from app.board.streams import Streams
from app.monitoring.metrics import Metrics
from app.schemas.board import OutcomesOut
from app.schemas.quality import TrustOut
from app.settings import Settings
from app.store.interface import StateStore


@dataclass(frozen=True, slots=True)
class Dashboards:
    """What answers dashboards."""

    board: Board
    stats: Stats
    streams: Streams

    async def close(self) -> None:
        """End the streams, stop reporting, and give up what is being read."""
        self.streams.close()
        await self.stats.close()
        await self.board.close()


def open_dashboards(
    settings: Settings,
    store: StateStore,
    metrics: Metrics,
    logger: FilteringBoundLogger,
    *,
    queue_length: Callable[[], int],
    model: Callable[[], str],
    outcomes: Callable[[], Awaitable[OutcomesOut]],
    trust: Callable[[], Awaitable[TrustOut]],
) -> Dashboards:
    """Return the parts, reporting already; call inside the event loop.

    Args:
        settings: the settings.
        store: what is read.
        metrics: what this replica reports.
        logger: where defects are told.
        queue_length: returns how many events wait for a batch.
        model: returns the fingerprint of the model in use.
        outcomes: returns what became of sessions.
        trust: returns how the model did on them.
    """
    board = Board(store.board)
    meter = Meter(metrics, queue_length=queue_length, queue_capacity=settings.max_queue, clock_s=time.monotonic)
    stats = Stats(
        store,
        meter,
        model=model,
        outcomes=outcomes,
        trust=trust,
        logger=logger,
    )
    streams = Streams(
        board=board.content,
        stats=stats.content,
        most_streams=settings.max_streams,
        logger=logger,
    )
    metrics.watch(metrics.streams_open, lambda: streams.open)
    stats.start()
    return Dashboards(board, stats, streams)
