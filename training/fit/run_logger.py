"""A training run in an experiment tracker: `willbuy train --logger tensorboard` or `--logger mlflow`.

Losses and learning rate go there after each epoch of pre-training and fit; the settings and the scores of the test
sessions at the end. TensorBoard reads the folder `<stem>.tensorboard` beside the artifact. MLflow's own variables
(MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME) say where the run goes, which also gets artifact and report.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

from training.config import Tracker
from training.config_file import ConfigError
from training.fit.checkpoint import Epoch

_EXPERIMENT: Final = "willbuy"


class RunLogger(Protocol):
    """Where a run is logged."""

    def settings(self, values: Mapping[str, object]) -> None:
        """Log the settings by dotted key."""

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers by name, such as `fit/validation_loss`."""

    def files(self, paths: Sequence[Path]) -> None:
        """Keep copies of files, where the tracker keeps files."""

    def close(self, *, failed: bool) -> None:
        """End the run."""


@contextmanager
def run_logger(tracker: Tracker | None, artifact: Path) -> Iterator[RunLogger | None]:
    """Yield the logger of the run that writes `artifact`; None without a tracker.

    Raises:
        ConfigError: the tracker's package is not installed.
    """
    if tracker is None:
        yield None
        return
    if find_spec(tracker) is None:
        raise ConfigError(f'--logger {tracker}: not installed; run pip install ".[loggers]" in a checkout of willbuy')
    logger: RunLogger = _TensorBoard(artifact) if tracker == "tensorboard" else _MLflow(artifact)
    failed = True
    try:
        yield logger
        failed = False
    finally:
        logger.close(failed=failed)


def numbers_of(stage: str, epoch: Epoch) -> dict[str, float]:
    """Return the numbers of an epoch by their names in a tracker."""
    return {f"{stage}/{name}": getattr(epoch, name) for name in ("train_loss", "validation_loss", "learning_rate")}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Return nested settings by dotted key."""
    found: dict[str, object] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


class _TensorBoard:
    def __init__(self, artifact: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # an extra, and slow to import

        self._writer: Any = SummaryWriter(str(artifact.with_name(f"{artifact.stem}.tensorboard")))

    def settings(self, values: Mapping[str, object]) -> None:
        self._writer.add_text("settings", "\n".join(f"    {key} = {value}" for key, value in values.items()))

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        # A run may be watched while it trains.
        self._writer.flush()

    def files(self, paths: Sequence[Path]) -> None:
        del paths

    def close(self, *, failed: bool) -> None:
        del failed
        self._writer.close()


class _MLflow:
    def __init__(self, artifact: Path) -> None:
        from mlflow.tracking import MlflowClient  # noqa: PLC0415  # same

        self._client: Any = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        known = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if known is None else known.experiment_id
        self._run: str = self._client.create_run(experiment, run_name=artifact.stem).info.run_id

    def settings(self, values: Mapping[str, object]) -> None:
        for key, value in values.items():
            self._client.log_param(self._run, key, value)

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, name, value, step=step)

    def files(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self._client.log_artifact(self._run, str(path))

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._run, status="FAILED" if failed else "FINISHED")
