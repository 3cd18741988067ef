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
from training.data.dataset import batches, event_indices
from training.data.encoded import Encoded
from training.fit.objective import Objective, batch_of

Floats = NDArray[np.float64]

# Small trees on few bins: quick, and no worse a teacher than large ones (docs/recipe.md).
_SMALL_TREES: Final = {"num_leaves": 8, "max_bin": 63, "learning_rate": 0.06}
_ROUNDS: Final = 3000
_STOPPING_ROUNDS: Final = 30
_PENALTY: Final = 0.01  # inverse strength of the regression's penalty
_GROUP_SESSIONS: Final = 512
_LEAST_PROBABILITY: Final = 1e-6


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """How the teacher is made.

    Attributes:
        folds: parts that the sessions are cut into, at least 2; 0 for no teacher.
        least_buyers: fewer buyers among the training sessions than this, and there is no teacher.
        sample_events: events that it learns from at most, drawn from all sessions. It judges all events.
    """

    folds: int = 10
    least_buyers: int = 200
    sample_events: int = 500_000

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

    def said(seen: NDArray[np.float32], fold: NDArray[np.int64]) -> Floats:
        """Return the log odds of each model, float64 [N, 1 or 2], of events that their folds' models did not see."""
        log_odds = np.empty((len(seen), 1 if regressions is None else 2))
        for held_out in np.unique(fold):
            rows = fold == held_out
            log_odds[rows, 0] = _log_odds(np.asarray(boosters[held_out].predict(seen[rows])))
            if regressions is not None:
                log_odds[rows, 1] = regressions[held_out].decision_function(seen[rows, width:])
        return log_odds

    weights = _weights(said(sample.seen, sample.fold), sample.label)
    taught = []
    for part, fold in zip(parts, folds, strict=True):
        told = torch.empty(len(part.features))
        for events, seen, group in _groups(part, model):
            event_fold = fold[group.numpy()].repeat(part.columns.lengths[group].numpy())
            told[events] = torch.from_numpy(expit(said(seen, event_fold) @ weights)).float()
        taught.append(told)
    return taught


@dataclass(frozen=True, slots=True)
class _Sample:
    """Events to learn from: what is seen float32 [N, F + I + H], the outcome float32 [N], and the fold int64 [N]."""

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
    """Yield all sessions, some at a time: their events, what is seen of these [N, F + I + H], and the sessions."""
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
    """Return for each fold trees that were fitted on the others; all folds together say when to stop."""
    fold = sample.fold
    parameters: dict[str, Any] = {**boosting_parameters(len(fold), seed=seed, threads=threads), **_SMALL_TREES}

    def told(env: CallbackEnv) -> None:
        if progress is not None and env.evaluation_result_list:
            progress(f"{env.iteration + 1} trees, {env.evaluation_result_list[0][2]:.4f} nats out of fold")

    found = lightgbm.cv(
        parameters,
        lightgbm.Dataset(sample.seen, sample.label, categorical_feature=categorical, params=parameters),
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


def _regressions(sample: _Sample, first: int, folds: int, progress: Callable[[str], None] | None) -> list[Any]:
    """Return for each fold a logistic regression on the columns from the first on, fitted on the other folds."""
    fitted = []
    for held_out in range(folds):
        if progress is not None:
            progress(f"logistic regression {held_out + 1} of {folds}")
        rows = sample.fold != held_out
        regression = make_pipeline(StandardScaler(), LogisticRegression(C=_PENALTY, max_iter=300))
        fitted.append(regression.fit(sample.seen[rows, first:], sample.label[rows] > 0))
    return fitted


def _weights(log_odds: Floats, label: NDArray[np.float32]) -> Floats:
    """Return the models' shares in the mean of log odds [N, 1 or 2] with the lowest log loss."""
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
