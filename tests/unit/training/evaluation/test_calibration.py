"""Calibration: temperature and bias that were planted are found, and none are made up."""

import numpy as np
import pytest

from training.evaluation.calibration import LEAST_SESSIONS, Calibration, fit_calibration


def prefixes(
    sessions: int, temperature: float, bias: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits that are off by a known temperature and bias, four prefixes a session."""
    random = np.random.default_rng(seed)
    truth = random.normal(-1.0, 1.5, sessions)
    outcome = (random.random(sessions) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    said = (truth - bias) * temperature
    return np.repeat(said, 4).astype(np.float32), np.repeat(outcome, 4), np.repeat(np.arange(sessions), 4)


@pytest.mark.parametrize(("temperature", "bias"), [(1.0, 0.0), (2.5, 0.0), (0.5, -0.7), (1.7, 0.8)])
def test_planted_temperature_and_bias_are_found(temperature: float, bias: float) -> None:
    found = fit_calibration(*prefixes(20_000, temperature, bias), trusted=False)
    assert found is not None
    assert found.temperature == pytest.approx(temperature, rel=0.06)
    assert found.bias == pytest.approx(bias, abs=0.08)


def test_calibrated_probabilities_are_as_frequent_as_they_say() -> None:
    logit, outcome, index = prefixes(20_000, 3.0, 0.5)
    found = fit_calibration(logit, outcome, index, trusted=False)
    assert found is not None
    probability = 1 / (1 + np.exp(-(logit / found.temperature + found.bias)))
    # A maximum of the likelihood with an intercept is right on average, exactly.
    assert probability.mean() == pytest.approx(outcome.mean(), abs=1e-4)


@pytest.mark.parametrize("buyer", [0.0, 1.0])
def test_too_few_sessions_of_either_outcome_are_not_fitted(buyer: float) -> None:
    # Given many prefixes, of one session fewer than needed
    def sessions(rare: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        outcome = np.array([buyer] * rare + [1 - buyer] * 500, dtype=np.float32)
        logit = np.where(outcome > 0, 1.0, -1.0) + np.random.default_rng(0).normal(0, 1, len(outcome))
        return np.repeat(logit, 50).astype(np.float32), np.repeat(outcome, 50), np.repeat(np.arange(len(outcome)), 50)

    assert fit_calibration(*sessions(LEAST_SESSIONS - 1)) is None
    assert fit_calibration(*sessions(LEAST_SESSIONS)) is not None


def test_logits_that_rank_the_wrong_way_are_not_turned_round() -> None:
    logit, outcome, index = prefixes(2000, 1.0, 0.0)
    assert fit_calibration(-logit, outcome, index) is None


def test_no_calibration_leaves_logits_as_they_are() -> None:
    assert Calibration() == Calibration(temperature=1.0, bias=0.0)


def test_chance_among_few_buyers_hardly_moves_a_network_that_is_right() -> None:
    # Given 100 slices of 400 sessions on which the logits are exactly right
    moved: dict[bool, list[float]] = {trusted: [] for trusted in (True, False)}
    for seed in range(100):
        data = prefixes(400, 1.0, 0.0, seed)
        for trusted, errors in moved.items():
            found = fit_calibration(*data, trusted=trusted)
            assert found is not None
            errors.append(abs(data[0].mean() * (1 / found.temperature - 1) + found.bias))
    # Then the shift at the mean logit is smaller by more than half where the prior is heard
    assert np.mean(moved[True]) < 0.5 * np.mean(moved[False])


def test_the_weight_says_how_far_the_base_rate_went_from_training_to_calibration() -> None:
    few, many = fit_calibration(*prefixes(200, 1.0, 0.0)), fit_calibration(*prefixes(100_000, 1.0, 0.0))
    assert few is not None
    assert many is not None
    assert 0.0 < few.weight < 0.2
    assert 0.95 < many.weight < 1.0
