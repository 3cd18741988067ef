"""All scores of a set of predictions under many weightings of the sessions at once.

This computes the scores of `training.evaluation.metrics.score` for a block of bootstrap resamples. Predictions are
sorted once into groups of equal probability; each resample sums its weights over the groups, as a product of a sparse
matrix with the weights.

Shape legend: N predictions, S sessions, R resamples of a block, U groups of equal probability, in rising order.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from model.auc import auc_of_groups
from training.evaluation.metrics import CALIBRATION_BINS, TOP_SHARE, equal_mass_bins, log_losses
from training.evaluation.resampling import Weights

_Floats = NDArray[np.float64]

MOST_GROUPS: Final = 1024
"""With more distinct probabilities, the ranking within a resample distinguishes quantiles only."""


class Scoring:
    """The scores of N predictions, to be computed under any weights of the sessions.

    Args:
        outcome: (N,) 0 or 1.
        probability: (N,).
        session: (N,) from 0 to S - 1.
        sessions: S.
        weight: (N,) of each prediction within its session.
        reference: (N,) probabilities that the skill is measured against.
        exact: whether to distinguish all probabilities, rather than `MOST_GROUPS` quantiles of them.
    """

    def __init__(
        self,
        outcome: _Floats,
        probability: _Floats,
        session: NDArray[np.int64],
        sessions: int,
        weight: _Floats,
        reference: _Floats,
        *,
        exact: bool,
    ) -> None:
        distinct, group = np.unique(probability, return_inverse=True)
        if not exact and len(distinct) > MOST_GROUPS:
            group = equal_mass_bins(probability, MOST_GROUPS, weight)
        shape = (int(group.max()) + 1, sessions)
        # Summed over equal entries: how much weight each session has in each group, all of it and of buyers.
        self._every = csr_array((weight, (group, session)), shape=shape)
        self._buyers = csr_array((weight * outcome, (group, session)), shape=shape)
        self._sums = np.stack(
            [
                np.bincount(session, weights=weight * values, minlength=sessions)
                for values in (
                    np.ones(len(outcome)),
                    outcome,
                    log_losses(outcome, probability),
                    log_losses(outcome, reference),
                    (probability - outcome) ** 2,
                )
            ]
        )
        bin_of = equal_mass_bins(probability, CALIBRATION_BINS, weight)
        cell = bin_of * sessions + session
        by_bin = np.bincount(cell, weights=weight * (outcome - probability), minlength=CALIBRATION_BINS * sessions)
        self._gaps = by_bin.reshape(CALIBRATION_BINS, sessions)

    def __call__(self, weights: Weights) -> dict[str, _Floats]:
        """Return each score (R,) by its name in `training.evaluation.metrics.Scores`, and `gaps` (bins, R).

        `gaps` is, by bin of the calibration error, the mean over all predictions of outcome minus probability.
        """
        total, bought, loss, reference_loss, square = self._sums @ weights
        with np.errstate(divide="ignore", invalid="ignore"):
            base_rate = bought / total
            both = (bought > 0) & (bought < total * (1 - 1e-12))
            gaps = self._gaps @ weights / total
            return {
                "base_rate": base_rate,
                "log_loss": loss / total,
                "log_loss_skill": np.where(both, 1.0 - loss / reference_loss, np.nan),
                "brier": square / total,
                "calibration_error": np.abs(gaps).sum(axis=0),
                "gaps": gaps,
                **self._ranking(weights, both),
            }

    def _ranking(self, weights: Weights, both: NDArray[np.bool_]) -> dict[str, _Floats]:
        every, buyers = self._every @ weights, self._buyers @ weights
        auc = np.where(both, auc_of_groups(buyers, every - buyers), np.nan)
        # From the highest probability down, as a threshold falls.
        every, buyers = every[::-1], buyers[::-1]
        reached, caught = np.cumsum(every, axis=0), np.cumsum(buyers, axis=0)
        precision = np.divide(caught, reached, out=np.zeros_like(caught), where=reached > 0)
        bought, total = caught[-1], reached[-1]
        size = TOP_SHARE * total
        inside = np.clip(size - (reached - every), 0.0, every)
        top = (buyers * np.divide(inside, every, out=np.zeros_like(every), where=every > 0)).sum(axis=0)
        return {
            "auc": auc,
            "average_precision": np.where(bought > 0, (buyers * precision).sum(axis=0) / bought, np.nan),
            "lift": np.where(bought > 0, top / size / (bought / total), np.nan),
        }
