"""`willbuy train` as the command line asks for it: the data prepared where it must be, the settings made whole."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from model.artifact import ArtifactError
from training.commands.prepare import PREPARE_ERRORS, LogOptions, run_prepare
from training.commands.training_run import checkpoint_path, run_training
from training.config import ConfigError, LogSettings, RunConfig
from training.data.leaks import LeakError
from training.data.prepared import PreparedDataset, is_prepared, read_prepared
from training.data.training_set import Room
from training.fit.checkpoint import CheckpointError
from training.fit.distributed import DeviceError, WorkerError, Workers, join
from training.fit.train import TrainingError, train
from training.fit.warm_start import WarmStartError, read_start, warm_config

TRAIN_ERRORS: Final = (
    *PREPARE_ERRORS, ArtifactError, CheckpointError, ConfigError, DeviceError, LeakError, TrainingError, WarmStartError,
    WorkerError, OSError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """What a command line asks for.

    Attributes:
        data: prepared sessions, or a log in a known format.
        out: the artifact to write.
        config: settings of defaults, file and flags.
        resume: go on from the checkpoint of a run that was broken off.
        posterior: exact posterior of a synthetic log.
        trials: settings to try before; 0 for no search.
        start: artifact of an earlier model to go on from.
        room: where encoded sessions are kept.
    """

    data: Path
    out: Path
    config: RunConfig
    resume: bool = False
    posterior: Path | None = None
    trials: int = 0
    start: Path | None = None
    room: Room = field(default_factory=Room)


def run_train(request: TrainRequest) -> None:
    """Do what was asked, together with the other processes where torchrun started several.

    Raises:
        TRAIN_ERRORS: what a user did or can mend; the message says which and how.
    """
    with join(request.config.compute.device) as workers:
        if workers.count > 1:
            _refuse_what_one_process_does(request)
        _run(request, workers)


def _refuse_what_one_process_does(request: TrainRequest) -> None:
    if request.trials:
        raise ConfigError("--search: is done by one process; start it without torchrun, then train with what it found")
    if not is_prepared(request.data):
        raise ConfigError(f"{request.data}: several processes need prepared sessions; run `willbuy prepare` before")


def _run(request: TrainRequest, workers: Workers) -> None:
    config = request.config
    start = None
    if request.start is not None:
        if request.trials:
            raise ConfigError(
                "--search with --from: the sizes are the artifact's; search without --from, or not at all"
            )
        start = read_start(request.start)
        config = warm_config(config, start.manifest)
    request.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="willbuy-") as temporary:
        dataset = prepared_or_read(
            request.data,
            Path(temporary) / "prepared",
            config.log,
            keep_rejected=request.out.with_name(f"{request.out.stem}.rejected.csv"),
        )
        config = config.for_sessions(dataset.counts.sessions.sessions)
        if not workers.first:
            train(
                dataset,
                config.train,
                device=config.compute.device,
                threads=config.compute.threads,
                checkpoint=checkpoint_path(request.out),
                resume=request.resume,
                start=None if start is None else start.model,
                room=request.room,
                workers=workers,
            )
            return
        run_training(
            dataset,
            config.train,
            request.out,
            device=config.compute.device,
            threads=config.compute.threads,
            resume=request.resume,
            posterior=request.posterior,
            log=config.log,
            start=start,
            trials=request.trials,
            room=request.room,
            workers=workers,
        )


def prepared_or_read(
    data: Path, folder: Path, log: LogSettings, *, keep_rejected: Path | None = None
) -> PreparedDataset:
    """Return prepared sessions as they are, or those of a log, prepared into `folder`.

    Raises:
        PREPARE_ERRORS: there is no such data, or it is not readable.
    """
    if is_prepared(data):
        return read_prepared(data)
    options = LogOptions(
        format=log.format,
        mapping=None if log.mapping is None else Path(log.mapping),
        idle_timeout_s=log.idle_timeout_s,
        keep_open_sessions=log.keep_open_sessions,
    )
    return run_prepare(data, folder, options, keep_rejected=keep_rejected)
