"""Distillation: a teacher of simpler models, and its out-of-fold predictions as soft targets for the network.

On a few thousand sessions, boosted trees on running aggregates are hard to beat, and their errors differ from a
network's. So the network learns mostly from a teacher's probabilities (distillation; Hinton et al., 2015), which are
smoother than the outcomes. The soft targets are out of fold: each session is predicted by models that did not see its
outcome. Otherwise the network would learn to copy the outcome.

The teacher is a weighted mean of two models' logits; the weights minimise the out-of-fold log loss. One model is
boosted trees on features, indices and the output of the pre-trained cell. The other is a logistic regression on that
output alone.

Shape legend: N events, F features, I indices, H output size of the cell.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import lightgbm
import numpy as np
import torch
from lightgbm.callback import CallbackEnv
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from model.network import SessionModel
from training.baselines import boosting_parameters
from training.config import TeacherSettings
from training.data.dataset import batches, event_indices
from training.data.encoded import Encoded
from training.fit.objective import Objective, batch_of

Floats = NDArray[np.float64]

# Small trees on few bins are quick, and as good a teacher as large trees (docs/recipe.md).
_SMALL_TREES: Final = {"num_leaves": 8, "max_bin": 63, "learning_rate": 0.06}
_ROUNDS: Final = 3000
_STOPPING_ROUNDS: Final = 30
_PENALTY: Final = 0.01  # inverse strength of the regression's penalty, `C` of scikit-learn
_GROUP_SESSIONS: Final = 512
_LEAST_PROBABILITY: Final = 1e-6


def fit_teacher(
    parts: list[Encoded],
    settings: TeacherSettings,
    *,
    model: SessionModel | None,
    seed: int,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> list[Tensor]:
    """Fit the teacher and return its out-of-fold probability for each event of each part, float32 [N].

    Args:
        parts: sessions with their outcomes; no session is in two parts.
        settings: of the teacher; `folds` is above 0.
        model: its cell's output is an input of the teacher. Its weights must not depend on the outcomes. None for
            features and indices alone.
        seed: of folds, of the sample and of the trees.
        threads: of LightGBM.
        progress: called with a note on the current step.
    """
    generator = np.random.default_rng(seed)
    folds = [generator.integers(0, settings.folds, len(part.columns.outcome)) for part in parts]
    sample = _sample(parts, folds, settings.sample_events, model, generator)
    width = parts[0].features.size(1) + parts[0].indices.size(1)
    boosters = _boosted(
        sample,
        categorical=list(range(parts[0].features.size(1), width)),
        settings=settings,
        seed=seed,
        threads=threads,
        progress=progress,
    )
    regressions = None if model is None else _regressions(sample, width, settings.folds, progress)

    def held_out_log_odds(seen: NDArray[np.float32], fold: NDArray[np.int64]) -> Floats:
        """Return the log odds by each model, float64 [N, 1 or 2], from the models that held out the event's fold."""
        log_odds = np.empty((len(seen), 1 if regressions is None else 2))
        for held_out in np.unique(fold):
            rows = fold == held_out
            log_odds[rows, 0] = _log_odds(np.asarray(boosters[held_out].predict(seen[rows])))
            if regressions is not None:
                log_odds[rows, 1] = regressions[held_out].decision_function(seen[rows, width:])
        return log_odds

    weights = _weights(held_out_log_odds(sample.seen, sample.fold), sample.label)
    soft_targets = []
    for part, fold in zip(parts, folds, strict=True):
        probability = torch.empty(len(part.features))
        for events, seen, group in _groups(part, model):
            event_fold = fold[group.numpy()].repeat(part.columns.lengths[group].numpy())
            probability[events] = torch.from_numpy(expit(held_out_log_odds(seen, event_fold) @ weights)).float()
        soft_targets.append(probability)
    return soft_targets


@dataclass(frozen=True, slots=True)
class _Sample:
    """Events to fit on: inputs `seen` float32 [N, F + I + H], outcome `label` float32 [N], `fold` int64 [N]."""

    seen: NDArray[np.float32]
    label: NDArray[np.float32]
    fold: NDArray[np.int64]


def _sample(
    parts: list[Encoded],
    folds: list[NDArray[np.int64]],
    most_events: int,
    model: SessionModel | None,
    generator: np.random.Generator,
) -> _Sample:
    share = min(1.0, most_events / sum(len(part.features) for part in parts))
    seen, label, chosen_fold = [], [], []
    for part, fold in zip(parts, folds, strict=True):
        for _, values, group in _groups(part, model):
            lengths = part.columns.lengths[group].numpy()
            kept = generator.random(len(values)) < share
            seen.append(values[kept])
            label.append(part.columns.outcome[group].numpy().repeat(lengths)[kept])
            chosen_fold.append(fold[group.numpy()].repeat(lengths)[kept])
    return _Sample(np.concatenate(seen), np.concatenate(label), np.concatenate(chosen_fold))


def _groups(part: Encoded, model: SessionModel | None) -> Iterator[tuple[Tensor, NDArray[np.float32], Tensor]]:
    """Yield all sessions in groups: their events' indices, the teacher's inputs [N, F + I + H], and the sessions."""
    objective = None if model is None else Objective(model).eval()
    device = "cpu" if model is None else str(model.feature_mean.device)
    for group in batches(part.columns.lengths, _GROUP_SESSIONS, None):
        events, _ = event_indices(part.columns.offsets, group)
        values = [part.features[events], part.indices[events].float()]
        if model is not None and objective is not None:
            batch = batch_of(part, group, device)
            with torch.inference_mode():
                values.append(objective.unroll(model.inputs(batch.features, batch.indices), batch.lengths).cpu())
        yield events, torch.cat(values, 1).numpy(), group


def _boosted(
    sample: _Sample,
    *,
    categorical: list[int],
    settings: TeacherSettings,
    seed: int,
    threads: int,
    progress: Callable[[str], None] | None,
) -> list[lightgbm.Booster]:
    """Return for each fold the trees fitted on the other folds; the mean loss of all folds stops them early."""
    fold = sample.fold
    parameters: dict[str, Any] = {**boosting_parameters(len(fold), seed=seed, threads=threads), **_SMALL_TREES}

    def show(env: CallbackEnv) -> None:
        if progress is not None and env.evaluation_result_list:
            progress(f"{env.iteration + 1} trees, {env.evaluation_result_list[0][2]:.4f} nats out of fold")

    found = lightgbm.cv(
        parameters,
        lightgbm.Dataset(sample.seen, sample.label, categorical_feature=categorical, params=parameters),
        _ROUNDS,
        folds=[(np.flatnonzero(fold != number), np.flatnonzero(fold == number)) for number in range(settings.folds)],
        callbacks=[lightgbm.early_stopping(_STOPPING_ROUNDS, verbose=False), show],
        return_cvbooster=True,
    )
    forest = found["cvbooster"]
    assert isinstance(forest, lightgbm.CVBooster)  # noqa: S101  # `return_cvbooster` is set
    for booster in forest.boosters:
        booster.best_iteration = forest.best_iteration
    boosters: list[lightgbm.Booster] = forest.boosters
    return boosters


def _regressions(sample: _Sample, first: int, folds: int, progress: Callable[[str], None] | None) -> list[Any]:
    """Return for each fold a logistic regression on the columns from `first` up, fitted on the other folds."""
    fitted = []
    for held_out in range(folds):
        if progress is not None:
            progress(f"logistic regression {held_out + 1} of {folds}")
        rows = sample.fold != held_out
        regression = make_pipeline(StandardScaler(), LogisticRegression(C=_PENALTY, max_iter=300))
        fitted.append(regression.fit(sample.seen[rows, first:], sample.label[rows] > 0))
    return fitted


def _weights(log_odds: Floats, label: NDArray[np.float32]) -> Floats:
    """Return the models' weights in the mean of the log odds [N, 1 or 2] that minimise the log loss."""
    if log_odds.shape[1] == 1:
        return np.ones(1)

    def loss(share: float) -> float:
        value = log_odds @ np.array([share, 1 - share])
        return float((np.logaddexp(0, value) - label * value).mean())

    share = float(minimize_scalar(loss, bounds=(0.0, 1.0), method="bounded").x)
    return np.array([share, 1 - share])


def _log_odds(probability: Floats) -> Floats:
    log_odds: Floats = logit(probability.clip(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY))
    return log_odds
