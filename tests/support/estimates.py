"""Estimates without undefined numbers."""

from training.evaluation.resampling import Estimate


def known(found: Estimate) -> tuple[float, float, float]:
    """Return value, low and high; fail if one of them is undefined."""
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    return found.value, found.low, found.high
