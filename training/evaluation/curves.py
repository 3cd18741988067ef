"""The receiver operating characteristic and the precision-recall curve of predictions, on grids that charts share."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from training.evaluation.metrics import checked

GRID: Final = tuple(np.linspace(0.0, 1.0, 101).tolist())
"""Places of both curves."""


@dataclass(frozen=True, slots=True)
class RankingCurves:
    """How the predictions rank, at each share of `GRID`.

    Attributes:
        recall: share of the buyers above the threshold that lets through so many of the others (ROC). Between two
            thresholds a straight line, as of a coin that chooses between them.
        precision: share of buyers above the highest threshold that reaches so much recall.
    """

    recall: list[float]
    precision: list[float]


def ranking_curves(outcome: ArrayLike, probability: ArrayLike) -> RankingCurves | None:
    """Return the curves of N predictions; None with one class only.

    Raises:
        ValueError: as for `training.evaluation.metrics.score`.
    """
    bought, chance = checked(outcome, probability)
    buyers = bought.sum()
    if buyers in (0.0, len(bought)):
        return None
    order = np.argsort(-chance, kind="stable")
    # A threshold takes all equal probabilities or none.
    last = np.append(np.nonzero(np.diff(chance[order]))[0], len(order) - 1)
    hits = np.cumsum(bought[order])[last]
    alarms = last + 1.0
    recall = hits / buyers
    false_alarms = (alarms - hits) / (len(bought) - buyers)
    grid = np.asarray(GRID)
    at = np.searchsorted(recall, grid * (1 - 1e-12), side="left")
    return RankingCurves(
        recall=np.interp(grid, np.append(0.0, false_alarms), np.append(0.0, recall)).tolist(),
        precision=(hits / alarms)[np.minimum(at, len(last) - 1)].tolist(),
    )
