"""The benchmark against the exact posterior: what it says of models whose distance from the truth is known."""

import numpy as np
import pytest

from benchmarks.synthetic_optimum import Judgement, error_against, expected_log_losses, judged
from training.fit.result import Predictions
from training.fit.train import WILLBUY

SESSIONS, EVENTS = 200, 5


@pytest.fixture
def posterior() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.05, 0.6, SESSIONS * EVENTS)


def judgement(posterior: np.ndarray, probability: np.ndarray) -> Judgement:
    generator = np.random.default_rng(1)
    test = Predictions(
        probability={WILLBUY: probability},
        outcome=(generator.uniform(size=len(posterior)) < posterior).astype(np.float64),
        prefix_length=np.tile(np.arange(1, EVENTS + 1), SESSIONS),
        session_index=np.arange(SESSIONS).repeat(EVENTS),
        session_id=np.array([f"s{number}" for number in range(SESSIONS)], dtype=object),
    )
    return judged("default", SESSIONS, 100, 1.0, test, posterior)


def test_the_truth_itself_has_no_excess_and_only_the_luck_of_the_outcomes_for_a_calibration_error(posterior) -> None:
    truth = judgement(posterior, posterior)
    assert truth.excess.value == truth.observed_excess.value == truth.calibration_error == 0
    assert truth.observed_calibration_error == truth.chance_calibration_error > 0
    assert truth.near
    assert (truth.tested, truth.prefixes) == (SESSIONS, SESSIONS * EVENTS)


def test_the_excess_is_the_divergence_from_the_truth_and_its_interval_holds_it(posterior) -> None:
    off = posterior.clip(0.2, 0.4)
    found = judgement(posterior, off)
    divergence = posterior * np.log(posterior / off) + (1 - posterior) * np.log((1 - posterior) / (1 - off))
    assert found.excess.value == pytest.approx(divergence.mean(), rel=1e-9)
    low, value, high = found.excess.low, found.excess.value, found.excess.high
    assert low is not None
    assert value is not None
    assert high is not None
    assert 0 < low < value < high
    assert found.excess_by_length.keys() == {1, 2, 3, 5}
    assert not found.near


def test_probabilities_that_are_all_too_high_have_that_as_their_calibration_error(posterior) -> None:
    assert error_against(posterior, posterior + 0.03) == pytest.approx(0.03)
    assert not judgement(posterior, posterior + 0.03).near


def test_a_certain_mistake_costs_a_finite_loss() -> None:
    assert expected_log_losses(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(
        [34.5388, 34.5388], abs=1e-3
    )
