"""Scores under weights of sessions, against `evaluation.metrics.score` of the sessions drawn one by one."""

from collections.abc import Callable

import numpy as np
import pytest

from training.evaluation.metrics import calibration_error, position_rates, score
from training.evaluation.prefixes import prefixes_of
from training.evaluation.resampling import Estimate, estimate, once, resample
from training.evaluation.scoring import MOST_GROUPS, Scoring

SCORES = ("auc", "average_precision", "log_loss", "brier", "lift", "base_rate")


def shop(sessions: int, seed: int, *, ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Outcome, probability, session and prefix length of every prefix; probabilities tell something."""
    rng = np.random.default_rng(seed)
    length = rng.integers(1, 8, sessions)
    session = np.repeat(np.arange(sessions), length)
    strength = rng.normal(-1.0, 1.2, sessions)
    outcome = (rng.random(sessions) < 1 / (1 + np.exp(-strength))).astype(float)[session]
    probability = 1 / (1 + np.exp(-(strength[session] + rng.standard_normal(len(session)))))
    prefix_length = np.concatenate([np.arange(1, n + 1) for n in length])
    return outcome, np.round(probability, 1) if ties else probability, session, prefix_length


def scoring(outcome, probability, session, sessions, reference=None, weight=None, *, exact=True) -> Scoring:
    ones = np.ones(len(outcome))
    reference = np.full(len(outcome), outcome.mean()) if reference is None else reference
    return Scoring(outcome, probability, session, sessions, ones if weight is None else weight, reference, exact=exact)


@pytest.mark.parametrize("ties", [False, True])
def test_unweighted_scores_are_those_of_the_plain_metrics(ties) -> None:
    outcome, probability, session, prefix_length = shop(300, 1, ties=ties)
    reference = position_rates(prefix_length, outcome)

    found = once(scoring(outcome, probability, session, 300, reference), 300)

    expected = score(outcome, probability, reference)
    for name in (*SCORES, "log_loss_skill", "calibration_error"):
        assert found[name] == pytest.approx(getattr(expected, name)), name


@pytest.mark.parametrize("ties", [False, True])
def test_a_session_with_weight_n_counts_as_if_it_were_there_n_times(ties) -> None:
    outcome, probability, session, _ = shop(120, 2, ties=ties)
    weights = np.random.default_rng(0).integers(0, 4, size=(120, 5)).astype(float)

    found = scoring(outcome, probability, session, 120)(weights)

    for column in range(5):
        times = weights[session, column].astype(int)
        expected = score(np.repeat(outcome, times), np.repeat(probability, times))
        for name in SCORES:
            assert found[name][column] == pytest.approx(getattr(expected, name)), name


def test_prefixes_that_weigh_one_by_length_make_every_session_weigh_the_same() -> None:
    # Given a session of three prefixes and one of a single prefix
    outcome, probability = np.array([1.0, 1.0, 1.0, 0.0]), np.array([0.5, 0.8, 0.8, 0.3])
    session = np.array([0, 0, 0, 1])

    found = once(scoring(outcome, probability, session, 2, weight=np.array([1 / 3, 1 / 3, 1 / 3, 1.0])), 2)

    assert found["log_loss"] == pytest.approx((-(np.log(0.5) + 2 * np.log(0.8)) / 3 - np.log(0.7)) / 2)
    assert found["base_rate"] == pytest.approx(0.5)
    assert found["auc"] == pytest.approx(1.0)


def test_of_many_probabilities_quantiles_rank_nearly_as_well() -> None:
    outcome, probability, session, _ = shop(2_000, 3, ties=False)
    assert len(np.unique(probability)) > 4 * MOST_GROUPS

    coarse, exact = (once(scoring(outcome, probability, session, 2_000, exact=e), 2_000) for e in (False, True))

    for name in ("auc", "average_precision", "lift"):
        assert coarse[name] == pytest.approx(exact[name], abs=2e-3)
        assert coarse[name] != exact[name]
    assert coarse["log_loss"] == exact["log_loss"]


@pytest.mark.parametrize("only", [0.0, 1.0])
def test_a_resample_of_one_class_alone_has_no_ranking(only) -> None:
    outcome = np.array([only, only, 1.0 - only])
    found = scoring(outcome, np.array([0.2, 0.4, 0.6]), np.arange(3), 3)(np.array([[1.0], [1.0], [0.0]]))
    assert np.isnan(found["auc"][0])
    assert np.isnan(found["log_loss_skill"][0])
    assert found["log_loss"][0] > 0


def test_gaps_add_up_to_the_calibration_error() -> None:
    outcome, probability, session, _ = shop(300, 4, ties=False)
    found = once(scoring(outcome, probability, session, 300), 300)
    assert np.abs(found["gaps"]).sum() == pytest.approx(calibration_error(outcome, probability))


# --- the bootstrap


def test_the_same_seed_gives_the_same_resamples_whatever_the_block_size(monkeypatch) -> None:
    outcome, probability, session, _ = shop(80, 5, ties=False)
    statistic = scoring(outcome, probability, session, 80)
    (whole,) = resample([statistic], 80, resamples=30, seed=7)
    done: list[int] = []
    monkeypatch.setattr("training.evaluation.resampling._CELLS", 800)  # private: several chunks of a small table
    (blocks,) = resample([statistic], 80, resamples=30, seed=7, progress=done.append)
    assert done == [10, 20, 30]
    np.testing.assert_allclose(blocks["auc"], whole["auc"])
    (other,) = resample([statistic], 80, resamples=30, seed=8)
    assert other["auc"].tolist() != whole["auc"].tolist()


def test_intervals_are_as_wide_as_sessions_and_not_prefixes_make_them() -> None:
    # Given 400 sessions of 25 equal prefixes
    rng = np.random.default_rng(6)
    probability = np.repeat(rng.uniform(0.05, 0.6, 400), 25)
    outcome = np.repeat((rng.random(400) < probability[::25]).astype(float), 25)
    session = np.repeat(np.arange(400), 25)
    statistic = scoring(outcome, probability, session, 400)

    (drawn,) = resample([statistic], 400, resamples=2_000, seed=0)

    found = estimate(float(once(statistic, 400)["brier"]), drawn["brier"])
    assert found.low is not None
    assert found.high is not None
    errors = (probability[::25] - outcome[::25]) ** 2
    assert found.value == pytest.approx(errors.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * errors.std() / 20, rel=0.08)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    # Given the truth: the scores of a very large sample of the same shop
    names = ("auc", "log_loss", "lift")
    outcome, probability, session, _ = shop(60_000, 0, ties=False)
    truth = score(outcome, probability)
    # When 150 samples of 250 sessions each give intervals
    held = dict.fromkeys(names, 0)
    for seed in range(1, 151):
        outcome, probability, session, _ = shop(250, seed, ties=False)
        statistic = scoring(outcome, probability, session, 250)
        (drawn,) = resample([statistic], 250, resamples=150, seed=seed)
        sample = once(statistic, 250)
        for name in names:
            found = estimate(float(sample[name]), drawn[name])
            assert found.low is not None
            assert found.high is not None
            held[name] += found.low <= getattr(truth, name) <= found.high
    # Then 95 % of them hold it; of 150, less than 132 or all of them would be most unlikely.
    assert all(132 <= count < 150 for count in held.values()), held


def test_what_is_undefined_in_most_resamples_has_no_interval() -> None:
    undefined = np.array([np.nan] * 6 + [0.5] * 4)
    assert estimate(0.5, undefined) == Estimate(0.5, None, None)
    assert estimate(float("nan"), np.ones(10)) == Estimate(None, None, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: resample([], 0), "^sessions: "),
        (lambda: resample([], 1, resamples=0), "^resamples: "),
        (lambda: prefixes_of([], [], []), "^outcome: "),
        (lambda: prefixes_of([1.0], [1, 2], [0]), "^prefix_length: "),
        (lambda: prefixes_of([1.0], [1], [0, 1]), "^session_index: "),
    ],
)
def test_wrong_input_is_refused_by_name(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
