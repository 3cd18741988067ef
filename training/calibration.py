"""Temperature and bias of the logit, fitted on sessions that training did not see.

Platt scaling (Platt, 1999): p = sigmoid(logit / temperature + bias), by maximum likelihood. A network trained with the
log loss on every prefix is nearly calibrated; what is left is overconfidence from the last epochs.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

# With fewer sessions of either outcome, two numbers fitted to them say more about chance than about the model.
LEAST_SESSIONS: Final = 30


@dataclass(frozen=True, slots=True)
class Calibration:
    """p = sigmoid(logit / temperature + bias)."""

    temperature: float = 1.0
    bias: float = 0.0


def fit_calibration(
    logit: NDArray[np.float32], outcome: NDArray[np.float32], session_index: NDArray[np.int64]
) -> Calibration | None:
    """Return the most likely temperature and bias, or None where there are too few sessions to fit them.

    Args:
        logit: raw logits of N prefixes.
        outcome: 1 for a purchase, [N].
        session_index: which session each prefix is of, [N].
    """
    bought = len(np.unique(session_index[outcome > 0]))
    others = len(np.unique(session_index[outcome <= 0]))
    if min(bought, others) < LEAST_SESSIONS:
        return None
    # C=inf: no penalty.
    fit = LogisticRegression(C=np.inf).fit(logit.astype(np.float64).reshape(-1, 1), outcome > 0)
    slope = float(fit.coef_[0, 0])
    if slope <= 0:  # the logit carries nothing on these sessions; a sign flip would be an accident
        return None
    return Calibration(1.0 / slope, float(fit.intercept_[0]))
