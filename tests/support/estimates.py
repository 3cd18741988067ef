"""Estimates whose numbers a test takes for granted."""

from training.evaluation.resampling import Estimate


def known(found: Estimate) -> tuple[float, float, float]:
    """Return value, low and high; the test fails where one of them is undefined."""
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    return found.value, found.low, found.high
