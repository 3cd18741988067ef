"""A call on many inputs at once in which one bad input does not fail the others."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from structlog.typing import FilteringBoundLogger

from app.errors import PredictionError

Input = TypeVar("Input")
Output = TypeVar("Output")


def map_isolated(
    call: Callable[[Sequence[Input]], Sequence[Output]], inputs: Sequence[Input], logger: FilteringBoundLogger
) -> list[Output | Exception]:
    """Return one output or `PredictionError` for each input.

    Calls once with all inputs. If that fails, calls once for each input, so that only the bad ones fail. `call` must
    have no side effects, because it may get an input twice.
    """
    try:
        return list(call(inputs)) if inputs else []
    except Exception:
        logger.exception("model_failed_on_batch", size=len(inputs))
    outputs: list[Output | Exception] = []
    for one in inputs:
        try:
            outputs += call([one])
        except Exception as exc:  # noqa: BLE001 - any error belongs to this input only
            error = PredictionError("The model failed on this event; it was not folded.")
            error.__cause__ = exc
            outputs.append(error)
    return outputs
