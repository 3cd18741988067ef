"""The bootstrap of a mean: sessions are resampled, not prefixes, and each counts by its length."""

import math

import numpy as np
import pytest

from training.evaluation.resampling import UNDEFINED, ClusterMean, Estimate, estimate, once, resample


def interval(session: np.ndarray, values: np.ndarray, *, resamples: int, seed: int = 0) -> Estimate:
    sessions = int(session.max()) + 1
    statistic = ClusterMean(values, session, sessions)
    (drawn,) = resample([statistic], sessions, resamples=resamples, seed=seed)
    return estimate(float(once(statistic, sessions)["mean"]), drawn["mean"])


def test_sessions_are_resampled_and_not_prefixes() -> None:
    # Given 400 sessions of 25 prefixes that all share the session's difference
    per_session = np.random.default_rng(4).normal(0.1, 1.0, 400)
    found = interval(np.repeat(np.arange(400), 25), np.repeat(per_session, 25), resamples=4_000, seed=1)
    # Then the width is that of 400 independent values, not of 10,000
    assert found.value == pytest.approx(per_session.mean())
    assert found.low is not None
    assert found.high is not None
    half_width = 1.96 * per_session.std() / math.sqrt(400)
    assert (found.high - found.low) / 2 == pytest.approx(half_width, rel=0.08)


def test_sessions_weigh_by_their_length() -> None:
    found = interval(np.array([1, 1, 1, 0]), np.array([1.0, 1.0, 1.0, -1.0]), resamples=1_000)
    assert found.value == pytest.approx(0.5)
    assert (found.low, found.high) == (-1.0, 1.0)
    # A resample has the session of three, or the session of one, or both, which is no mean of two means
    (drawn,) = resample([ClusterMean(np.array([1.0, 1.0, 1.0, -1.0]), np.array([1, 1, 1, 0]), 2)], 2, resamples=100)
    assert set(drawn["mean"].tolist()) == {-1.0, 0.5, 1.0}


def test_values_weigh_by_their_weight_within_their_session() -> None:
    mean = ClusterMean(np.array([1.0, 4.0, 10.0]), np.array([0, 0, 1]), 2, np.array([3.0, 1.0, 2.0]))
    # (3 * 1 + 1 * 4 + 2 * 10) / 6 with each session once, (3 + 4) / 4 of the first alone
    assert mean(np.array([[1.0, 1.0], [1.0, 0.0]]))["mean"] == pytest.approx([27 / 6, 7 / 4])
    assert np.isnan(mean(np.zeros((2, 1)))["mean"]).all()


def test_each_resample_draws_as_many_sessions_as_there_are_with_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def keep(weights: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(weights)
        return {"sum": weights.sum(axis=0)}

    done: list[int] = []
    # Seven resamples of 40 sessions, three at a time
    monkeypatch.setattr("training.evaluation.resampling._CELLS", 3 * 40)  # private: several chunks of a small table
    (drawn,) = resample([keep], 40, resamples=7, seed=2, progress=done.append)
    assert drawn["sum"].tolist() == [40] * 7
    assert [weights.shape for weights in seen] == [(40, 3), (40, 3), (40, 1)]
    assert done == [3, 6, 7]
    weights = np.concatenate(seen, axis=1)
    # No two alike, each with sessions left out and others twice, and every session in some
    assert len({tuple(column) for column in weights.T}) == 7
    assert (weights.min(axis=0) == 0).all()
    assert (weights.max(axis=0) > 1).all()
    assert (weights.sum(axis=1) > 0).all()
    # The largest statistic bounds the block, too
    seen.clear()
    resample([keep], 40, resamples=2, predictions=120)
    assert [weights.shape[1] for weights in seen] == [1, 1]


def test_an_interval_needs_half_of_its_resamples_and_has_the_middle_95_percent() -> None:
    values = np.arange(0.0, 1001.0)
    found = estimate(500.0, values)
    assert [found.value, found.low, found.high] == pytest.approx([500.0, 25.0, 975.0])
    half = np.array([1.0, 1.0, np.nan, np.nan])
    assert estimate(1.0, half) == Estimate(1.0, 1.0, 1.0)
    assert estimate(1.0, np.append(half, np.nan)) == Estimate(1.0, None, None)
    assert estimate(math.nan, values) == UNDEFINED


def test_the_same_seed_gives_the_same_interval_whatever_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    session, values = rng.integers(50, size=500), rng.random(500)
    first = interval(session, values, resamples=100, seed=3)
    assert first != interval(session, values, resamples=100, seed=4)

    monkeypatch.setattr("training.evaluation.resampling._CELLS", 500)  # private: several chunks of a small table

    again = interval(session, values, resamples=100, seed=3)
    assert [again.value, again.low, again.high] == pytest.approx([first.value, first.low, first.high], rel=1e-12)


@pytest.mark.parametrize(("sessions", "resamples", "named"), [(0, 10, "sessions"), (1, 0, "resamples")])
def test_too_few_are_refused_by_name(sessions: int, resamples: int, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: "):
        resample([ClusterMean(np.zeros(1), np.zeros(1, dtype=np.int64), 1)], sessions, resamples=resamples)
