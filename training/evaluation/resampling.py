"""The bootstrap over sessions: the sampling error of a statistic of the test sessions.

Sessions are resampled, never prefixes, since the prefixes of a session share its outcome (cluster bootstrap; Davison &
Hinkley 1997, section 3.8). A resample is a weight for each session, how often it was drawn, so that sorted data stays
sorted. Intervals are percentile ones (Efron & Tibshirani 1993, chapter 13).

Shape legend: S sessions, R resamples of a block.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.config import EVALUATE_RESAMPLES

Weights = NDArray[np.float64]
"""How often each session counts in each resample, (S, R)."""

Statistic = Callable[[Weights], Mapping[str, NDArray[np.float64]]]
"""From weights (S, R) to values by name, resamples on the last axis; NaN where a value is undefined."""

_CELLS: Final = 6_000_000  # predictions times resamples held at once: 48 MB an array
# An interval needs at least this share of defined resamples.
_LEAST_DEFINED: Final = 0.5
_LEVELS: Final = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


UNDEFINED: Final = Estimate(None, None, None)


def resample(
    statistics: Sequence[Statistic],
    sessions: int,
    *,
    resamples: int = EVALUATE_RESAMPLES,
    seed: int = 0,
    predictions: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[dict[str, NDArray[np.float64]]]:
    """Return the values of every statistic under the same resamples of the sessions, so that they can be paired.

    Args:
        statistics: functions of the sessions' weights.
        sessions: S.
        resamples: how many, at least 1.
        seed: of the resampling; the same resamples for the same seed, whatever the block size.
        predictions: of the largest statistic, which bounds how many resamples are computed at once.
        progress: called with the number of finished resamples.

    Raises:
        ValueError: there are no sessions, or `resamples` is less than 1.
    """
    if sessions < 1:
        raise ValueError("sessions: at least one is needed")
    if resamples < 1:
        raise ValueError(f"resamples: at least 1 is needed, not {resamples}")
    found: list[dict[str, list[NDArray[np.float64]]]] = [{} for _ in statistics]
    done = 0
    for weights in _blocks(sessions, resamples, seed, max(1, _CELLS // max(predictions, sessions))):
        for statistic, values in zip(statistics, found, strict=True):
            for name, value in statistic(weights).items():
                values.setdefault(name, []).append(value)
        done += weights.shape[1]
        if progress is not None:
            progress(done)
    return [{name: np.concatenate(blocks, axis=-1) for name, blocks in values.items()} for values in found]


def once(statistic: Statistic, sessions: int) -> dict[str, NDArray[np.float64]]:
    """Return a statistic of the original sessions, without the axis of resamples."""
    return {name: value[..., 0] for name, value in statistic(np.ones((sessions, 1))).items()}


def estimate(value: float, resampled: NDArray[np.float64]) -> Estimate:
    """Return a value with the interval that 95 % of its resamples (R,) lie in."""
    if np.isnan(value):
        return UNDEFINED
    defined = resampled[~np.isnan(resampled)]
    if len(defined) < _LEAST_DEFINED * len(resampled):
        return Estimate(float(value), None, None)
    low, high = np.quantile(defined, _LEVELS)
    return Estimate(float(value), float(low), float(high))


class ClusterMean:
    """The mean of N values, under any weights of the S sessions that they belong to.

    Args:
        values: (N,).
        session: (N,) session of each value, from 0 to S - 1.
        sessions: S.
        weight: (N,) weight of each value within its session; 1 by default.
    """

    def __init__(
        self,
        values: NDArray[np.float64],
        session: NDArray[np.int64],
        sessions: int,
        weight: NDArray[np.float64] | None = None,
    ) -> None:
        weights = np.ones(len(values)) if weight is None else weight
        self._sums = np.stack(
            [np.bincount(session, weights=part, minlength=sessions) for part in (weights * values, weights)]
        )

    def __call__(self, weights: Weights) -> dict[str, NDArray[np.float64]]:
        """Return `mean` (R,); NaN where no session with a value has weight."""
        total, count = self._sums @ weights
        with np.errstate(divide="ignore", invalid="ignore"):
            return {"mean": total / count}


def _blocks(sessions: int, resamples: int, seed: int, block: int) -> Iterator[Weights]:
    rng = np.random.default_rng(seed)
    for first in range(0, resamples, block):
        drawn = min(block, resamples - first)
        weights = np.empty((sessions, drawn))
        for column in range(drawn):
            weights[:, column] = np.bincount(rng.integers(sessions, size=sessions), minlength=sessions)
        yield weights
