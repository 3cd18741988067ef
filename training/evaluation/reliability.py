"""Reliability diagrams: of all that were given 20 %, did 20 % buy?"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from training.evaluation.metrics import CALIBRATION_BINS, checked, equal_mass_bins

_Z_95: Final = 1.959963984540054


@dataclass(frozen=True, slots=True)
class ReliabilityPoint:
    """One bin of a reliability diagram.

    Attributes:
        count: predictions in the bin.
        probability: their mean probability.
        observed: share of them that ended in a purchase.
        low: lower end of the 95 % Wilson interval of `observed`.
        high: its upper end.
    """

    count: int
    probability: float
    observed: float
    low: float
    high: float


def reliability(outcome: ArrayLike, probability: ArrayLike, bins: int = CALIBRATION_BINS) -> list[ReliabilityPoint]:
    """Return the reliability diagram: a point for each equal-mass bin that holds predictions, in rising probability.

    Intervals are Wilson's (1927, doi:10.1080/01621459.1927.10502953), with z = 1.96, n the bin's count and q the
    observed share: (q + z**2 / 2n +- z sqrt(q (1 - q) / n + z**2 / 4n**2)) / (1 + z**2 / n). They take predictions
    as independent: true for the prefixes of one length, while over pooled prefixes the true intervals are wider.
    """
    bought, chance = checked(outcome, probability)
    bin_of = equal_mass_bins(chance, bins)
    count = np.bincount(bin_of, minlength=bins)
    filled = count > 0
    n = count[filled]
    mean = np.bincount(bin_of, weights=chance, minlength=bins)[filled] / n
    observed = np.bincount(bin_of, weights=bought, minlength=bins)[filled] / n
    centre = (observed + _Z_95**2 / (2 * n)) / (1 + _Z_95**2 / n)
    half = _Z_95 * np.sqrt(observed * (1 - observed) / n + _Z_95**2 / (4 * n**2)) / (1 + _Z_95**2 / n)
    # Rounding alone could leave the interval of "none of n" an ulp above zero or below it.
    low, high = np.clip(centre - half, 0.0, observed), np.clip(centre + half, observed, 1.0)
    return [
        ReliabilityPoint(int(c), float(m), float(o), float(lo), float(hi))
        for c, m, o, lo, hi in zip(n, mean, observed, low, high, strict=True)
    ]
