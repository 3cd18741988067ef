"""A call on many inputs at once in which one bad input does not fail the others."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from structlog.typing import FilteringBoundLogger

from app.errors import PredictionError

Input = TypeVar("Input")
Output = TypeVar("Output")


def map_isolated(
    call: Callable[[Sequence[Input]], Sequence[Output]], inputs: Sequence[Input], logger: FilteringBoundLogger
) -> list[Output | Exception]:
    """Return one output or `PredictionError` for each input.

    Calls once with all inputs. If that fails, calls for each half, and so on, so that only the bad inputs fail. `call`
    must have no side effects, because it may get an input several times.
    """
    try:
        return list(call(inputs)) if inputs else []
    except Exception:
        logger.exception("model_failed_on_batch", size=len(inputs))
    return _by_halves(call, inputs)


def _by_halves(
    call: Callable[[Sequence[Input]], Sequence[Output]], inputs: Sequence[Input]
) -> list[Output | Exception]:
    if len(inputs) == 1:
        return _alone(call, inputs)
    outputs: list[Output | Exception] = []
    middle = len(inputs) // 2
    for half in (inputs[:middle], inputs[middle:]):
        try:
            outputs += call(half)
        except Exception:  # noqa: BLE001 - found below
            outputs += _by_halves(call, half)
    return outputs


def _alone(call: Callable[[Sequence[Input]], Sequence[Output]], inputs: Sequence[Input]) -> list[Output | Exception]:
    try:
        return list(call(inputs))
    except Exception as exc:  # noqa: BLE001 - any error belongs to this input only
        error = PredictionError("The model failed on this event; it was not folded.")
        error.__cause__ = exc
        return [error]


async def await_isolated(
    call: Callable[[Sequence[Input]], Awaitable[Sequence[Output]]], inputs: Sequence[Input]
) -> list[Output | Exception]:
    """Return the call's output for each input, or the exception that the input raises.

    After an exception, calls for each half, and so on. `call` must be safe to repeat.
    """
    if not inputs:
        return []
    try:
        return [*await call(inputs)]
    except Exception as exc:  # noqa: BLE001 - any exception belongs to one of the inputs
        if len(inputs) == 1:
            return [exc]
    middle = len(inputs) // 2
    return [*await await_isolated(call, inputs[:middle]), *await await_isolated(call, inputs[middle:])]
