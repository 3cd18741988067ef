"""A model in a shop with another share of buyers than its log's, on synthetic shops whose exact posterior is known."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from model.base_rate import logit_shift
from model.predictor import load_predictor
from training.commands.replay import read_events
from training.data.prepare import prepare
from training.evaluation.calibration import Calibration, calibrated_base_rate, fit_calibration
from training.evaluation.metrics import PREFIX_LENGTHS, score
from training.fit.result import export
from training.synthetic import PRESETS, generate, write

# Shares of the buyers and of the others that are kept: a shop with far fewer buyers, and one with far more.
RESAMPLED = [(0.15, 1.0), (1.0, 0.2)]
Array = NDArray[np.float64]


def logit(probability: Array) -> Array:
    return np.log(probability / (1 - probability))


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def log_loss(outcome: Array, probability: Array) -> float:
    return float(-np.mean(outcome * np.log(probability) + (1 - outcome) * np.log1p(-probability)))


@dataclass(frozen=True)
class Resampled:
    """Sessions of a shop of which some buyers or some others are left out; arrays are one entry a prefix."""

    sessions: list
    base_rate: float
    outcome: Array
    prefix_length: NDArray[np.int64]
    posterior: Array
    """Of the shop before."""
    optimum: Array
    """Of this shop: the posterior with the prior corrected."""


@pytest.fixture(scope="module")
def resampled(tmp_path_factory):
    """Return a function from shares of buyers and others to the resampled shop."""
    folder = tmp_path_factory.mktemp("live")
    truth = pl.read_parquet(write(generate(PRESETS["default"], 6000, seed=77), folder / "live.parquet"))
    dataset = prepare(folder / "live.parquet", folder / "prepared")
    bought = dict(dataset.sessions().select("session_id", "outcome").iter_rows())
    events = read_events(dataset, sorted(bought))
    by_session = truth.sort("session_id", "prefix_length").group_by("session_id").agg("probability")
    exact = dict(by_session.iter_rows())
    # What it was drawn with, not the share that chance made of it, would be better; 6,000 sessions know it well.
    before = float(np.mean(list(bought.values())))

    def make(buyers: float, others: float) -> Resampled:
        random = np.random.default_rng(0)
        kept = [name for name in events if random.random() < (buyers if bought[name] else others)]
        lengths = [len(events[name]) for name in kept]
        rate = float(np.mean([bought[name] for name in kept]))
        posterior = np.concatenate([exact[name][:length] for name, length in zip(kept, lengths, strict=True)])
        posterior = np.clip(posterior, 1e-9, 1 - 1e-9)  # a capped session's last one may be exactly 0
        return Resampled(
            sessions=[events[name] for name in kept],
            base_rate=rate,
            outcome=np.repeat(np.array([bought[name] for name in kept], dtype=np.float64), lengths),
            prefix_length=np.concatenate([np.arange(1, length + 1) for length in lengths]),
            posterior=posterior,
            optimum=sigmoid(logit(posterior) + logit_shift(before, rate)),
        )

    return make


@pytest.fixture(scope="module")
def artifact(shop, trained, settings, tmp_path_factory):
    path = tmp_path_factory.mktemp("artifact") / "model.pt"
    export(trained, shop.dataset, settings, {}, path)
    return path


@pytest.mark.parametrize(("buyers", "others"), RESAMPLED)
def test_the_corrected_posterior_is_calibrated_after_any_number_of_events(resampled, buyers, others) -> None:
    live = resampled(buyers, others)
    for length in PREFIX_LENGTHS:
        chosen = live.prefix_length == length
        optimum, bought = live.optimum[chosen], live.outcome[chosen]
        error = np.sqrt(np.mean(optimum * (1 - optimum)) / chosen.sum())
        assert abs(optimum.mean() - bought.mean()) < 4 * error
        # And as it was, it is not
        assert abs(live.posterior[chosen].mean() - bought.mean()) > 4 * error


@pytest.mark.parametrize(("buyers", "others"), RESAMPLED)
def test_the_live_base_rate_takes_the_model_most_of_the_way_to_the_optimum(artifact, resampled, buyers, others) -> None:
    # Given a model, and a shop that differs from its log's in the share of buyers alone
    live = resampled(buyers, others)
    # When it is asked with and without being told the live base rate
    as_trained, told = (
        np.concatenate(load_predictor(artifact, base_rate=rate).score_sessions(live.sessions))
        for rate in (None, live.base_rate)
    )
    # Then with it the excess over the exact posterior, corrected, is a fraction
    optimum = log_loss(live.outcome, live.optimum)
    excess_as_trained = log_loss(live.outcome, as_trained) - optimum
    excess = log_loss(live.outcome, told) - optimum
    assert excess_as_trained > 0.08
    assert 0 < excess < 0.3 * excess_as_trained
    # And so is the calibration error
    before, after = (score(live.outcome, said).calibration_error for said in (as_trained, told))
    assert before is not None
    assert after is not None
    assert after < 0.4 * before
    # And the order of the sessions is the same
    assert score(live.outcome, told).auc == pytest.approx(score(live.outcome, as_trained).auc, abs=1e-6)


def test_the_manifest_tells_the_base_rate_that_the_probabilities_have(artifact, trained) -> None:
    manifest = load_predictor(artifact).manifest
    assert trained.calibration is not None
    parts = [trained.buyers[part] / trained.sessions[part] for part in ("train", "calibration")]
    assert manifest.base_rate is not None
    assert min(parts) < manifest.base_rate < max(parts)


def test_without_a_calibration_it_is_the_training_parts() -> None:
    sessions, buyers = {"train": 200, "calibration": 10}, {"train": 30, "calibration": 4}
    assert calibrated_base_rate(sessions, buyers, Calibration(weight=1.0)) == pytest.approx(0.4)
    assert calibrated_base_rate(sessions, buyers, Calibration(weight=0.0)) == pytest.approx(0.15)
    assert calibrated_base_rate(sessions, buyers, None) == 0.15


def test_the_calibration_parts_rate_corrects_better_than_the_training_parts() -> None:
    """Why it is that one: the fitted bias has the calibration part's chance in it, and its rate takes it out again."""
    log = generate(PRESETS["default"], 6000, seed=3)
    buyers = log.events.filter(pl.col("event_name") == "purchase")["session_id"].unique()
    names, index = np.unique(log.posterior["session_id"].to_numpy(), return_inverse=True)
    bought = np.isin(names, buyers.to_numpy())
    outcome = bought[index].astype(np.float64)
    raw = logit(np.clip(log.posterior["probability"].to_numpy(), 1e-6, 1 - 1e-6))
    # Weights make a shop with 2 % buyers of this one.
    weight = np.where(outcome > 0, 0.02 / bought.mean(), 0.98 / (1 - bought.mean()))
    off: dict[str, list[float]] = {"calibration": [], "train": []}
    random = np.random.default_rng(0)
    for _ in range(25):
        part = np.where(random.permutation(len(names)) < 600, "calibration", "train")
        chosen = part[index] == "calibration"
        fitted = fit_calibration(raw[chosen].astype(np.float32), outcome[chosen], index[chosen], trusted=False)
        assert fitted is not None
        for name, errors in off.items():
            shift = logit_shift(float(bought[part == name].mean()), 0.02)
            said = sigmoid(raw / fitted.temperature + fitted.bias + shift)
            errors.append(float(np.average(said - outcome, weights=weight)))
    assert np.mean(np.square(off["calibration"])) < 0.7 * np.mean(np.square(off["train"]))
