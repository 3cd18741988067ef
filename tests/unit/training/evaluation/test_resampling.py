"""The bootstrap of a mean: sessions are resampled, not prefixes, and each counts by its length."""

import math

import numpy as np
import pytest

from training.evaluation.resampling import ClusterMean, Estimate, estimate, once, resample


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


def test_the_same_seed_gives_the_same_interval_whatever_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    session, values = rng.integers(50, size=500), rng.random(500)
    first = interval(session, values, resamples=100, seed=3)
    assert first != interval(session, values, resamples=100, seed=4)

    monkeypatch.setattr("training.evaluation.resampling._CELLS", 500)

    again = interval(session, values, resamples=100, seed=3)
    assert [again.value, again.low, again.high] == pytest.approx([first.value, first.low, first.high], rel=1e-12)


@pytest.mark.parametrize(("sessions", "resamples", "named"), [(0, 10, "sessions"), (1, 0, "resamples")])
def test_too_few_are_refused_by_name(sessions: int, resamples: int, named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: "):
        resample([ClusterMean(np.zeros(1), np.zeros(1, dtype=np.int64), 1)], sessions, resamples=resamples)
