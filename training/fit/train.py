"""A training run on prepared sessions: load, fit, calibrate, and predict the test sessions."""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch

from model.encoder import Encoder
from model.network import SessionModel
from model.summary import DataSummary, summarise
from training.baselines import base_rate_by_position, lightgbm_on_aggregates
from training.config import PARTS, StorageBudget, TrainSettings
from training.data.encoded import Encoded
from training.data.prepared import PreparedDataset
from training.data.sessions import split
from training.data.training_set import TrainingData, TrainingError, load
from training.evaluation.calibration import Calibration, fit_calibration
from training.evaluation.slices import items_of, slices_of
from training.fit.checkpoint import Epoch, Fit
from training.fit.importance import Importance, permutation_importance
from training.fit.loop import Progress, evaluate_loss, fit, logits
from training.fit.recipe import add_soft_targets, pretrained
from training.fit.result import Predictions, TrainResult
from training.runtime.distributed import SINGLE_PROCESS, Workers, device_of
from training.runtime.memory import return_free_memory
from training.runtime.progress import Stage, StageFactory, null_progress

WILLBUY: Final = "willbuy"
LIGHTGBM: Final = "LightGBM"
BASE_RATE: Final = "base rate"
# Rows of files read at once.
_PIECE_ROWS: Final = 65_536

Tune = Callable[[Encoder, Encoded, Encoded], TrainSettings]
"""Called with the encoder and the encoded training and validation sessions; returns the settings to fit with."""

OnEpoch = Callable[[str, Epoch], None]
"""Called with the name of the stage, `pre-training` or `fit`, and the result of an epoch."""


def parts_of(dataset: PreparedDataset, fractions: tuple[float, ...], seed: int) -> dict[str, set[str]]:
    """Return the session ids of each part of the split."""
    table = split(dataset.sessions(), dataset.clock, fractions, seed)
    return {part: set(table.filter(pl.col("part") == part)["session_id"]) for part in PARTS}


def train(
    dataset: PreparedDataset,
    settings: TrainSettings,
    *,
    device: str = "cpu",
    threads: int = 1,
    checkpoint: Path | None = None,
    resume: bool = False,
    stages: StageFactory = null_progress,
    start: SessionModel | None = None,
    tune: Tune | None = None,
    budget: StorageBudget | None = None,
    workers: Workers = SINGLE_PROCESS,
    on_epoch: OnEpoch | None = None,
) -> TrainResult:
    """Train on prepared sessions.

    Args:
        dataset: prepared sessions.
        settings: of the run.
        device: `cpu`, `cuda` or `auto`.
        threads: of torch and LightGBM. One is quickest for a small network on shared cores. Another number changes the
            order of sums, and so the last digits.
        checkpoint: file to write after each epoch.
        resume: continue from the checkpoint.
        stages: shows progress.
        start: an earlier model to continue from, in place. Its vocabularies, scaling and sizes stay; its weights
            change only where an epoch has a lower validation loss.
        tune: called once with the encoded sessions; returns the settings to fit with.
        budget: where encoded sessions are kept; the result does not depend on it.
        workers: the processes of the run; only the first compares with LightGBM.
        on_epoch: called after each epoch.

    Raises:
        TrainingError: a part of the data lacks buyers or non-buyers, or a property is not in the data.
        training.data.leaks.LeakError: an input contains information from the future.
        training.fit.checkpoint.CheckpointError: the checkpoint is of another run.
        training.runtime.distributed.WorkerError: another process of the run was lost.
        OSError: the disk is full.
        training.runtime.distributed.DeviceError: there is no such device.
    """
    started = time.perf_counter()
    torch.set_num_threads(threads)
    device = device_of(device, workers)
    encoder = None if start is None else start.encoder
    data = load(dataset, settings, encoder=encoder, budget=budget, stages=stages, workers=workers)
    return_free_memory()
    if tune is not None:
        settings = tune(data.encoder, data.parts["train"], data.parts["validation"])
    run = _Run(data, settings, device, checkpoint, resume, stages, workers, on_epoch)
    teacher_warning = None
    if start is None:
        model = run.pretrain()
        teacher_warning = add_soft_targets(
            model,
            data.parts["train"],
            data.parts["validation"],
            settings,
            threads=threads,
            stages=stages,
            workers=workers,
        )
        outcome = run.fit(model, math.inf)
    else:
        # An earlier model has had pre-training and distillation; its weights stay unless an epoch beats them.
        model = start
        outcome = run.fit(model, evaluate_loss(start.to(device), data.parts["validation"], device, workers))
    if not math.isfinite(outcome.best_loss):
        raise TrainingError("the validation loss was never a number; a smaller --learning-rate may help")
    warnings = [*data.warnings, *_sampled(data, settings)]
    if teacher_warning is not None:
        warnings.append(teacher_warning)
    calibration = _calibrate(model, data.sample("calibration", settings), warnings)
    compare = settings.lightgbm and workers.first
    sample = data.sample("train", settings)
    return TrainResult(
        model=model,
        fit=outcome,
        calibration=calibration,
        test=_predict(model, data, sample, settings, stages, lightgbm=compare),
        sessions=data.sessions,
        buyers=data.buyers,
        seconds=time.perf_counter() - started,
        warnings=warnings,
        device=device,
        inputs=_inputs(data, sample),
        inputs_alone=data.inputs_alone,
        importance=_importance(model, data, settings, stages) if workers.first else [],
    )


def _importance(
    model: SessionModel, data: TrainingData, settings: TrainSettings, stages: StageFactory
) -> list[Importance]:
    with stages("exchanging inputs", 1) as stage:
        return permutation_importance(
            model, data.sample("test", settings), seed=settings.fit.seed, progress=lambda group: stage(0, group)
        )


def _inputs(data: TrainingData, sample: Encoded) -> DataSummary:
    """Return the distribution of the training inputs, with which the service detects drift, by a sample of them."""
    names, sessions = data.encoder.feature_names, data.sessions["train"]
    summary = summarise(sample.features, sample.indices[:, 0], names, sessions=sessions)
    return replace(summary, prefixes=len(data.parts["train"].features))


@dataclass(frozen=True, slots=True)
class _Run:
    """The arguments that pre-training and fit share, as in `train`."""

    data: TrainingData
    settings: TrainSettings
    device: str
    checkpoint: Path | None
    resume: bool
    stages: StageFactory
    workers: Workers
    on_epoch: OnEpoch | None

    def pretrain(self) -> SessionModel:
        """Return a new model after pre-training, or with its initial weights where there are no epochs of it."""
        sessions = len(self.data.parts["train"].columns.outcome)
        epochs = self.settings.pretraining.passes(sessions, self.settings.fit.batch_sessions)
        with self.stages("pre-training", epochs * sessions) if epochs else null_progress("", 0) as stage:
            return pretrained(
                self.data.encoder,
                self.data.parts["train"],
                self.data.parts["validation"],
                self.settings,
                device=self.device,
                checkpoint=self.checkpoint,
                resume=self.resume,
                identity=self._identity({}),
                progress=_shown(stage, sessions, self._after("pre-training")),
                workers=self.workers,
            )

    def fit(self, model: SessionModel, loss_to_beat: float) -> Fit:
        """Fit the model to the outcomes, in place."""
        training = self.data.parts["train"]
        sessions = len(training.columns.outcome)
        with self.stages("fit", self.settings.fit.passes(sessions) * sessions) as stage:
            return fit(
                model,
                training,
                self.data.parts["validation"],
                self.settings.fit,
                device=self.device,
                checkpoint=self.checkpoint,
                resume=self.resume,
                identity=self._identity({"loss to beat": loss_to_beat, "teacher": asdict(self.settings.teacher)}),
                progress=_shown(stage, sessions, self._after("fit")),
                loss_to_beat=loss_to_beat,
                workers=self.workers,
            )

    def _after(self, name: str) -> Callable[[Epoch], None] | None:
        return None if self.on_epoch is None else partial(self.on_epoch, name)

    def _identity(self, further: dict[str, Any]) -> dict[str, Any]:
        """Return the facts that a checkpoint's run and this run must share."""
        if self.checkpoint is None:
            return {}
        encoder = self.data.encoder
        return {
            "fractions": list(self.settings.fractions),
            "split_seed": self.settings.split_seed,
            "quantile_bins": self.settings.quantile_bins,
            "sizes": asdict(self.settings.sizes),
            "pretraining": asdict(self.settings.pretraining),
            "properties": [spec.name for spec in encoder.properties],
            "vocabularies": encoder.vocabularies,
            "processes": self.workers.count,
            "training sessions": _digest(self.data.parts["train"]),
            "validation sessions": _digest(self.data.parts["validation"]),
            **further,
        }


def _shown(stage: Stage, sessions: int, after: Callable[[Epoch], None] | None) -> Progress:
    note = ""

    def progress(number: int, done: int, epoch: Epoch | None) -> None:
        nonlocal note
        if epoch is not None:
            note = f"epoch {number}: train {epoch.train_loss:.4f}, validation {epoch.validation_loss:.4f} nats"
            if after is not None:
                after(epoch)
        stage((number - 1) * sessions + done, note)

    return progress


def _digest(data: Encoded) -> str:
    """Return a digest of the training inputs and outcomes."""
    digest, columns = hashlib.sha256(), data.columns
    for session_id in columns.session_id:
        digest.update(f"{session_id}\n".encode())
    for tensor in (columns.outcome, columns.offsets, columns.timestamp_ms, columns.codes, columns.numbers):
        for piece in torch.split(tensor, _PIECE_ROWS):
            digest.update(piece.contiguous().numpy().data)
            data.storage.touched(len(piece))
    return digest.hexdigest()


def _sampled(data: TrainingData, settings: TrainSettings) -> list[str]:
    """Return a warning that names the parts represented by a sample."""
    large = [part for part in PARTS if len(data.parts[part].features) > settings.sample_events]
    if not large:
        return []
    return [
        (
            f"the network was fitted on all sessions; for calibration, LightGBM and this report, random sessions with "
            f"{settings.sample_events:,} events (sample_events) represent each of these parts: {', '.join(large)}"
        )
    ]


def _calibrate(model: SessionModel, data: Encoded, warnings: list[str]) -> Calibration | None:
    calibration = None
    if len(data.columns.outcome):
        index = data.columns.session_index().numpy()
        calibration = fit_calibration(logits(model, data).numpy(), data.columns.outcome.numpy()[index], index)
    if calibration is None:
        # A new model has the identity; an earlier model's calibration is closer to right than the identity.
        earlier = float(model.temperature) != 1.0 or float(model.bias) != 0.0
        kept = "the earlier model's calibration stays" if earlier else "the logits are used as they are"
        warnings.append(f"too few sessions of either outcome to calibrate on: {kept}")
    else:
        model.temperature.fill_(calibration.temperature)
        model.bias.fill_(calibration.bias)
    return calibration


def _predict(
    model: SessionModel,
    data: TrainingData,
    train: Encoded,
    settings: TrainSettings,
    stages: StageFactory,
    *,
    lightgbm: bool,
) -> Predictions:
    test = data.sample("test", settings)
    with torch.inference_mode():
        raw = logits(model, test).to(model.bias.device)
        probability = {WILLBUY: model.calibrated(raw).cpu().double().numpy()}
    if lightgbm:
        with stages("fitting LightGBM for comparison", 1) as stage:
            probability[LIGHTGBM], trees = lightgbm_on_aggregates(
                model.encoder,
                train,
                data.sample("validation", settings),
                test,
                seed=settings.fit.seed,
                threads=torch.get_num_threads(),
            )
            stage(1, f"{trees} trees")
        return_free_memory()
    probability[BASE_RATE] = base_rate_by_position(train, test)
    index = test.columns.session_index().numpy()
    return Predictions(
        probability=probability,
        outcome=test.columns.outcome.numpy()[index].astype(np.float64),
        prefix_length=test.columns.prefix_length().numpy(),
        session_index=index,
        session_id=test.columns.session_id,
        slices=slices_of(test.columns, items_of(data.parts["train"].columns)),
    )
