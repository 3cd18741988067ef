"""Metrics against numbers worked out by hand, scikit-learn, and the corners where a metric is undefined."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference

from training.evaluation.metrics import (
    Scores,
    calibration_error,
    equal_mass_bins,
    lift,
    log_losses,
    position_rates,
    reliability,
    score,
)


def test_scores_of_four_predictions_worked_out_by_hand() -> None:
    scores = score([1, 0, 1, 0], [0.8, 0.6, 0.4, 0.2])

    assert scores.count == 4
    assert scores.base_rate == 0.5
    assert scores.auc == pytest.approx(3 / 4)  # of four pairs only (0.4, 0.6) is in the wrong order
    assert scores.average_precision == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    loss = -(math.log(0.8) + math.log(0.4) + math.log(0.4) + math.log(0.8)) / 4
    assert scores.log_loss == pytest.approx(loss)
    assert scores.log_loss_skill == pytest.approx(1 - loss / math.log(2))
    assert scores.brier == pytest.approx((0.04 + 0.36 + 0.36 + 0.04) / 4)
    assert scores.calibration_error == pytest.approx((0.2 + 0.6 + 0.6 + 0.2) / 4)  # each in a bin of its own


def test_scores_agree_with_scikit_learn_on_many_predictions_with_ties() -> None:
    rng = np.random.default_rng(2)
    probability = np.round(rng.random(5_000), 2)
    outcome = rng.random(5_000) < probability

    scores = score(outcome, probability)

    assert scores.auc == pytest.approx(reference.roc_auc_score(outcome, probability))
    assert scores.average_precision == pytest.approx(reference.average_precision_score(outcome, probability))
    assert scores.brier == pytest.approx(reference.brier_score_loss(outcome, probability))
    inside = np.clip(probability, 1e-15, 1 - 1e-15)
    assert scores.log_loss == pytest.approx(reference.log_loss(outcome, inside))


def test_always_saying_the_base_rate_has_no_skill_and_no_calibration_error() -> None:
    outcome = np.arange(1_000) % 8 == 0

    scores = score(outcome, np.full(1_000, 0.125))

    assert scores.auc == 0.5
    assert scores.log_loss_skill == pytest.approx(0.0, abs=1e-12)
    assert scores.calibration_error == pytest.approx(0.0, abs=1e-12)


def test_no_predictions_have_no_scores() -> None:
    assert score([], []) == Scores(0, None, None, None, None, None, None, None, None)
    assert reliability([], []) == []
    assert calibration_error([], []) is None


@pytest.mark.parametrize("only", [0, 1])
def test_one_class_alone_has_no_ranking_and_no_skill(only: int) -> None:
    scores = score([only] * 3, [0.2, 0.5, 0.9])

    assert scores.auc is None
    assert scores.log_loss_skill is None
    assert scores.average_precision == (None if only == 0 else 1.0)
    assert scores.log_loss is not None
    assert scores.brier is not None


def test_a_confident_mistake_costs_much_and_not_infinitely_much() -> None:
    assert log_losses([1, 0], [0.0, 1.0]) == pytest.approx([34.54, 34.54], abs=0.01)
    # float32 is what a model gives: one minus the smallest step below one must not become certainty.
    assert np.isfinite(log_losses([0], np.array([1.0], dtype=np.float32))).all()


def test_lift_of_ten_predictions_is_that_of_the_highest() -> None:
    probability = np.arange(10) / 10
    assert lift([0, 1, 0, 0, 0, 0, 0, 0, 0, 1], probability) == pytest.approx(1 / 0.2)
    assert lift([1, 1, 0, 0, 0, 0, 0, 0, 0, 0], probability) == 0.0


def test_lift_counts_ties_at_the_border_by_the_part_that_fits() -> None:
    # Of ten, the top decile is one: a half of two that are tied, one of which bought
    assert lift([0] * 7 + [1, 0, 1], [0.1] * 8 + [0.9] * 2) == pytest.approx(0.5 / 0.2)
    # Of five, it is a half of the one at the top
    assert lift([1, 0, 0, 0, 0], [0.9, 0.1, 0.1, 0.1, 0.1]) == pytest.approx(1 / 0.2)
    assert lift([1, 0, 0, 1], [0.5] * 4) == pytest.approx(1.0)
    assert lift([0, 0], [0.5, 0.6]) is None


@pytest.mark.parametrize(("first", "rates"), [(30, (1.0, 0.0)), (29, (29 / 59, 29 / 59))])
def test_thirty_prefixes_have_a_rate_of_their_own(first: int, rates: tuple[float, float]) -> None:
    found = position_rates([1] * first + [2] * 30, [1] * first + [0] * 30)
    assert (found[0], found[-1]) == pytest.approx(rates)


def test_a_value_is_in_the_bin_where_the_middle_of_its_ties_lies() -> None:
    # Of ten predictions in two bins, the middle of the upper six is at seven, though they begin at four
    probability = np.array([0.9] * 6 + [0.1] * 4)
    assert equal_mass_bins(probability, 2).tolist() == [1] * 6 + [0] * 4
    # With a weight of one half each, the lower four have as much weight as before, the upper six the rest
    weight = np.array([0.5] * 6 + [3.0] * 4)
    assert equal_mass_bins(probability, 5, weight).tolist() == [4] * 6 + [2] * 4
    assert equal_mass_bins(np.array([0.3, 0.1, 0.2]), 3).tolist() == [2, 0, 1]


def test_position_rates_take_sparse_positions_together() -> None:
    # Given 40 prefixes at the first position, 20 each at the second and third, and 10 at the fourth
    position = np.repeat([1, 2, 3, 4], [40, 20, 20, 10])
    outcome = np.concatenate([np.arange(40) < 10, np.arange(20) < 4, np.arange(20) < 8, np.arange(10) < 8])
    # Then the second and third share a rate, with the few of the fourth
    rates = position_rates(position, outcome)
    assert rates[position == 1] == pytest.approx(10 / 40)
    assert rates[position > 1] == pytest.approx(20 / 50)
    # And what has no group of thirty at all has one rate
    assert position_rates([1, 2, 2], [1, 0, 0]) == pytest.approx(1 / 3)


def test_counting_events_is_no_skill() -> None:
    # Given sessions of two lengths, the longer ones buyers more often, and a model that says just that
    position = np.repeat([1, 2], [400, 100])
    outcome = np.concatenate([np.arange(400) % 8 == 0, np.arange(100) % 2 == 0])
    counting = np.where(position == 1, 0.125, 0.5)
    assert score(outcome, counting, position_rates(position, outcome)).log_loss_skill == pytest.approx(0.0, abs=1e-12)
    against_one_rate = score(outcome, counting).log_loss_skill
    assert against_one_rate is not None
    assert against_one_rate > 0.05


def test_calibration_error_with_bins_worked_out_by_hand() -> None:
    probability = [0.1, 0.2, 0.6, 0.7]
    outcome = [0, 1, 1, 1]
    # Bins {0.1, 0.2} and {0.6, 0.7}: |0.5 - 0.15| and |1 - 0.65|, half of the predictions each.
    assert calibration_error(outcome, probability, bins=2) == pytest.approx(0.35)


def test_calibration_error_does_not_depend_on_the_order_of_tied_predictions() -> None:
    probability = np.repeat([0.1, 0.3], 50)
    outcome = np.concatenate([np.ones(5), np.zeros(45), np.ones(15), np.zeros(35)])
    shuffled = np.random.default_rng(0).permutation(100)

    assert calibration_error(outcome, probability) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error(outcome[shuffled], probability[shuffled]) == pytest.approx(0.0, abs=1e-12)


def test_reliability_points_hold_equally_many_predictions_and_wilsons_interval() -> None:
    probability = np.arange(200) / 200
    outcome = np.zeros(200)
    outcome[[110, 120, 130]] = 1

    low, high = reliability(outcome, probability, bins=2)

    assert (low.count, high.count) == (100, 100)
    assert (low.probability, high.probability) == pytest.approx((0.2475, 0.7475))
    assert (low.observed, low.low) == (0.0, 0.0)
    assert low.high == pytest.approx(3.8415 / 103.8415, abs=1e-5)  # z^2 / (n + z^2) when none of n bought
    assert high.observed == pytest.approx(0.03)
    # What defines the interval: at its ends the observed share is just 1.96 standard errors away.
    for end in (high.low, high.high):
        assert abs(0.03 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 100), rel=1e-6)


def test_reliability_of_one_constant_is_one_point() -> None:
    (point,) = reliability([1, 0, 0, 0], [0.25] * 4)

    assert (point.count, point.probability, point.observed) == (4, 0.25, 0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: score([0, 1], [0.5]), "^probability: shape"),
        (lambda: score([[0, 1]], [[0.5, 0.5]]), "^probability: shape"),
        (lambda: score([0, 2], [0.5, 0.5]), "^outcome: "),
        (lambda: score([0, 1], [0.5, math.nan]), "^probability: .* not nan"),
        (lambda: score([0, 1], [0.5, 1.5]), "^probability: .* not 1.5"),
    ],
)
def test_wrong_input_is_refused_by_name(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
