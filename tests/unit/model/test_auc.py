"""The one AUC: against scikit-learn, with ties, weights, batches, and where it is undefined."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from model.auc import auc, auc_of_groups


@pytest.mark.parametrize("digits", [1, 2, 8])
def test_it_is_that_of_scikit_learn_whatever_the_ties(digits: int) -> None:
    rng = np.random.default_rng(digits)
    score = rng.random(500).round(digits)
    outcome = rng.random(500) < score
    assert auc(outcome, score) == pytest.approx(roc_auc_score(outcome, score), abs=1e-12)


def test_ties_count_half() -> None:
    assert auc([1, 0, 1, 0], [0.3, 0.3, 0.3, 0.3]) == 0.5
    assert auc([1, 0], [0.9, 0.1]) == 1.0


def test_groups_are_weighted_pairs() -> None:
    # Of 3 * 4 pairs: the positive in the low group beats none and ties with 3, the two others beat all four or tie
    # with one.
    assert auc_of_groups([1, 2], [3, 1]) == pytest.approx((1 * 1.5 + 2 * (3 + 0.5)) / 12)


def test_further_axes_are_a_batch() -> None:
    positives = np.array([[1, 0], [2, 5]])
    negatives = np.array([[3, 4], [1, 0]])
    expected = [auc_of_groups(positives[:, column], negatives[:, column]) for column in (0, 1)]
    np.testing.assert_array_equal(auc_of_groups(positives, negatives), expected)


def test_one_class_alone_has_none() -> None:
    assert np.isnan(auc([1, 1], [0.1, 0.2]))
    assert np.isnan(auc_of_groups([[0.0, 1.0]], [[1.0, 1.0]])).tolist() == [True, False]
