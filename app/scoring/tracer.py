"""Computes the probability after each event of a session, from its history and by the current model."""

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
        max_concurrent: traces that run at the same time; further ones wait. Each competes with the events for the CPU.
        timeout_s: longest wait for a turn.
        logger: gets failures.
    """

    def __init__(self, *, max_concurrent: int, timeout_s: float, logger: FilteringBoundLogger) -> None:
        self._slots = asyncio.Semaphore(max_concurrent)
        self._timeout_s = timeout_s
        self._logger = logger

    async def trace(self, model: SessionScorer, history: Sequence[Event]) -> list[float]:
        """Return the model's probability after each event of a session.

        Raises:
            DeadlineExceededError: no slot became free in time.
            PredictionError: the model fails on the history.
        """
        if not history:
            return []
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._slots.acquire()
        except TimeoutError as exc:
            raise DeadlineExceededError("Too many traces are being computed; ask again.") from exc
        try:
            (traced,) = await asyncio.to_thread(map_isolated, model.traces, [history], self._logger)
        finally:
            self._slots.release()
        if isinstance(traced, Exception):
            raise PredictionError("The model fails on this session's history.") from traced
        return traced[0]
