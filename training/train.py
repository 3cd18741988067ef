"""A training run from prepared sessions to an artifact: split, encode, fit, calibrate, evaluate, export."""

import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from model.artifact import Manifest, manifest_of, save
from model.columns import PropertySpec
from model.encoder import Encoder
from model.network import SessionModel
from training.baselines import base_rate_by_position, lightgbm_on_aggregates
from training.calibration import Calibration, fit_calibration
from training.checkpoint import Epoch, Fit
from training.dataset import Columns, read_columns, words_by_sessions
from training.loop import Encoded, encode, fit, logits, scaling_of
from training.prepared import PreparedDataset
from training.sessions import PARTS, split
from training.settings import TrainSettings, VocabularySettings

WILLBUY: Final = "willbuy"
LIGHTGBM: Final = "LightGBM"
BASE_RATE: Final = "base rate"


class TrainingError(ValueError):
    """The data cannot be trained on; the message says why and what to do."""


class Stage(Protocol):
    """Shows one stage of a run."""

    def __call__(self, done: int, note: str = "") -> None:
        """Show how many steps are done in all, and what to say of it."""


StageFactory = Callable[[str, int], AbstractContextManager[Stage]]
"""Called with a stage's name and its number of steps."""


def silent(_name: str, _steps: int) -> AbstractContextManager[Stage]:
    """Show nothing."""

    def stage(done: int, note: str = "") -> None:
        del done, note

    return nullcontext(stage)


@dataclass(frozen=True, slots=True)
class Predictions:
    """What each model said of every prefix of the test sessions, all [N], and what became of them."""

    probability: dict[str, NDArray[np.float64]]
    outcome: NDArray[np.float64]
    prefix_length: NDArray[np.int64]
    session_index: NDArray[np.int64]
    session_id: NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run came to."""

    model: SessionModel
    fit: Fit
    calibration: Calibration | None
    test: Predictions
    sessions: dict[str, int]
    buyers: dict[str, int]
    seconds: float
    warnings: list[str]
    device: str


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
    stages: StageFactory = silent,
) -> TrainResult:
    """Train on prepared sessions.

    Args:
        dataset: prepared sessions.
        settings: what to compute.
        device: `cpu`, `cuda` or `auto`.
        threads: of torch and LightGBM. One is quickest for a small network on shared cores; another number sums in
            another order, which shows in the last digits.
        checkpoint: file to resume from later; written after each epoch.
        resume: go on from it.
        stages: shows progress.

    Raises:
        TrainingError: a part of the data lacks buyers or non-buyers, or a property is not in the data.
        training.checkpoint.CheckpointError: the checkpoint does not fit this run.
    """
    started = time.perf_counter()
    torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    properties = _chosen(dataset, settings.properties)
    parts = parts_of(dataset, settings.fractions, settings.split_seed)
    columns = _columns_by_part(dataset, properties, parts)
    warnings: list[str] = []
    _check(columns)

    encoder = _encoder(dataset, properties, parts["train"], settings.vocabulary)
    encoded = {}
    with stages("encoding sessions", sum(len(part.outcome) for part in columns.values())) as stage:
        done = 0

        def count(sessions: int) -> None:
            nonlocal done
            done += sessions
            stage(done)

        for part, part_columns in columns.items():
            encoded[part] = encode(encoder, part_columns, progress=count)
    torch.manual_seed(settings.fit.seed)
    model = SessionModel(encoder, settings.sizes, scaling_of(encoded["train"].features, bins=settings.quantile_bins))
    outcome = _fit(model, encoded, settings, device, checkpoint, resume, stages)
    if not outcome.best_epoch:
        raise TrainingError("the validation loss was never a number; a smaller --learning-rate may help")
    calibration = _calibrate(model, encoded["calibration"], warnings)
    test = _predict(model, encoded, settings, stages)
    return TrainResult(
        model=model,
        fit=outcome,
        calibration=calibration,
        test=test,
        sessions={part: len(part_columns.outcome) for part, part_columns in columns.items()},
        buyers={part: int(part_columns.outcome.sum()) for part, part_columns in columns.items()},
        seconds=time.perf_counter() - started,
        warnings=warnings,
        device=device,
    )


def export(
    result: TrainResult, dataset: PreparedDataset, settings: TrainSettings, metrics: dict[str, Any], path: Path
) -> Manifest:
    """Write the artifact with its manifest.

    Raises:
        model.artifact.ScriptMismatchError: the script differs from the model that was trained.
    """
    described = dataset.to_dict()
    manifest = manifest_of(
        result.model,
        metrics=metrics,
        data={
            "source_format": described["source_format"],
            "clock": described["clock"],
            "first_time_ms": described["first_time_ms"],
            "last_time_ms": described["last_time_ms"],
            "counts": described["counts"],
            "prepare": described["settings"],
            "sessions": result.sessions,
            "buyers": result.buyers,
        },
        training={
            **asdict(settings),
            "seconds": round(result.seconds, 1),
            "device": result.device,
            "best_epoch": result.fit.best_epoch,
            "epochs_run": len(result.fit.epochs),
        },
    )
    return save(result.model, path, manifest)


def _chosen(dataset: PreparedDataset, names: tuple[str, ...] | None) -> list[PropertySpec]:
    there = {declared.name: declared for declared in dataset.properties}
    if names is None:
        return list(there.values())
    for name in names:
        if name not in there:
            raise TrainingError(f"property {name!r} is not in the data; it has: {', '.join(there) or 'none'}")
        if names.count(name) > 1:
            raise TrainingError(f"property {name!r} is named twice")
    return [there[name] for name in names]


def _columns_by_part(
    dataset: PreparedDataset, properties: list[PropertySpec], parts: dict[str, set[str]]
) -> dict[str, Columns]:
    whole = read_columns(dataset.shards, properties)
    index_of = {session_id: index for index, session_id in enumerate(whole.session_id)}
    return {
        part: whole.select(torch.tensor(sorted(index_of[session_id] for session_id in ids), dtype=torch.int64))
        for part, ids in parts.items()
    }


def _check(columns: dict[str, Columns]) -> None:
    for part in ("train", "validation", "test"):
        sessions, buyers = len(columns[part].outcome), int(columns[part].outcome.sum())
        if not 0 < buyers < sessions:
            raise TrainingError(
                f"the {part} part has {buyers} buyers among {sessions} sessions; at least one of each outcome is "
                "needed: take a longer log"
            )


def _encoder(
    dataset: PreparedDataset, properties: list[PropertySpec], training_ids: set[str], limits: VocabularySettings
) -> Encoder:
    def words(column: str, at_least: int, at_most: int) -> list[str]:
        return words_by_sessions(dataset.shards, column, training_ids, at_least=at_least, at_most=at_most)

    names = words("event_name", limits.event_names_at_least, limits.event_names_at_most)
    if not names:
        raise TrainingError(
            f"no event name occurs in {limits.event_names_at_least} training sessions or more: take a longer log"
        )
    return Encoder(
        names,
        words("item_category", limits.categories_at_least, limits.categories_at_most),
        words("item_id", limits.items_at_least, limits.items_at_most),
        properties,
        {
            spec.name: words(f"property.{spec.name}", limits.property_values_at_least, limits.property_values_at_most)
            for spec in properties
            if spec.kind == "category"
        },
        # A date without the time of day says nothing of the hour.
        calendar=dataset.clock == "calendar",
    )


def _fit(
    model: SessionModel,
    encoded: dict[str, Encoded],
    settings: TrainSettings,
    device: str,
    checkpoint: Path | None,
    resume: bool,
    stages: StageFactory,
) -> Fit:
    sessions = len(encoded["train"].columns.outcome)
    with stages("training", settings.fit.epochs * sessions) as stage:
        note = ""

        def progress(number: int, done: int, epoch: Epoch | None) -> None:
            nonlocal note
            if epoch is not None:
                note = f"epoch {number}: train {epoch.train_loss:.4f}, validation {epoch.validation_loss:.4f} nats"
            stage((number - 1) * sessions + done, note)

        return fit(
            model,
            encoded["train"],
            encoded["validation"],
            settings.fit,
            device=device,
            checkpoint=checkpoint,
            resume=resume,
            identity={
                "fractions": list(settings.fractions),
                "split_seed": settings.split_seed,
                "quantile_bins": settings.quantile_bins,
                "sizes": asdict(model.sizes),
                "properties": [spec.name for spec in model.encoder.properties],
                "vocabularies": model.encoder.vocabularies,
                "training sessions": _digest(encoded["train"].columns),
                "validation sessions": _digest(encoded["validation"].columns),
            },
            progress=progress,
        )


def _digest(columns: Columns) -> str:
    """Return a digest of everything that is learned from."""
    digest = hashlib.sha256("\n".join(columns.session_id).encode())
    for tensor in (columns.outcome, columns.offsets, columns.timestamp_ms, columns.codes, columns.numbers):
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _calibrate(model: SessionModel, data: Encoded, warnings: list[str]) -> Calibration | None:
    calibration = None
    if len(data.columns.outcome):
        index = data.columns.session_index().numpy()
        calibration = fit_calibration(logits(model, data).numpy(), data.columns.outcome.numpy()[index], index)
    if calibration is None:
        warnings.append("too few sessions of either outcome to calibrate on: the logits are used as they are")
    else:
        model.temperature.fill_(calibration.temperature)
        model.bias.fill_(calibration.bias)
    return calibration


def _predict(
    model: SessionModel, encoded: dict[str, Encoded], settings: TrainSettings, stages: StageFactory
) -> Predictions:
    test = encoded["test"]
    with torch.inference_mode():
        raw = logits(model, test).to(model.bias.device)
        probability = {WILLBUY: model.calibrated(raw).cpu().double().numpy()}
    if settings.lightgbm:
        with stages("fitting LightGBM for comparison", 1) as stage:
            probability[LIGHTGBM], trees = lightgbm_on_aggregates(
                model.encoder,
                encoded["train"],
                encoded["validation"],
                test,
                seed=settings.fit.seed,
                threads=torch.get_num_threads(),
            )
            stage(1, f"{trees} trees")
    probability[BASE_RATE] = base_rate_by_position(encoded["train"], test)
    index = test.columns.session_index().numpy()
    return Predictions(
        probability=probability,
        outcome=test.columns.outcome.numpy()[index].astype(np.float64),
        prefix_length=test.columns.prefix_length().numpy(),
        session_index=index,
        session_id=test.columns.session_id,
    )
