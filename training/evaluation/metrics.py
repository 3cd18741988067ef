"""How good probabilities are: pure functions from arrays to numbers.

N predictions have `outcome` (N,) of 0 or 1 and `probability` (N,) in [0, 1]. An undefined score (no predictions, or
the AUC of one class) is None, never NaN, and causes no warning.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score

from model.auc import auc

PREFIX_LENGTHS: Final = (1, 2, 3, 5, 8, 10, 15, 20)
"""Prefix lengths that tables and reports show."""

CALIBRATION_BINS: Final = 15

TOP_SHARE: Final = 0.1
"""Share of the predictions that the lift looks at: the top decile."""

_FLOOR: Final = 1e-15  # keeps the loss of a confident mistake finite: at most 34.5 nats
# A position with fewer prefixes shares its base rate with its neighbours.
_LEAST_PREFIXES: Final = 30


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of a set of predictions.

    Attributes:
        count: number of predictions.
        base_rate: share of outcomes that are purchases.
        auc: probability that a buyer is ranked above a non-buyer, ties counting half; None with one class only.
        average_precision: precision averaged over the recall that each threshold adds; None without buyers.
        log_loss: mean of -log of the probability of the outcome, in nats; see `log_losses`.
        log_loss_skill: 1 - log_loss / (log loss of predicting the base rate at the prefix's position, see
            `position_rates`); 0 is as good as the base rate, 1 is perfect; None with one class only.
        brier: mean squared difference of probability and outcome (Brier 1950).
        calibration_error: see `calibration_error`.
        lift: see `lift`.
    """

    count: int
    base_rate: float | None
    auc: float | None
    average_precision: float | None
    log_loss: float | None
    log_loss_skill: float | None
    brier: float | None
    calibration_error: float | None
    lift: float | None


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """Scores of the prefixes of one length, or of all prefixes pooled when `prefix_length` is None."""

    prefix_length: int | None
    scores: Scores


def score(outcome: ArrayLike, probability: ArrayLike, reference: ArrayLike | None = None) -> Scores:
    """Return all scores of these predictions.

    Args:
        outcome: (N,) outcomes.
        probability: (N,) predictions.
        reference: (N,) reference predictions of the skill; by default the base rate of these outcomes.

    Raises:
        ValueError: shapes differ, an outcome is neither 0 nor 1, or a probability is not in [0, 1].
    """
    bought, chance = checked(outcome, probability)
    if not len(bought):
        return Scores(0, None, None, None, None, None, None, None, None)
    base_rate = float(bought.mean())
    loss = float(log_losses(bought, chance).mean())
    both = 0.0 < base_rate < 1.0
    base_loss = float(log_losses(bought, np.full(len(bought), base_rate) if reference is None else reference).mean())
    return Scores(
        count=len(bought),
        base_rate=base_rate,
        auc=auc(bought, chance) if both else None,
        average_precision=float(average_precision_score(bought, chance)) if base_rate > 0.0 else None,
        log_loss=loss,
        log_loss_skill=1.0 - loss / base_loss if both else None,
        brier=float(np.mean((chance - bought) ** 2)),
        calibration_error=calibration_error(bought, chance),
        lift=lift(bought, chance),
    )


def position_rates(prefix_length: ArrayLike, outcome: ArrayLike) -> NDArray[np.float64]:
    """Return (N,) the base rate of these outcomes at each prefix's position.

    Longer sessions buy more often, so against one base rate a model would gain skill by counting events. Neighbouring
    positions are merged until they hold 30 prefixes: the rate of a few prefixes is mostly their own outcome.
    """
    length, bought = np.asarray(prefix_length), np.asarray(outcome, dtype=np.float64)
    _, row, count = np.unique(length, return_inverse=True, return_counts=True)
    group, groups, held = np.zeros(len(count), dtype=np.int64), 0, 0
    for position, prefixes in enumerate(count):
        group[position] = groups
        held += int(prefixes)
        if held >= _LEAST_PREFIXES:
            groups, held = groups + 1, 0
    # The remainder joins the last whole group.
    by_prefix = np.minimum(group, max(groups - 1, 0))[row]
    rates: NDArray[np.float64] = (np.bincount(by_prefix, weights=bought) / np.bincount(by_prefix))[by_prefix]
    return rates


def log_losses(outcome: ArrayLike, probability: ArrayLike) -> NDArray[np.float64]:
    """Return (N,) losses -log p in nats, where p is the probability of the outcome.

    Probabilities are clipped to [1e-15, 1 - 1e-15] first.
    """
    bought, chance = np.asarray(outcome, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    clipped = np.clip(chance, _FLOOR, 1.0 - _FLOOR)
    losses: NDArray[np.float64] = -(bought * np.log(clipped) + (1.0 - bought) * np.log1p(-clipped))
    return losses


def calibration_error(outcome: ArrayLike, probability: ArrayLike, bins: int = CALIBRATION_BINS) -> float | None:
    """Return the expected calibration error: sum over bins of (n_b / N) |mean outcome_b - mean probability_b|.

    Bins hold equally many predictions rather than equally wide ranges (Naeini et al. 2015 with equal-mass bins, as
    Nixon et al. 2019 advise): purchases are rare, and equal widths would put nearly all into one bin. Equal
    probabilities share a bin, so the order of the predictions does not matter. Even perfect probabilities score
    above 0 on a finite sample, about sqrt(2 / pi * bins * p * (1 - p) / N).
    """
    bought, chance = checked(outcome, probability)
    if not len(bought):
        return None
    bin_of = equal_mass_bins(chance, bins)
    gap = np.bincount(bin_of, weights=bought - chance, minlength=bins)
    return float(np.sum(np.abs(gap)) / len(bought))


def lift(outcome: ArrayLike, probability: ArrayLike, share: float = TOP_SHARE) -> float | None:
    """Return the base rate of the highest predictions relative to that of all; None without buyers.

    Args:
        outcome: (N,) outcomes.
        probability: (N,) predictions; equal ones at the border count with the fraction that fits.
        share: share of the predictions that counts as the highest.
    """
    bought, chance = checked(outcome, probability)
    if not bought.any():
        return None
    values, row, ties = np.unique(-chance, return_inverse=True, return_counts=True)
    buyers = np.bincount(row, weights=bought, minlength=len(values))
    size = share * len(chance)
    inside = np.clip(size - (np.cumsum(ties) - ties), 0.0, ties) / ties
    return float(np.sum(buyers * inside) / size / bought.mean())


def checked(outcome: ArrayLike, probability: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both as (N,) arrays.

    Raises:
        ValueError: shapes differ, an outcome is neither 0 nor 1, or a probability is not in [0, 1].
    """
    bought, chance = np.asarray(outcome, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    if bought.ndim != 1 or bought.shape != chance.shape:
        raise ValueError(f"probability: shape {bought.shape} of outcome is needed, one axis, not {chance.shape}")
    if not np.all((bought == 0.0) | (bought == 1.0)):
        raise ValueError("outcome: only 0 and 1 are possible")
    # Written so that NaN fails too.
    if not np.all((chance >= 0.0) & (chance <= 1.0)):
        wrong = chance[~((chance >= 0.0) & (chance <= 1.0))][0]
        raise ValueError(f"probability: a number from 0 to 1 is needed, not {wrong}")
    return bought, chance


def equal_mass_bins(
    probability: NDArray[np.float64], bins: int, weight: NDArray[np.float64] | None = None
) -> NDArray[np.int64]:
    """Return (N,) bins from 0: the bin of a value is where the middle of its ties falls among all predictions.

    Args:
        probability: (N,).
        bins: how many, of equal weight.
        weight: (N,) of each prediction; 1 by default.
    """
    _, row = np.unique(probability, return_inverse=True)
    ties = np.bincount(row, weights=weight)
    middle = np.cumsum(ties) - ties / 2
    bin_of: NDArray[np.int64] = np.floor(middle / max(ties.sum(), 1e-300) * bins).astype(np.int64)[row]
    return np.minimum(bin_of, bins - 1)


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
    """Return the reliability diagram: a point for each non-empty equal-mass bin, in rising probability.

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
    # Clipped, as rounding could move the interval of a share of 0 or 1 by an ulp.
    low, high = np.clip(centre - half, 0.0, observed), np.clip(centre + half, observed, 1.0)
    return [
        ReliabilityPoint(int(c), float(m), float(o), float(lo), float(hi))
        for c, m, o, lo, hi in zip(n, mean, observed, low, high, strict=True)
    ]
