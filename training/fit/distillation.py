"""Distillation: a teacher of boosted trees, and its out-of-fold predictions as soft targets for the network.

On a few thousand sessions, boosted trees on running aggregates are hard to beat, and their errors differ from a
network's. So the network learns mostly from a teacher's probabilities (distillation; Hinton et al., 2015), which are
smoother than the outcomes. The soft targets are out of fold: each session is predicted by trees that did not see its
outcome. Otherwise the network would learn to copy the outcome.

The teacher sees features, indices and the output of the pre-trained cell. Its cost has a bound, except for its
predictions: it learns from a sample of events.

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
from torch import Tensor

from model.network import SessionModel
from training.baselines import boosting_parameters
from training.config import TeacherSettings
from training.data.dataset import event_indices, lengths_of, short_batches
from training.data.encoded import Encoded
from training.fit.loop import MOST_EVALUATED_EVENTS
from training.fit.objective import Objective, batch_of

# Small trees on few bins and a quarter of the inputs are quick, and as good a teacher as large ones (docs/recipe.md).
_SMALL_TREES: Final = {
    "num_leaves": 8,
    "max_bin": 63,
    "learning_rate": 0.1,
    "feature_fraction": 0.25,
    # LightGBM copies so many events as float64 to find the bins: more need memory, and change 63 bins little.
    "bin_construct_sample_cnt": 50_000,
}
_ROUNDS: Final = 3000
_STOPPING_ROUNDS: Final = 20
_GROUP_SESSIONS: Final = 512


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
    first = parts[0].features.size(1)
    binned = _binned(
        _sample(parts, folds, settings.sample_events, model, generator),
        categorical=list(range(first, first + parts[0].indices.size(1))),
        seed=seed,
        threads=threads,
    )
    boosters = _boosted(binned, settings.folds, progress)
    soft_targets = []
    for part, fold in zip(parts, folds, strict=True):
        probability = torch.empty(len(part.features))
        for events, seen, group in _groups(part, model):
            event_fold = fold[group.numpy()].repeat(lengths_of(part.columns.offsets, group).numpy())
            for held_out in np.unique(event_fold):
                rows = event_fold == held_out
                predicted = boosters[held_out].predict(seen[rows], num_threads=threads)
                probability[events[torch.from_numpy(rows)]] = torch.from_numpy(np.asarray(predicted)).float()
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
    chosen = [generator.random(len(part.features)) < share for part in parts]
    count = sum(int(kept.sum()) for kept in chosen)
    width = parts[0].features.size(1) + parts[0].indices.size(1) + (0 if model is None else model.lstm.output_size)
    # Filled in place: a list of pieces would need the memory twice.
    seen, label, of_fold = np.empty((count, width), np.float32), np.empty(count, np.float32), np.empty(count, np.int64)
    begin = 0
    for part, fold, kept in zip(parts, folds, chosen, strict=True):
        for events, values, group in _groups(part, model):
            inside = kept[events.numpy()]
            lengths = lengths_of(part.columns.offsets, group).numpy()
            end = begin + int(inside.sum())
            rows, begin = slice(begin, end), end
            seen[rows] = values[inside]
            label[rows] = part.columns.outcome[group].numpy().repeat(lengths)[inside]
            of_fold[rows] = fold[group.numpy()].repeat(lengths)[inside]
    return _Sample(seen, label, of_fold)


def _groups(part: Encoded, model: SessionModel | None) -> Iterator[tuple[Tensor, NDArray[np.float32], Tensor]]:
    """Yield all sessions in groups: their events' indices, the teacher's inputs [N, F + I + H], and the sessions."""
    objective = None if model is None else Objective(model).eval()
    device = "cpu" if model is None else str(model.feature_mean.device)
    for group in short_batches(part.columns.lengths, _GROUP_SESSIONS, MOST_EVALUATED_EVENTS):
        events, _ = event_indices(part.columns.offsets, group)
        batch = batch_of(part, group)
        values = [batch.features, batch.indices.float()]
        if model is not None and objective is not None:
            inputs = batch.features.to(device), batch.indices.to(device)
            with torch.inference_mode():
                values.append(objective.unroll(model.inputs(*inputs), batch.lengths).cpu())
        yield events, torch.cat(values, 1).numpy(), group


@dataclass(frozen=True, slots=True)
class _Binned:
    """The sample in LightGBM's bins, which take a quarter of its memory; and the trees' parameters."""

    events: lightgbm.Dataset
    fold: NDArray[np.int64]
    parameters: dict[str, Any]


def _binned(sample: _Sample, *, categorical: list[int], seed: int, threads: int) -> _Binned:
    parameters = {**boosting_parameters(len(sample.fold), seed=seed, threads=threads), **_SMALL_TREES}
    events = lightgbm.Dataset(sample.seen, sample.label, categorical_feature=categorical, params=parameters)
    return _Binned(events.construct(), sample.fold, parameters)


def _boosted(binned: _Binned, folds: int, progress: Callable[[str], None] | None) -> list[lightgbm.Booster]:
    """Return for each fold the trees fitted on the other folds; the mean loss of all folds stops them early."""
    fold = binned.fold

    def show(env: CallbackEnv) -> None:
        if progress is not None and env.evaluation_result_list:
            progress(f"{env.iteration + 1} trees, {env.evaluation_result_list[0][2]:.4f} nats out of fold")

    found = lightgbm.cv(
        binned.parameters,
        binned.events,
        _ROUNDS,
        folds=[(np.flatnonzero(fold != number), np.flatnonzero(fold == number)) for number in range(folds)],
        callbacks=[lightgbm.early_stopping(_STOPPING_ROUNDS, verbose=False), show],
        return_cvbooster=True,
    )
    forest = found["cvbooster"]
    assert isinstance(forest, lightgbm.CVBooster)  # noqa: S101  # `return_cvbooster` is set
    for booster in forest.boosters:
        booster.best_iteration = forest.best_iteration
    boosters: list[lightgbm.Booster] = forest.boosters
    return boosters
