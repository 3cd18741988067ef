"""The probability after each event of a session, computed again from its history by the current model."""

import asyncio
from collections.abc import Sequence

from structlog.typing import FilteringBoundLogger

from app.errors import DeadlineExceededError, PredictionError
from app.scoring.isolation import map_isolated
from model.events import Event
from model.interface import SessionScorer


class Tracer:
    """Traces histories in threads, a bounded number at a time.

    Args:
        most_at_once: traces that run at a time; further ones wait. Each competes with the events for the processor.
        timeout_s: longest wait for a turn.
        logger: where failures are told.
    """

    def __init__(self, *, most_at_once: int, timeout_s: float, logger: FilteringBoundLogger) -> None:
        self._turns = asyncio.Semaphore(most_at_once)
        self._timeout_s = timeout_s
        self._logger = logger

    async def trace(self, model: SessionScorer, history: Sequence[Event]) -> list[float]:
        """Return the model's probability after each event of a session.

        Raises:
            DeadlineExceededError: too many others were before it.
            PredictionError: the model fails on the history.
        """
        if not history:
            return []
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._turns.acquire()
        except TimeoutError as exc:
            raise DeadlineExceededError("Too many traces are being computed; ask again.") from exc
        try:
            (traced,) = await asyncio.to_thread(map_isolated, model.traces, [history], self._logger)
        finally:
            self._turns.release()
        if isinstance(traced, Exception):
            raise PredictionError("The model fails on this session's history.") from traced
        return traced[0]
