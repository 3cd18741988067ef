"""Every score of every model in every population, with intervals and paired differences.

Shape legend: N prefixes, R resamples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.config import EVALUATE_RESAMPLES
from training.evaluation.metrics import checked, position_rates
from training.evaluation.prefixes import Kind, Population, Prefixes, populations
from training.evaluation.resampling import UNDEFINED, Estimate, estimate, once, resample
from training.evaluation.scoring import Scoring

SCORES: Final = (
    "auc",
    "average_precision",
    "log_loss",
    "log_loss_skill",
    "brier",
    "calibration_error",
    "lift",
)
"""Names of the scores, as in `training.evaluation.metrics.Scores`."""


@dataclass(frozen=True, slots=True)
class Row:
    """The models' scores in one population.

    Attributes:
        name: of the population.
        kind: see `training.evaluation.prefixes.Population`.
        heading: of the table that the row belongs to.
        prefix_length: where the population is the prefixes of one length.
        count: prefixes.
        sessions: that they are of.
        base_rate: share of them that ended in a purchase.
        scores: by model, then by the names in `SCORES`.
        differences: by every model but the first, then by score: the first model's minus this one's.
        calibration_noise: by model: perfectly calibrated probabilities have a lower calibration error than this in 95
            of 100 samples of as many sessions. A lower error is no evidence against the model.
    """

    name: str
    kind: Kind
    heading: str
    prefix_length: int | None
    count: int
    sessions: int
    base_rate: Estimate
    scores: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Estimate]]
    calibration_noise: dict[str, float | None]


def score_rows(
    prefixes: Prefixes,
    predictions: Mapping[str, ArrayLike],
    *,
    resamples: int = EVALUATE_RESAMPLES,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Row]:
    """Return one row a population, all models under the same resamples of the sessions.

    Args:
        prefixes: N prefixes.
        predictions: (N,) probabilities by model; differences are the first one's minus each other's.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        progress: called with the number of finished resamples.

    Raises:
        ValueError: no model, or predictions that do not fit the prefixes.
    """
    if not predictions:
        raise ValueError("predictions: at least one model is needed")
    by_model = {name: checked(prefixes.outcome, chance)[1] for name, chance in predictions.items()}
    every = list(populations(prefixes))
    cells = [(population, name) for population in every if len(population.rows) for name in by_model]
    drawn = resample(
        [_scoring(prefixes, population, by_model[name], exact=False) for population, name in cells],
        prefixes.sessions,
        resamples=resamples,
        seed=seed,
        predictions=len(prefixes.outcome),
        progress=progress,
    )
    resampled = {(id(population), name): values for (population, name), values in zip(cells, drawn, strict=True)}
    return [
        _row(prefixes, population, by_model, {name: resampled.get((id(population), name)) for name in by_model})
        for population in every
    ]


def _scoring(prefixes: Prefixes, population: Population, chance: NDArray[np.float64], *, exact: bool) -> Scoring:
    rows = population.rows
    outcome = prefixes.outcome[rows]
    return Scoring(
        outcome,
        chance[rows],
        prefixes.session[rows],
        prefixes.sessions,
        population.weight,
        position_rates(prefixes.prefix_length[rows], outcome),
        exact=exact,
    )


def _row(
    prefixes: Prefixes,
    population: Population,
    by_model: Mapping[str, NDArray[np.float64]],
    resampled: Mapping[str, Mapping[str, NDArray[np.float64]] | None],
) -> Row:
    base_rate = UNDEFINED
    values: dict[str, dict[str, NDArray[np.float64]]] = {}
    scores: dict[str, dict[str, Estimate]] = {}
    noise: dict[str, float | None] = {}
    differences: dict[str, dict[str, Estimate]] = {}
    subject = next(iter(by_model))
    for name, chance in by_model.items():
        drawn = resampled[name]
        if drawn is None:
            scores[name], noise[name] = dict.fromkeys(SCORES, UNDEFINED), None
            continue
        values[name] = once(_scoring(prefixes, population, chance, exact=True), prefixes.sessions)
        scores[name] = {score: estimate(float(values[name][score]), drawn[score]) for score in SCORES}
        scores[name]["calibration_error"] = _reaching(scores[name]["calibration_error"])
        base_rate = estimate(float(values[name]["base_rate"]), drawn["base_rate"])
        noise[name] = _noise(values[name]["gaps"], drawn["gaps"])
        if name != subject:
            mine = resampled[subject] or {}
            differences[name] = {
                score: estimate(float(values[subject][score] - values[name][score]), mine[score] - drawn[score])
                for score in SCORES
            }
    return Row(
        population.name,
        population.kind,
        population.heading,
        population.prefix_length,
        len(population.rows),
        len(np.unique(prefixes.session[population.rows])),
        base_rate,
        scores,
        differences,
        noise,
    )


def _reaching(found: Estimate) -> Estimate:
    """Widen the interval of a calibration error so that it holds the error itself.

    A resample has the sampling noise twice, and noise only increases a sum of absolute gaps.
    """
    if found.value is None or found.low is None:
        return found
    return Estimate(found.value, min(found.low, found.value), found.high)


def _noise(gaps: NDArray[np.float64], resampled: NDArray[np.float64]) -> float | None:
    """Return the noise level of the calibration error: gaps of resamples relative to those of the sample."""
    apart = np.abs(resampled - gaps[:, None]).sum(axis=0)
    defined = apart[~np.isnan(apart)]
    return float(np.quantile(defined, 0.95)) if len(defined) else None
