"""How a network comes to be: foretell the next event, hear what a teacher says, then learn the outcomes.

    1. pretraining   the cell learns to foretell each session's next event; no outcome is used
    2. teaching      boosted trees and a logistic regression that see the cell's output judge each session out of fold
    3. fitting       all weights go down on the log loss of every prefix, against the teacher's word for the most part
                     and the outcome for the rest; the epoch that does so best on the validation sessions stays

docs/recipe.md has what each step brought, and what was tried without success.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from model.encoder import Encoder
from model.network import SessionModel
from training.data.encoded import Encoded, scaling_of
from training.data.stages import StageFactory, silent
from training.fit.checkpoint import Epoch
from training.fit.distillation import teach
from training.fit.distributed import ALONE, Workers
from training.fit.loop import fit
from training.fit.pretraining import NextEvent
from training.settings import TrainSettings

# Of the sessions that are only foretold, more of like length may stand together: no base rate is learned from them.
_PRETRAINING_BUCKET_BATCHES: Final = 8


def pretraining_checkpoint(checkpoint: Path) -> Path:
    """Return where a run that leaves its progress in `checkpoint` leaves that of its pretraining."""
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
    workers: Workers = ALONE,
) -> SessionModel:
    """Return a new network pre-trained on next-event prediction; arguments as in `training.fit.loop.fit`."""
    torch.manual_seed(settings.fit.seed)
    model = SessionModel(encoder, settings.sizes, scaling_of(train.features, bins=settings.quantile_bins))
    if not settings.pretraining.epochs or not model.lstm.output_size:
        return model
    fit(
        model,
        train,
        validation,
        replace(
            settings.fit,
            epochs=settings.pretraining.epochs,
            patience=settings.pretraining.epochs,
            learning_rate=settings.pretraining.learning_rate,
            weight_decay=settings.pretraining.weight_decay,
            bucket_batches=_PRETRAINING_BUCKET_BATCHES,
            teacher_weight=0.0,
        ),
        device=device,
        # Of its own, so that a run that broke off later need not foretell again.
        checkpoint=None if checkpoint is None else pretraining_checkpoint(checkpoint),
        resume=resume,
        identity=identity,
        progress=progress,
        workers=workers,
        objective=NextEvent(model, mixed_precision=settings.fit.mixed_precision),
    )
    return model


def taught(
    model: SessionModel,
    train: Encoded,
    validation: Encoded,
    settings: TrainSettings,
    *,
    threads: int = 1,
    stages: StageFactory = silent,
    workers: Workers = ALONE,
) -> str | None:
    """Give the training sessions their teacher's word, in place, or none where there is to be none.

    Args:
        model: as `pretrained` returns it; outcomes that it had been told would reach the teacher through it.
        train: training sessions; `teacher` is set.
        validation: validation sessions; `teacher` is set, by models that did not see the session either.
        settings: `teacher` and the seed are read.
        threads: of LightGBM.
        stages: shows progress.
        workers: the processes of the run; the first one teaches, for all.

    Returns:
        Why there is no teacher though one was asked for; None otherwise.
    """
    asked = settings.teacher
    train.teacher = validation.teacher = None
    if not asked.folds or not settings.fit.teacher_weight:
        return None
    buyers = int(train.columns.outcome.sum())
    if min(buyers, len(train.columns.outcome) - buyers) < asked.least_buyers:
        return (
            f"{buyers} buyers among {len(train.columns.outcome)} training sessions are too few for boosted trees to "
            f"teach by (teacher.least_buyers: {asked.least_buyers}); the network learns from the outcomes alone"
        )
    told: list[Tensor] | None = None
    if workers.first:
        with stages("fitting the teacher", 1) as stage:
            told = teach(
                [train, validation],
                asked,
                model=model if model.lstm.output_size and settings.pretraining.epochs else None,
                seed=settings.fit.seed,
                threads=threads,
                progress=lambda note: stage(0, note),
            )
            stage(1)
    train.teacher, validation.teacher = workers.of_the_first(told) or (None, None)
    return None
