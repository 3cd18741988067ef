"""From a training run to the artifact, with a manifest that says where it came from."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from model.artifact import Manifest, manifest_of, save
from training.data.prepared import PreparedDataset
from training.fit.calibration import calibrated_base_rate
from training.fit.result import TrainResult
from training.settings import TrainSettings


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
        dataset: what it trained on.
        settings: what it computed.
        metrics: told in the manifest.
        path: the artifact.
        fingerprint: of the data, `training.data.provenance.data_fingerprint`.
        history: what came before: the models that this one went on from, or a search.
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
    if card is not None:
        manifest = replace(manifest, model_card=card(manifest))
    return save(result.model, path, manifest)
