"""The area under the ROC curve: the one computation for training, evaluation and the service's quality figures."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def auc_of_groups(positives: ArrayLike, negatives: ArrayLike) -> NDArray[np.float64]:
    """Return the probability that a positive has a higher score than a negative, ties counting half.

    This is the Mann-Whitney statistic over all pairs (Hanley & McNeil, 1982).

    Args:
        positives: (G, ...) weight of the positives in each group of equal score, groups in rising order of score.
        negatives: (G, ...) weight of the negatives.

    Returns:
        (...) the AUC of each batch; NaN where there are no positives or no negatives.
    """
    bought, left = np.asarray(positives, dtype=np.float64), np.asarray(negatives, dtype=np.float64)
    below = np.cumsum(left, axis=0) - left
    pairs = bought.sum(axis=0) * left.sum(axis=0)
    won = (bought * (below + left / 2)).sum(axis=0)
    auc: NDArray[np.float64] = np.divide(won, pairs, out=np.full_like(won, np.nan), where=pairs > 0)
    return auc


def auc(outcome: ArrayLike, score: ArrayLike) -> float:
    """Return the AUC of N scores; NaN with one class only.

    Args:
        outcome: (N,) 1 or True for positives, 0 or False for negatives.
        score: (N,) higher for likelier positives.
    """
    is_positive = np.asarray(outcome, dtype=np.float64)
    _, group = np.unique(np.asarray(score), return_inverse=True)
    positives = np.bincount(group, weights=is_positive)
    return float(auc_of_groups(positives, np.bincount(group) - positives))
