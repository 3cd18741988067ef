"""Calibration: temperature and bias of the logit, fitted on sessions that training did not see.

Platt scaling (Platt, 1999): p = sigmoid(logit / temperature + bias). A network trained with the log loss on every
prefix is nearly calibrated, and a deviation on a tenth of the sessions may be chance, the more so with few buyers. So
the fit is the maximum a posteriori under a prior that the network is right: a shift of 0 with deviation 0.05 at the
mean logit, and a slope of 1 with deviation 0.05. A thousand buyers outweigh the prior; thirty hardly move it.

The prefixes of a session share one outcome, and long sessions have more prefixes. Their weight together is Kish's
effective number of sessions (Kish, 1965, "Survey Sampling", section 11.7).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

# With fewer sessions of either outcome, the two fitted numbers would be noise.
LEAST_SESSIONS: Final = 30
# Deviations of the prior.
_SHIFT: Final = 0.05
_SLOPE: Final = 0.05


@dataclass(frozen=True, slots=True)
class Calibration:
    """p = sigmoid(logit / temperature + bias).

    Attributes:
        temperature, bias: as above.
        weight: weight of the calibration sessions' base rate against the prior, from 0 to 1.
    """

    temperature: float = 1.0
    bias: float = 0.0
    weight: float = 1.0


def calibrated_base_rate(
    sessions: Mapping[str, int], buyers: Mapping[str, int], calibration: Calibration | None
) -> float:
    """Return the base rate that the model's probabilities imply.

    This is the training part's base rate, moved towards the calibration part's by the weight of the calibration: with
    more buyers in that part, by chance or season, the probabilities are higher.

    Args:
        sessions: by part of the split.
        buyers: by part of the split.
        calibration: as fitted; None without one.
    """
    trained = buyers["train"] / sessions["train"]
    if calibration is None:
        return trained
    seen = buyers["calibration"] / sessions["calibration"]
    log_odds = [np.log(rate / (1 - rate)) for rate in (trained, seen)]
    return float(expit(log_odds[0] + calibration.weight * (log_odds[1] - log_odds[0])))


def fit_calibration(
    logit: NDArray[np.float32], outcome: NDArray[np.float32], session_index: NDArray[np.int64], *, trusted: bool = True
) -> Calibration | None:
    """Return temperature and bias, or None where there are too few sessions to fit them.

    Args:
        logit: raw logits of N prefixes.
        outcome: 1 for a purchase, [N].
        session_index: session of each prefix, [N].
        trusted: whether the prior applies, as for a network's logits.
    """
    bought = len(np.unique(session_index[outcome > 0]))
    others = len(np.unique(session_index[outcome <= 0]))
    if min(bought, others) < LEAST_SESSIONS:
        return None
    centre = float(logit.mean(dtype=np.float64))
    centred = logit.astype(np.float64) - centre
    label = outcome > 0
    precision = np.array([1 / _SLOPE**2, 1 / _SHIFT**2]) * trusted
    # Weight of one prefix.
    lengths = np.bincount(session_index)
    share = len(logit) / float((lengths**2).sum())

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        slope, shift = parameters
        value = slope * centred + centre + shift
        error = share * (expit(value) - label)
        off = parameters - np.array([1.0, 0.0])
        gradient = np.array([error @ centred, error.sum()]) + precision * off
        likelihood = share * float((np.logaddexp(0, value) - label * value).sum())
        return likelihood + float(precision @ off**2) / 2, gradient

    slope, shift = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS").x
    if slope <= 0:  # the logit has no information on these sessions; a flipped sign would be chance
        return None
    fitted = expit(slope * centred + centre + shift)
    information = share * float((fitted * (1 - fitted)).sum())
    weight = information / (information + precision[1])
    return Calibration(1.0 / float(slope), float(shift + centre * (1 - slope)), float(weight))
