"""ROC and precision-recall curves against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from training.evaluation.curves import GRID, ranking_curves


def test_the_curves_by_hand():
    # In falling order: buyer, other, two equal ones of either kind, other
    curves = ranking_curves([1, 0, 1, 0, 0], [0.9, 0.8, 0.5, 0.5, 0.1])
    assert curves is not None
    at = dict(zip([round(place, 2) for place in GRID], zip(curves.recall, curves.precision, strict=True), strict=True))
    # No false alarm: half the buyers. A third: the second alarm. Two thirds: all buyers, through the tie
    assert at[0.0][0] == 0.5
    assert at[0.33][0] == pytest.approx(0.5, abs=0.01)
    assert at[0.5][0] == pytest.approx(0.75, abs=0.01)
    assert at[0.67][0] == at[1.0][0] == 1
    # Half the buyers need one alarm, more of them four
    assert [at[share][1] for share in (0.01, 0.5, 0.51, 1.0)] == [1, 1, 0.5, 0.5]


def test_the_areas_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    bought = rng.random(5000) < 0.2
    chance = np.round(1 / (1 + np.exp(-(rng.normal(size=5000) + 1.5 * bought))), 3)
    curves = ranking_curves(bought.astype(float), chance)
    assert curves is not None
    assert np.trapezoid(curves.recall, GRID) == pytest.approx(roc_auc_score(bought, chance), abs=2e-3)
    assert np.mean(curves.precision) == pytest.approx(average_precision_score(bought, chance), abs=1e-2)


@pytest.mark.parametrize("outcome", [[1, 1], [0, 0]], ids=["buyers only", "none"])
def test_one_class_has_no_curve(outcome):
    assert ranking_curves(outcome, [0.1, 0.2]) is None
