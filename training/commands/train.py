"""`willbuy train`: from data to an artifact, its report, and the record that repeats the run."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from model.artifact import Manifest
from model.atomic_write import atomic_write
from training.commands.compile import COMPILE_ERRORS, run_compile
from training.commands.console import ERR, OUT, print_line
from training.commands.prepare import PREPARE_ERRORS, prepared_sessions, run_prepare
from training.commands.scores import print_scores
from training.commands.stages import Stages
from training.config import (
    EVALUATE_RESAMPLES,
    ComputeSettings,
    Device,
    LogSettings,
    RunConfig,
    StorageBudget,
    TrainOptions,
    TrainSettings,
)
from training.config_file import ConfigError, to_toml
from training.data.leaks import LeakError
from training.data.prepared import PreparedDataset, is_prepared
from training.data.provenance import data_fingerprint, lineage
from training.data.training_set import TrainingError
from training.evaluation.posterior import posterior_of
from training.fit.checkpoint import CheckpointError, Epoch
from training.fit.compilation import require_compiler
from training.fit.forecast import expected_seconds
from training.fit.recipe import pretraining_checkpoint
from training.fit.result import TrainResult, export
from training.fit.run_logger import RunLogger, flat, numbers_of, run_logger
from training.fit.run_record import Timings, config_path, record_path, write_record
from training.fit.train import train
from training.fit.warm_start import (
    NOT_BETTER,
    Start,
    WarmStartError,
    check_fits,
    read_start,
    warm_config,
    words_left_out,
)
from training.report.build import build_report
from training.report.content import Report, write_json
from training.report.model_card import model_card
from training.report.page import write_html
from training.runtime.distributed import SINGLE_PROCESS, DeviceError, WorkerError, Workers, join
from training.runtime.progress import StageFactory

if TYPE_CHECKING:
    from training.fit.search import Search

TRAIN_ERRORS: Final = (
    *PREPARE_ERRORS, *COMPILE_ERRORS, CheckpointError, ConfigError, DeviceError, LeakError, TrainingError,
    WarmStartError, WorkerError,
)  # fmt: skip


QUICK: Final = (
    "This was a quick training: the fit alone, for a few epochs. It left out pre-training, distillation and the "
    "comparison with LightGBM; train without --quick before you act on the scores."
)


def run_train(data: Path, out: Path, config: RunConfig, options: TrainOptions | None = None) -> None:
    """Train as the command line asks, together with the other processes where torchrun started several.

    Args:
        data: prepared sessions, or a log in a known format.
        out: the artifact to write.
        config: settings of defaults, file and flags.
        options: of this run.

    Raises:
        TRAIN_ERRORS: an error that the user can fix; the message says how.
    """
    options = options or TrainOptions()
    with join(config.compute.device) as workers:
        if workers.count > 1:
            _refuse_single_process_work(data, options)
        _run(data, out, config, options, workers)


def _refuse_single_process_work(data: Path, options: TrainOptions) -> None:
    if options.search:
        raise ConfigError("--search: is done by one process; start it without torchrun, then train with what it found")
    if not is_prepared(data):
        raise ConfigError(f"{data}: several processes need prepared sessions; run `willbuy prepare` before")


def _run(data: Path, out: Path, config: RunConfig, options: TrainOptions, workers: Workers) -> None:
    if options.compile:
        require_compiler()
    start = None
    if options.start is not None:
        if options.search:
            raise ConfigError(
                "--search with --from: the sizes are the artifact's; search without --from, or not at all"
            )
        start = read_start(options.start)
        config = warm_config(config, start.manifest)
    out.parent.mkdir(parents=True, exist_ok=True)
    prepare_into = partial(run_prepare, data, log=config.log, keep_rejected=out.with_name(f"{out.stem}.rejected.csv"))
    with prepared_sessions(data, prepare_into) as dataset:
        config = config.for_sessions(dataset.counts.sessions.sessions)
        if workers.first:
            with run_logger(options.logger, out) as logger:
                run_training(
                    dataset,
                    config.train,
                    out,
                    device=config.compute.device,
                    threads=config.compute.threads,
                    resume=options.resume,
                    posterior=options.posterior,
                    log=config.log,
                    start=start,
                    trials=options.search or 0,
                    budget=options.storage,
                    workers=workers,
                    warnings=[QUICK] if options.quick else [],
                    logger=logger,
                )
            if options.compile:
                run_compile(out, out)
        else:
            train(
                dataset,
                config.train,
                device=config.compute.device,
                threads=config.compute.threads,
                checkpoint=checkpoint_path(out),
                resume=options.resume,
                start=None if start is None else start.model,
                budget=options.storage,
                workers=workers,
            )


def run_training(
    dataset: PreparedDataset,
    settings: TrainSettings,
    out: Path,
    *,
    device: Device = "cpu",
    threads: int = 1,
    resume: bool = False,
    posterior: Path | None = None,
    log: LogSettings | None = None,
    start: Start | None = None,
    trials: int = 0,
    budget: StorageBudget | None = None,
    workers: Workers = SINGLE_PROCESS,
    warnings: Sequence[str] = (),
    logger: RunLogger | None = None,
) -> Manifest:
    """Train, write artifact and report, and print the table.

    The run writes `<stem>.report.html`, `<stem>.report.json`, `<stem>.config.toml` and `<stem>.run.json` beside `out`,
    and `<stem>.checkpoint` while it runs. A search writes `<stem>.trials.csv`, and its best settings so far into
    `<stem>.best.toml` while it runs.

    Args:
        dataset: prepared sessions.
        settings: what to compute.
        out: the artifact.
        device: `cpu`, `cuda` or `auto`.
        threads: see `training.fit.train.train`.
        resume: continue from the checkpoint of an interrupted run.
        posterior: exact posterior of a synthetic log, as `willbuy synthesize` writes it.
        log: how the data was read from a log, for the record.
        start: an earlier model to continue from; `settings` are `training.fit.warm_start.warm_config`'s.
        trials: settings to try before; 0 for no search.
        budget: where encoded sessions are kept.
        workers: the processes of the run, of which this is the first; the others call `training.fit.train.train`.
        warnings: of the command, for the report.
        logger: an experiment tracker.

    Raises:
        TrainingError: the data cannot be trained on.
        training.evaluation.posterior.PosteriorError: the posterior is not of this data.
        training.fit.warm_start.WarmStartError: the data does not fit the earlier model.
    """
    # Errors that would occur at the end are found before the work starts.
    if out.is_dir():
        raise TrainingError(f"{out}: is a folder; name the file to write")
    if posterior is not None and not posterior.is_file():
        raise TrainingError(f"{posterior}: no such file; `willbuy synthesize` writes it beside the log")
    checkpoint = checkpoint_path(out)
    config = RunConfig(settings, log or LogSettings(), ComputeSettings(_device(device), threads))
    doubts = [*warnings, *([] if start is None else check_fits(start, dataset))]
    timings = Timings()
    counts = dataset.counts.sessions
    expected_s = expected_seconds(settings, counts.sessions, counts.events, trials=trials, warm_start=start is not None)
    with Stages(expected_s) as shown:
        stages = timings.watch(shown)
        search = _search(config, trials, out, stages)
        try:
            result = train(
                dataset,
                settings,
                device=device,
                threads=threads,
                checkpoint=checkpoint,
                resume=resume,
                stages=stages,
                start=None if start is None else start.model,
                tune=search,
                budget=budget,
                workers=workers,
                on_epoch=None if logger is None else partial(_log_epoch, logger),
            )
        except KeyboardInterrupt:
            if search is not None and not search.finished:
                _report_interrupted_search(search, out)
            elif checkpoint.is_file() or pretraining_checkpoint(checkpoint).is_file():
                ERR.print(
                    f"\nprogress is in {checkpoint}; the same command with --resume continues from it",
                    markup=False,
                    soft_wrap=True,
                )
            raise
        if start is not None:
            doubts += words_left_out(start, dataset, settings)
            if not result.fit.best_epoch:
                doubts.append(NOT_BETTER)
        result.warnings.extend(doubts)
        report = _report(result, dataset, out, posterior, stages)
    if search is not None:
        config = replace(config, train=search.settings)
        best_path(out).unlink(missing_ok=True)
    manifest = export(
        result,
        dataset,
        config.train,
        _metrics(report),
        out,
        fingerprint=data_fingerprint(dataset),
        history={
            **({} if start is None else {"lineage": lineage(start.manifest)}),
            **({} if search is None else {"search": search.summary()}),
        },
        card=partial(model_card, report=report),
    )
    report = replace(report, model_card=manifest.model_card)
    checkpoint.unlink(missing_ok=True)
    pretraining_checkpoint(checkpoint).unlink(missing_ok=True)
    html = out.with_name(f"{out.stem}.report.html")
    write_html(html, report)
    write_json(out.with_name(f"{out.stem}.report.json"), report)
    write_record(out, manifest, config, dataset, result, timings)
    if logger is not None:
        _log_result(logger, config, report, [out, html])
    print_scores(report)
    size = out.stat().st_size / 1024
    OUT.print(
        f"artifact  {out} ({size:.0f} KiB, model {manifest.fingerprint})", markup=False, highlight=False, soft_wrap=True
    )
    print_line(f"fit       best epoch {result.fit.best_epoch}; {result.fit.stopped}")
    print_line(f"report    {html}")
    print_line(f"settings  {config_path(out)} (record: {record_path(out).name})")
    print_line(f"next      willbuy serve --artifact {out} --open")
    return manifest


def _log_epoch(logger: RunLogger, stage: str, epoch: Epoch) -> None:
    logger.numbers(numbers_of(stage, epoch), epoch.number)


def _log_result(logger: RunLogger, config: RunConfig, report: Report, files: Sequence[Path]) -> None:
    """Log the settings, a search's included, and the scores over all prefixes of the test sessions."""
    logger.settings(flat(config.to_dict()))
    scores = report.pooled.scores[report.subject]
    logger.numbers({f"test/{name}": one.value for name, one in scores.items() if one.value is not None}, 0)
    logger.files(files)


def checkpoint_path(artifact: Path) -> Path:
    """Return the path of a run's checkpoint."""
    return artifact.with_name(f"{artifact.stem}.checkpoint")


def best_path(artifact: Path) -> Path:
    """Return the path of the best settings so far, while a search runs."""
    return artifact.with_name(f"{artifact.stem}.best.toml")


def trials_path(artifact: Path) -> Path:
    """Return the path of a search's table of trials."""
    return artifact.with_name(f"{artifact.stem}.trials.csv")


def _search(config: RunConfig, trials: int, out: Path, stages: StageFactory) -> "Search | None":
    if not trials:
        return None
    from training.fit.search import Search  # noqa: PLC0415  # optuna takes a while, and few runs search

    def write_best(best: TrainSettings) -> None:
        atomic_write(best_path(out), to_toml(replace(config, train=best)))

    best_path(out).unlink(missing_ok=True)
    return Search(config.train, trials, trials_path(out), config.compute.device, stages, write_best)


def _report_interrupted_search(search: "Search", out: Path) -> None:
    if search.best is None:
        return
    text = f"the search was interrupted; the best settings of {len(search.trials)} trials are in {best_path(out)}, all "
    text += f"trials in {trials_path(out)}; to train with them: willbuy train DATA --config {best_path(out)}"
    ERR.print(f"\n{text}", markup=False, soft_wrap=True)


def _device(asked: Device) -> Device:
    if asked != "auto":
        return asked
    return "cuda" if torch.cuda.is_available() else "cpu"


def _report(
    result: TrainResult, dataset: PreparedDataset, out: Path, posterior: Path | None, stages: StageFactory
) -> Report:
    test = result.test
    optimum = None
    if posterior is not None:
        optimum = posterior_of(posterior, test.session_id[test.session_index], test.prefix_length)
    with stages("resampling test sessions", EVALUATE_RESAMPLES) as shown:
        return build_report(
            result.test.probability,
            result.test.outcome,
            result.test.prefix_length,
            result.test.session_index,
            title=out.stem,
            dataset={
                **dataset.facts(),
                "sessions by part": ", ".join(f"{part} {count:,}" for part, count in result.sessions.items()),
                "buyers by part": ", ".join(f"{part} {count:,}" for part, count in result.buyers.items()),
            },
            settings={
                **_facts(result),
                "seconds": round(result.seconds, 1),
                "device": result.device,
                "best epoch": f"{result.fit.best_epoch} of {len(result.fit.epochs)}; {result.fit.stopped}",
            },
            slices=result.test.slices,
            epochs=result.fit.epochs,
            optimum=optimum,
            warnings=result.warnings,
            inputs_alone=result.inputs_alone,
            importance=result.importance,
            progress=shown,
        )


def _facts(result: TrainResult) -> dict[str, Any]:
    sizes = result.model.sizes
    facts: dict[str, Any] = {
        "cell": sizes.cell if sizes.cell == "feed-forward" else f"{sizes.cell}, {sizes.layers} x {sizes.hidden_size}",
        "aggregates": "yes" if sizes.aggregates else "no",
        "head": sizes.head_size,
        "dropout": sizes.dropout,
        "features": len(result.model.encoder.feature_names),
    }
    if result.calibration is not None:
        facts |= {
            "temperature": round(result.calibration.temperature, 4),
            "calibration bias": round(result.calibration.bias, 4),
        }
    return facts


def _metrics(report: Report) -> dict[str, Any]:
    """Return the part of the report that goes into the manifest: scores by prefix length, by model."""
    return {
        "sessions": report.sessions,
        "buyers": report.buyers,
        "models": {name: [asdict(row) for row in rows] for name, rows in report.models.items()},
        **({"optimum": [asdict(row) for row in report.optimum]} if report.optimum else {}),
        "warnings": report.warnings,
    }
