"""The first two steps of the training recipe: pre-training and distillation. `training.fit.loop.fit` is the third.

    1. pre-training   next-event prediction trains inputs and cell; no outcome is used
    2. distillation   boosted trees see the cell's output and give out-of-fold soft targets
    3. fitting        all weights minimise the log loss of every prefix, mostly against the soft targets and otherwise
                      against the outcomes; the epoch with the lowest validation loss stays

docs/recipe.md explains each step; docs/reference/levers.md has what was tried.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from model.encoder import Encoder
from model.network import SessionModel
from training.config import TrainSettings
from training.data.encoded import Encoded, scaling_of
from training.fit.checkpoint import Epoch
from training.fit.distillation import fit_teacher
from training.fit.loop import fit
from training.fit.pretraining import NextEventPrediction
from training.runtime.distributed import SINGLE_PROCESS, Workers
from training.runtime.memory import return_free_memory
from training.runtime.progress import StageFactory, null_progress

# Pre-training learns no base rate, so its batches may hold sessions of more similar length.
_PRETRAINING_BUCKET_BATCHES: Final = 8


def pretraining_checkpoint(checkpoint: Path) -> Path:
    """Return the path of the pre-training's checkpoint, for a run whose fit writes `checkpoint`."""
    return checkpoint.with_name(f"{checkpoint.name}.pretraining")


def pretrained(
    encoder: Encoder,
    train: Encoded,
    validation: Encoded,
    settings: TrainSettings,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    resume: bool = False,
    identity: dict[str, Any] | None = None,
    progress: Callable[[int, int, Epoch | None], None] | None = None,
    workers: Workers = SINGLE_PROCESS,
) -> SessionModel:
    """Return a new network pre-trained on next-event prediction; arguments as in `training.fit.loop.fit`."""
    torch.manual_seed(settings.fit.seed)
    scaling = scaling_of(train.features, bins=settings.quantile_bins, storage=train.storage)
    model = SessionModel(encoder, settings.sizes, scaling)
    asked = settings.pretraining
    passes = asked.passes(len(train.columns.outcome), settings.fit.batch_sessions)
    if not passes or not model.lstm.output_size:
        return model
    fit(
        model,
        train,
        validation,
        replace(
            settings.fit,
            epochs=passes,
            patience=passes,
            learning_rate=asked.learning_rate,
            weight_decay=asked.weight_decay,
            bucket_batches=_PRETRAINING_BUCKET_BATCHES,
            teacher_weight=0.0,
        ),
        device=device,
        # A file of its own, so that a run that was interrupted later does not repeat the pre-training.
        checkpoint=None if checkpoint is None else pretraining_checkpoint(checkpoint),
        resume=resume,
        identity=identity,
        progress=progress,
        workers=workers,
        objective=NextEventPrediction(model, mixed_precision=settings.fit.mixed_precision),
    )
    return_free_memory()
    return model


def add_soft_targets(
    model: SessionModel,
    train: Encoded,
    validation: Encoded,
    settings: TrainSettings,
    *,
    threads: int = 1,
    stages: StageFactory = null_progress,
    workers: Workers = SINGLE_PROCESS,
) -> str | None:
    """Set `soft_targets` of both parts in place, or None where the settings or the data allow no teacher.

    Args:
        model: as `pretrained` returns it; a model fitted to outcomes would leak them to the teacher.
        train: training sessions.
        validation: validation sessions; their soft targets are out of fold too.
        settings: `teacher`, `fit.teacher_weight` and the seed are read.
        threads: of LightGBM.
        stages: shows progress.
        workers: the processes of the run; the first fits the teacher and broadcasts the soft targets.

    Returns:
        A warning where the settings ask for a teacher and the data has too few buyers; None otherwise.
    """
    asked = settings.teacher
    train.soft_targets = validation.soft_targets = None
    if not asked.folds or not settings.fit.teacher_weight:
        return None
    buyers = int(train.columns.outcome.sum())
    if min(buyers, len(train.columns.outcome) - buyers) < asked.least_buyers:
        return (
            f"{buyers} buyers among {len(train.columns.outcome)} training sessions are too few for boosted trees as "
            f"a teacher (teacher.least_buyers: {asked.least_buyers}); the network learns from the outcomes alone"
        )
    soft_targets: list[Tensor] | None = None
    if workers.first:
        with stages("distillation", 1) as stage:
            soft_targets = fit_teacher(
                [train, validation],
                asked,
                model=model if model.lstm.output_size and settings.pretraining.epochs != 0 else None,
                seed=settings.fit.seed,
                threads=threads,
                progress=lambda note: stage(0, note),
            )
            stage(1)
        return_free_memory()
    train.soft_targets, validation.soft_targets = workers.broadcast(soft_targets) or (None, None)
    return None
