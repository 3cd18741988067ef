"""How well values predict a target out of sample, and whether that may be chance."""

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from model.auc import auc

_MOST_BINS: Final = 64
_EVENTS_A_BIN: Final = 20
_Z_95: Final = 1.959963984540054

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Target:
    """A quantity that the future determines, for N events.

    Attributes:
        subject: in words.
        rows: [N] the events.
        value: [N] the quantity.
        session: [N] number of each event's session.
        is_binary: whether the quantity is yes or no.
        bound: an input that predicts the quantity as well as this is refused.
    """

    subject: str
    rows: NDArray[np.int64]
    value: NDArray[np.float64]
    session: NDArray[np.int64]
    is_binary: bool
    bound: float

    @property
    def measure(self) -> str:
        """Return what `predicted_by` measures."""
        return "AUC" if self.is_binary else "correlation of ranks"

    @cached_property
    def sessions(self) -> tuple[int, int]:
        """Return the sessions with yes and with no; of a number, all sessions and 0."""
        if not self.is_binary:
            return len(np.unique(self.session)), 0
        return len(np.unique(self.session[self.value > 0])), len(np.unique(self.session[self.value <= 0]))

    @property
    def best_z(self) -> float:
        """Return how many standard deviations a perfect input is from a useless one."""
        return self.z(1.0)

    def z(self, strength: float) -> float:
        """Return how many standard deviations a strength is from that of a useless input, by sessions.

        The standard deviation of a useless input's AUC is that of the Mann-Whitney statistic, and of its rank
        correlation 1 / sqrt(n - 1).
        """
        first, second = self.sessions
        if not self.is_binary:
            return strength * math.sqrt(max(first - 1, 0))
        if not (first and second):
            return 0.0
        return (strength - 0.5) / math.sqrt((first + second + 1) / (12 * first * second))

    def predicted_by(self, codes: Codes) -> float | None:
        """Return how well the codes [N] predict the target; None where either is constant.

        Each code is encoded as the target's mean on one half of the sessions and judged on the other half, so that a
        code that occurs once tells nothing.
        """
        if not len(codes) or codes.min() == codes.max():
            return None
        target, half = self._ranked, self._halves
        predicted = np.empty(len(target))
        for own in (0, 1):
            other = half != own
            if not other.any():
                return None
            # Smoothed by one session of the overall mean, which a code unseen in the other half gets.
            mean = target[other].mean()
            sums = np.bincount(codes[other], target[other], minlength=codes.max() + 1)
            counts = np.bincount(codes[other], minlength=codes.max() + 1)
            predicted[~other] = ((sums + mean) / (counts + 1))[codes[~other]]
        if np.ptp(predicted) == 0 or np.ptp(target) == 0:
            return None
        return float(auc(target, predicted) if self.is_binary else np.corrcoef(target, predicted)[0, 1])

    @cached_property
    def _ranked(self) -> NDArray[np.float64]:
        return self.value if self.is_binary else pl.Series(self.value).rank("average").to_numpy()

    @cached_property
    def _halves(self) -> NDArray[np.int64]:
        """Return a half, 0 or 1, for each event; sessions of either outcome are shared out evenly."""
        numbers, first = np.unique(self.session, return_index=True)
        kind = self.value[first] > 0 if self.is_binary else np.zeros(len(first), dtype=bool)
        half = np.zeros(len(numbers), dtype=np.int64)
        for which in (kind, ~kind):
            half[which] = np.arange(int(which.sum())) % 2
        return half[np.searchsorted(numbers, self.session)]


def codes_of(values: pl.Series) -> Codes:
    """Return an integer code for each value [N]: 0 for null, else one a distinct text or a bin of numbers."""
    if values.dtype.is_numeric():
        numbers = values.cast(pl.Float64).fill_nan(None)
        given = numbers.drop_nulls()
        bins = min(_MOST_BINS, max(2, given.len() // _EVENTS_A_BIN))
        if given.n_unique() > bins:
            edges = np.quantile(given.to_numpy(), np.linspace(0, 1, bins + 1)[1:-1])
            found = np.searchsorted(edges, numbers.fill_null(0.0).to_numpy(), side="right") + 1
            return np.where(numbers.is_null().to_numpy(), 0, found)
        values = numbers
    return values.rank("dense").fill_null(0).cast(pl.Int64).to_numpy()


def joint_codes(one: Codes, other: Codes) -> Codes:
    """Return one code for each pair of codes [N]."""
    return np.unique(one * (other.max() + 1) + other, return_inverse=True)[1].astype(np.int64)


def z_bound(significance: float, tests: int) -> float:
    """Return how many standard deviations a finding needs (Bonferroni).

    Args:
        significance: highest probability that any of the tests exceeds them by chance.
        tests: their number.
    """
    return NormalDist().inv_cdf(1 - significance / max(tests, 1))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % interval (1927) of a share, which is valid at shares of zero and one."""
    share, spread = successes / trials, _Z_95**2 / trials
    root = _Z_95 * ((share * (1 - share) + spread / 4) / trials) ** 0.5
    return (share + spread / 2 - root) / (1 + spread), (share + spread / 2 + root) / (1 + spread)
