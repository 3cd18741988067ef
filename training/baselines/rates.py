"""Shares of buyers among the training sessions: what is known without looking at what a visitor did, or at the cart.

Shape legend: N events of the predicted sessions.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.data.encoded import Encoded
from training.evaluation.slices import cart_seen

# A position with fewer training sessions than this borrows from the one before it.
_LEAST_SESSIONS: Final = 30


def base_rate_by_position(train: Encoded, test: Encoded) -> NDArray[np.float64]:
    """Predict for each test event the share of buyers among the training sessions that came as far, [N]."""
    everyone = np.zeros(len(train.columns.timestamp_ms), dtype=np.int64)
    return _rates(train, test, everyone, np.zeros(len(test.columns.timestamp_ms), dtype=np.int64), groups=1)


def cart_seen_by_position(train: Encoded, test: Encoded) -> NDArray[np.float64]:
    """Predict for each test event the same of those sessions alone that had, or had not, filled a cart by then, [N]."""
    return _rates(
        train,
        test,
        cart_seen(train.columns).astype(np.int64),
        cart_seen(test.columns).astype(np.int64),
        groups=2,
    )


def _rates(
    train: Encoded, test: Encoded, group: NDArray[np.int64], test_group: NDArray[np.int64], *, groups: int
) -> NDArray[np.float64]:
    """Return the share of buyers by position and group, of the position before where too few sessions came to one."""
    position, test_position = (data.columns.prefix_length().numpy() for data in (train, test))
    longest = int(max(position.max(), test_position.max()))
    bought = train.columns.outcome.numpy()[train.columns.session_index().numpy()] > 0
    cell = group * (longest + 1) + position
    sessions = np.bincount(cell, minlength=groups * (longest + 1)).reshape(groups, -1)
    buyers = np.bincount(cell[bought], minlength=groups * (longest + 1)).reshape(groups, -1)
    # The rule of succession keeps a rate off 0 and 1, where the log loss has no bound.
    outcome = train.columns.outcome.numpy() > 0
    rate = np.full(groups, (outcome.sum() + 1) / (len(outcome) + 2))
    rates = np.empty((groups, longest + 1))
    for at in range(longest + 1):
        enough = sessions[:, at] >= _LEAST_SESSIONS
        rate = np.where(enough, (buyers[:, at] + 1) / (sessions[:, at] + 2), rate)
        rates[:, at] = rate
    by_event: NDArray[np.float64] = rates[test_group, test_position]
    return by_event
