"""The record of a run beside its artifact, to evaluate and repeat the run: `<stem>.config.toml`, `<stem>.run.json`."""

import hashlib
import json
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from model.atomic_write import atomic_write
from model.manifest import Manifest
from training.config import RunConfig
from training.config_file import to_toml
from training.data.prepared import PreparedDataset
from training.fit.result import TrainResult
from training.runtime.progress import Stage, StageFactory

KIND: Final = "willbuy training run"
FORMAT_VERSION: Final = 1
_PACKAGES: Final = ("willbuy", "torch", "numpy", "polars", "scikit-learn", "lightgbm", "optuna")


def config_path(artifact: Path) -> Path:
    """Return the path of the settings of an artifact's run."""
    return artifact.with_name(f"{artifact.stem}.config.toml")


def record_path(artifact: Path) -> Path:
    """Return the path of the record of an artifact's run."""
    return artifact.with_name(f"{artifact.stem}.run.json")


@dataclass(slots=True)
class Timings:
    """Seconds of each stage of a run by name; repeated stages add up."""

    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    seconds: dict[str, float] = field(default_factory=dict)

    def watch(self, stages: StageFactory) -> StageFactory:
        """Return `stages` with every stage timed."""

        def factory(name: str, steps: int) -> AbstractContextManager[Stage]:
            return self._timed(name, stages(name, steps))

        return factory

    @contextmanager
    def _timed(self, name: str, stage: AbstractContextManager[Stage]) -> Iterator[Stage]:
        began = time.perf_counter()
        try:
            with stage as show:
                yield show
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 3)


def write_record(
    artifact: Path,
    manifest: Manifest,
    config: RunConfig,
    dataset: PreparedDataset,
    result: TrainResult,
    timings: Timings,
) -> None:
    """Write both files beside the artifact.

    Args:
        artifact: as written.
        manifest: of the artifact.
        config: of the run, with the settings that a search chose.
        dataset: the run's data.
        result: of the run.
        timings: of its stages.
    """
    described = dataset.to_dict()
    with artifact.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    record: dict[str, Any] = {
        "kind": KIND,
        "format_version": FORMAT_VERSION,
        "command": shlex.join(_command()),
        "started": timings.started.isoformat(timespec="seconds"),
        "seconds": {"all": round(result.seconds, 3), **timings.seconds},
        "artifact": {"file": artifact.name, "fingerprint": manifest.fingerprint, "sha256": sha256},
        "seed": config.train.fit.seed,
        "config": config.to_dict(),
        "data": {
            "folder": str(dataset.path),
            "fingerprint": manifest.data.get("fingerprint"),
            **{name: described[name] for name in ("source_format", "clock", "first_time_ms", "last_time_ms")},
            "counts": described["counts"],
            "prepare": described["settings"],
            "sessions": result.sessions,
            "buyers": result.buyers,
        },
        "epochs": [asdict(epoch) for epoch in result.fit.epochs],
        "best_epoch": result.fit.best_epoch,
        "stopped": result.fit.stopped,
        "calibration": manifest.calibration,
        "metrics": manifest.metrics,
        "warnings": result.warnings,
        "device": result.device,
        "versions": _versions(),
        "machine": {"system": platform.platform(), "processor": platform.machine()},
        "lineage": manifest.training.get("lineage", []),
        "search": manifest.training.get("search"),
    }
    atomic_write(config_path(artifact), to_toml(config))
    atomic_write(record_path(artifact), json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _command() -> list[str]:
    program = Path(sys.argv[0])
    # `python -m training` and `python -m app` have `__main__.py` as the program.
    return ["willbuy" if program.name == "__main__.py" else program.name, *sys.argv[1:]]


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
