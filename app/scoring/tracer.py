"""Computes a session's probability after each event, and why it moved, from its history and by the current model."""

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

from structlog.typing import FilteringBoundLogger

from app.errors import DeadlineExceededError, PredictionError
from app.scoring.isolation import map_isolated
from model.events import Event
from model.explain import Explanation
from model.interface import SessionScorer

_Result = TypeVar("_Result")


class Tracer:
    """Traces and explains histories in threads, a bounded number at a time.

    Args:
        max_concurrent: histories that are computed at the same time; further ones wait. Each competes with the events
            for the CPU.
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
        return (await self._computed(model.traces, history))[0]

    async def explain(self, model: SessionScorer, history: Sequence[Event]) -> Explanation | None:
        """Return what moved the model's probability at the last event of a session; None: it has no events.

        Raises:
            DeadlineExceededError: no slot became free in time.
            PredictionError: the model fails on the history.
        """
        if not history:
            return None
        return await self._computed(lambda histories: [model.explain(one) for one in histories], history)

    async def _computed(
        self, compute: Callable[[Sequence[Sequence[Event]]], Sequence[_Result]], history: Sequence[Event]
    ) -> _Result:
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._slots.acquire()
        except TimeoutError as exc:
            raise DeadlineExceededError("Too many traces are being computed; ask again.") from exc
        try:
            (result,) = await asyncio.to_thread(map_isolated, compute, [history], self._logger)
        finally:
            self._slots.release()
        if isinstance(result, Exception):
            raise PredictionError("The model fails on this session's history.") from result
        return result
