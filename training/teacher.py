"""The teacher: what simpler models say of each session, fitted on the others.

On a few thousand sessions boosted trees on running aggregates are hard to beat, and their errors are not a network's.
So the network learns mostly from what a teacher says of each prefix (distillation; Hinton et al., 2015), which is
smoother than who happened to buy. What it says is out of fold: a session's own outcome had no part in it, or the
network would be handed it and learn to copy.

The teacher is a mean of two models' logits, with the weights of the lowest log loss out of fold: boosted trees on
features, indices and the output of the cell that has learned to foretell events, and a logistic regression on that
output.

Shape legend: N events, F features, I indices, H output size of the cell.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import lightgbm
import numpy as np
import torch
from lightgbm.callback import CallbackEnv
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.special import logit as logit_of
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from model.network import SessionModel
from training.baselines import boosting_parameters
from training.dataset import batches, event_indices
from training.encoded import Encoded
from training.objective import Objective, batch_of

Floats = NDArray[np.float64]

# Small trees on few bins: quick, and no worse a teacher than large ones (docs/recipe.md).
_SMALL_TREES: Final = {"num_leaves": 8, "max_bin": 63, "learning_rate": 0.06}
_ROUNDS: Final = 3000
_STOPPING_ROUNDS: Final = 30
# Strength of the regression's penalty, and events that it is fitted on at most: its weights are few.
_PENALTY: Final = 0.01
_REGRESSION_EVENTS: Final = 200_000
_LEAST_PROBABILITY: Final = 1e-6


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """How the teacher is made.

    Attributes:
        folds: parts that the sessions are cut into, at least 2; 0 for no teacher.
        least_buyers: fewer buyers among the training sessions than this, and there is no teacher.
        sample_events: events that it learns from at most; sessions are drawn at random beyond it, and the others get
            the mean of all folds' models.
    """

    folds: int = 10
    least_buyers: int = 200
    sample_events: int = 2_000_000

    def __post_init__(self) -> None:
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds: expected 0 or a whole number from 2 up, not {self.folds}")
        for name in ("least_buyers", "sample_events"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a whole number from 1 up, not {getattr(self, name)}")


def teach(
    parts: list[Encoded],
    settings: TeacherSettings,
    *,
    model: SessionModel | None,
    seed: int,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> list[Tensor]:
    """Return what the teacher says of each event of each part, float32 [N].

    Args:
        parts: sessions with their outcomes, which no part shares with another.
        settings: how; `folds` above 0.
        model: whose cell's output is looked at; its weights must not have been told the outcomes. None for features
            and indices alone.
        seed: of folds, of the sample and of the trees.
        threads: of LightGBM.
        progress: called with what is being done.
    """
    generator = np.random.default_rng(seed)
    samples, rest = zip(*(_drawn(part, settings.sample_events, generator) for part in parts), strict=True)
    data = [part.select(chosen) if len(left) else part for part, chosen, left in zip(parts, samples, rest, strict=True)]
    fold = [generator.integers(0, settings.folds, len(chosen)) for chosen in samples]
    events_fold = np.concatenate([f.repeat(d.columns.lengths.numpy()) for f, d in zip(fold, data, strict=True)])
    label = np.concatenate([_labels(part) for part in data])
    outputs = None if model is None else np.concatenate([cell_outputs(model, part) for part in data])
    matrix = np.concatenate([_matrix(part) for part in data])
    if outputs is not None:
        matrix = np.concatenate([matrix, outputs], axis=1)
    width = parts[0].features.size(1)
    boosters = _boosted(
        matrix,
        label,
        events_fold,
        categorical=list(range(width, width + parts[0].indices.size(1))),
        settings=settings,
        seed=seed,
        threads=threads,
        progress=progress,
    )
    regressions = None if outputs is None else _regressions(outputs, label, events_fold, settings, generator, progress)
    said = np.empty((len(label), 1 if regressions is None else 2))
    for held_out, booster in enumerate(boosters):
        rows = events_fold == held_out
        said[rows, 0] = _log_odds(np.asarray(booster.predict(matrix[rows])))
        if regressions is not None and outputs is not None:
            said[rows, 1] = regressions[held_out].decision_function(outputs[rows])
    del matrix
    weight = _weight(said, label)

    def judgement(part: Encoded) -> Floats:
        """Return the mean log odds of all folds' models, for sessions that none of them saw."""
        seen = _matrix(part)
        output = None if model is None else cell_outputs(model, part)
        both = seen if output is None else np.concatenate([seen, output], axis=1)
        trees = np.mean([_log_odds(np.asarray(booster.predict(both))) for booster in boosters], axis=0)
        if regressions is None or output is None:
            return np.asarray(trees, dtype=np.float64)
        lines = np.mean([regression.decision_function(output) for regression in regressions], axis=0)
        return np.asarray(weight * trees + (1 - weight) * lines, dtype=np.float64)

    blended = said @ np.array([weight, 1 - weight][: said.shape[1]])
    taught, begin = [], 0
    for part, chosen, left, sampled in zip(parts, samples, rest, data, strict=True):
        told = torch.empty(len(part.features))
        end = begin + len(sampled.features)
        told[event_indices(part.columns.offsets, chosen)[0]] = _probability(blended[begin:end])
        for group in torch.split(left, 2048) if len(left) else ():
            told[event_indices(part.columns.offsets, group)[0]] = _probability(judgement(part.select(group)))
        taught.append(told)
        begin = end
    return taught


def _drawn(part: Encoded, most_events: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return sessions to learn from, in their order, and the others."""
    lengths = part.columns.lengths
    order = torch.from_numpy(generator.permutation(len(lengths)))
    inside = lengths[order].cumsum(0) <= most_events
    return order[inside].sort().values, order[~inside].sort().values


def _boosted(
    matrix: NDArray[np.float32],
    label: NDArray[np.float32],
    fold: NDArray[np.int64],
    *,
    categorical: list[int],
    settings: TeacherSettings,
    seed: int,
    threads: int,
    progress: Callable[[str], None] | None,
) -> list[lightgbm.Booster]:
    """Return for each fold trees that were fitted on the others; all folds together say when to stop."""
    parameters: dict[str, Any] = {**boosting_parameters(len(label), seed=seed, threads=threads), **_SMALL_TREES}

    def told(env: CallbackEnv) -> None:
        if progress is not None and env.evaluation_result_list:
            progress(f"{env.iteration + 1} trees, {env.evaluation_result_list[0][2]:.4f} nats out of fold")

    found = lightgbm.cv(
        parameters,
        lightgbm.Dataset(matrix, label, categorical_feature=categorical, params=parameters),
        _ROUNDS,
        folds=[(np.flatnonzero(fold != number), np.flatnonzero(fold == number)) for number in range(settings.folds)],
        callbacks=[lightgbm.early_stopping(_STOPPING_ROUNDS, verbose=False), told],
        return_cvbooster=True,
    )
    forest = found["cvbooster"]
    assert isinstance(forest, lightgbm.CVBooster)  # noqa: S101  # what was asked for
    for booster in forest.boosters:
        booster.best_iteration = forest.best_iteration
    boosters: list[lightgbm.Booster] = forest.boosters
    return boosters


def _regressions(
    outputs: NDArray[np.float32],
    label: NDArray[np.float32],
    fold: NDArray[np.int64],
    settings: TeacherSettings,
    generator: np.random.Generator,
    progress: Callable[[str], None] | None,
) -> list[Any]:
    """Return for each fold a logistic regression that was fitted on the others."""
    fitted = []
    for held_out in range(settings.folds):
        if progress is not None:
            progress(f"logistic regression {held_out + 1} of {settings.folds}")
        rows = np.flatnonzero(fold != held_out)
        if len(rows) > _REGRESSION_EVENTS:
            rows = np.sort(generator.choice(rows, _REGRESSION_EVENTS, replace=False))
        regression = make_pipeline(StandardScaler(), LogisticRegression(C=_PENALTY, max_iter=300))
        fitted.append(regression.fit(outputs[rows], label[rows] > 0))
    return fitted


def _weight(log_odds: Floats, label: NDArray[np.float32]) -> float:
    """Return the first model's share in the mean of log odds [N, 1 or 2] with the lowest log loss."""
    if log_odds.shape[1] == 1:
        return 1.0

    def loss(share: float) -> float:
        value = share * log_odds[:, 0] + (1 - share) * log_odds[:, 1]
        return float((np.logaddexp(0, value) - label * value).mean())

    return float(minimize_scalar(loss, bounds=(0.0, 1.0), method="bounded").x)


def _log_odds(probability: Floats) -> Floats:
    log_odds: Floats = logit_of(probability.clip(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY))
    return log_odds


def _probability(log_odds: Floats) -> Tensor:
    return torch.from_numpy(expit(log_odds)).float()


def _labels(data: Encoded) -> NDArray[np.float32]:
    labels: NDArray[np.float32] = data.columns.outcome.numpy().repeat(data.columns.lengths.numpy())
    return labels


def _matrix(data: Encoded) -> NDArray[np.float32]:
    """Return features and indices, [N, F + I]."""
    return np.concatenate([data.features.numpy(), data.indices.numpy().astype(np.float32)], axis=1)


def cell_outputs(model: SessionModel, data: Encoded, *, batch_sessions: int = 512) -> NDArray[np.float32]:
    """Return the cell's output after each event, [N, H]."""
    objective = Objective(model).eval()
    device = str(model.feature_mean.device)
    result = torch.empty((len(data.features), model.lstm.output_size))
    with torch.inference_mode():
        for chosen in batches(data.columns.lengths, batch_sessions, None):
            batch = batch_of(data, chosen, device)
            events, _ = event_indices(data.columns.offsets, chosen)
            result[events] = objective.unroll(model.inputs(batch.features, batch.indices), batch.lengths).cpu()
    outputs: NDArray[np.float32] = result.numpy()
    return outputs
