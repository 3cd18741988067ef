"""Earliness and profit, against numbers worked out by hand."""

import numpy as np
import pytest
from support.estimates import known

from training.config import Offer
from training.evaluation.alarms import Peaks, Rule, earliness, peaks_of, profit_curve
from training.evaluation.prefixes import prefixes_of


@pytest.fixture
def peaks() -> Peaks:
    # Two buyers and two others: a buyer found at once, a buyer found late, one false alarm, one quiet session.
    outcome = np.array([1, 1, 1, 1, 1, 0, 0, 0])
    length = np.array([1, 2, 1, 2, 3, 1, 2, 1])
    session = np.array([0, 0, 1, 1, 1, 2, 2, 3])
    said = np.array([0.9, 0.2, 0.1, 0.3, 0.8, 0.1, 0.7, 0.05])
    return peaks_of(prefixes_of(outcome, length, session), said, lengths=(1, 2, 3))


def test_peaks_rise_and_stay(peaks) -> None:
    assert peaks.by_length.tolist() == [
        [0.9, 0.1, 0.1, 0.05],
        [0.9, 0.3, 0.7, 0.05],
        [0.9, 0.8, 0.7, 0.05],
        [0.9, 0.8, 0.7, 0.05],
    ]
    assert peaks.outcome.tolist() == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("target", "threshold", "precision", "share", "recall"),
    [
        (0.9, 0.8, 1.0, 0.5, [0.5, 0.5, 1.0, 1.0]),  # the false alarm would break it
        (0.6, 0.7, 2 / 3, 0.75, [0.5, 0.5, 1.0, 1.0]),
        (0.4, 0.05, 0.5, 1.0, [1.0, 1.0, 1.0, 1.0]),  # all sessions keep it
    ],
)
def test_recall_by_length_at_a_precision(peaks, target, threshold, precision, share, recall) -> None:
    found = earliness(peaks, "precision", target, resamples=20)
    assert found.threshold == pytest.approx(threshold)
    assert found.precision.value == pytest.approx(precision)
    assert found.alarm_share.value == pytest.approx(share)
    assert found.lengths == [1, 2, 3, None]
    assert [one.value for one in found.recall] == pytest.approx(recall)


@pytest.mark.parametrize(("target", "threshold", "recall"), [(0.25, 0.9, 0.5), (0.5, 0.8, 1.0), (0.74, 0.8, 1.0)])
def test_recall_at_an_alarm_share(peaks, target, threshold, recall) -> None:
    found = earliness(peaks, "alarm share", target, resamples=20)
    assert found.threshold == pytest.approx(threshold)
    assert found.recall[-1].value == pytest.approx(recall)


def test_a_rule_that_no_threshold_keeps_is_undefined() -> None:
    # Given two sessions with the same peak, one of them a buyer's: both are alarmed or neither
    peaks = peaks_of(prefixes_of([1, 0], [1, 1], [0, 1]), np.array([0.4, 0.4]), lengths=(1,))
    rules: dict[Rule, float] = {"precision": 0.6, "alarm share": 0.5}
    for rule, target in rules.items():
        found = earliness(peaks, rule, target, resamples=20)
        assert found.threshold is None
        assert found.recall[0].value is None
    assert earliness(peaks, "precision", 0.5, resamples=20).threshold == pytest.approx(0.4)


def test_intervals_of_recall_hold_it_and_shrink_with_more_sessions() -> None:
    widths = []
    for sessions in (200, 3_200):
        rng = np.random.default_rng(1)
        said = rng.random(sessions)
        outcome = (rng.random(sessions) < said).astype(float)
        peaks = peaks_of(prefixes_of(outcome, np.ones(sessions), np.arange(sessions)), said, lengths=(1,))
        value, low, high = known(earliness(peaks, "alarm share", 0.3, resamples=100).recall[-1])
        assert low <= value <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_profit_by_hand(peaks) -> None:
    # A purchase more in ten of those there would have been earns 50, a contact costs 1
    curve = profit_curve(peaks, Offer(margin=50.0, cost=1.0, uplift=0.1), resamples=20)
    at = dict(zip((round(share, 2) for share in curve.shares), (p.value for p in curve.profit), strict=True))
    # Of 1000 sessions: a quarter contacted are 250 buyers, 25 more purchases; a half 500 and 50; then no buyer is left
    assert at[0.0] == 0.0
    assert at[0.24] == pytest.approx(0.1 * 50 * 240 - 240)
    assert at[0.5] == pytest.approx(0.1 * 50 * 500 - 500)
    assert at[1.0] == pytest.approx(0.1 * 50 * 500 - 1000)
    assert curve.best_share == pytest.approx(0.5)
    # The score that the last of that half reaches
    assert curve.best_threshold == np.sort(peaks.by_length[-1])[::-1][len(peaks.outcome) // 2 - 1]
    assert curve.best.value == pytest.approx(2_000)
    # Spread evenly, the same purchases come with the contacts
    assert curve.evenly[-1] == pytest.approx(at[1.0])
    assert np.diff(curve.evenly) == pytest.approx(curve.evenly[-1] / 50)


def test_contacts_that_cost_more_than_they_earn_are_best_left_out(peaks) -> None:
    curve = profit_curve(peaks, Offer(margin=1.0, cost=5.0, uplift=0.1), resamples=20)
    assert (curve.best_share, curve.best.value, curve.best_threshold) == (0.0, 0.0, None)


@pytest.mark.parametrize("name", ["margin", "cost", "uplift"])
def test_an_offer_that_makes_no_sense_is_refused_by_name(name) -> None:
    for value in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"^{name}: expected a number"):
            Offer(**{name: value})
