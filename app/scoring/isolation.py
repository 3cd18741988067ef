"""A call on many inputs at once that one bad input does not spoil for the others."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from structlog.typing import FilteringBoundLogger

from app.errors import PredictionError

Input = TypeVar("Input")
Output = TypeVar("Output")


def map_isolated(
    call: Callable[[Sequence[Input]], Sequence[Output]], inputs: Sequence[Input], logger: FilteringBoundLogger
) -> list[Output | Exception]:
    """Return one output or `PredictionError` an input.

    Calls once for all; only if that fails, once for each, so that just those fail which are bad. `call` must have no
    effects, as an input may be given to it twice.
    """
    try:
        return list(call(inputs)) if inputs else []
    except Exception:
        logger.exception("model_failed_on_batch", size=len(inputs))
    outputs: list[Output | Exception] = []
    for one in inputs:
        try:
            outputs += call([one])
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is this input's error and no other's
            error = PredictionError("The model failed on this event; it was not folded.")
            error.__cause__ = exc
            outputs.append(error)
    return outputs
