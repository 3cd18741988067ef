"""The result of a training run, and its export as an artifact."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.artifact import Manifest, manifest_of, save
from model.network import SessionModel
from model.summary import DataSummary
from training.config import TrainSettings
from training.data.leaks import RankedInput
from training.data.prepared import PreparedDataset
from training.evaluation.calibration import Calibration, calibrated_base_rate
from training.fit.checkpoint import Fit
from training.fit.importance import Importance


@dataclass(frozen=True, slots=True)
class Predictions:
    """Each model's probability for every prefix of the test sessions, with outcomes and slices, [N] each."""

    probability: dict[str, NDArray[np.float64]]
    outcome: NDArray[np.float64]
    prefix_length: NDArray[np.int64]
    session_index: NDArray[np.int64]
    session_id: NDArray[np.object_]
    slices: Mapping[str, Mapping[str, NDArray[np.bool_]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The fitted model of a run, with its history, test predictions and counts."""

    model: SessionModel
    fit: Fit
    calibration: Calibration | None
    test: Predictions
    sessions: dict[str, int]
    buyers: dict[str, int]
    seconds: float
    warnings: list[str]
    device: str
    inputs: DataSummary
    inputs_alone: list[RankedInput] = field(default_factory=list)
    importance: list[Importance] = field(default_factory=list)


def export(
    result: TrainResult,
    dataset: PreparedDataset,
    settings: TrainSettings,
    metrics: dict[str, Any],
    path: Path,
    *,
    fingerprint: str = "",
    history: Mapping[str, Any] | None = None,
    card: Callable[[Manifest], dict[str, Any]] | None = None,
) -> Manifest:
    """Write the artifact with its manifest.

    Args:
        result: of `train`.
        dataset: the data of the run.
        settings: the run's settings.
        metrics: copied into the manifest.
        path: the artifact.
        fingerprint: of the data, `training.data.provenance.data_fingerprint`.
        history: lineage of a warm start, and summary of a search.
        card: makes the model card of the manifest (`training.report.model_card`).

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
            **{name: dataset.report[name] for name in ("purchase_names", "event_renames") if name in dataset.report},
            "fingerprint": fingerprint,
            "sessions": result.sessions,
            "buyers": result.buyers,
            "base_rate": calibrated_base_rate(result.sessions, result.buyers, result.calibration),
            "inputs": result.inputs.to_dict(),
        },
        training={
            **asdict(settings),
            "seconds": round(result.seconds, 1),
            "device": result.device,
            "best_epoch": result.fit.best_epoch,
            "epochs_run": len(result.fit.epochs),
            **(history or {}),
        },
    )
    return save(result.model, path, manifest, card)
