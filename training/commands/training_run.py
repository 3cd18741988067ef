"""A training run as the command does it: from prepared sessions to an artifact, its report, and what repeats it."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from model.artifact import Manifest
from training.commands.console import ERR, OUT, stage, tell
from training.config import ComputeSettings, Device, LogSettings, RunConfig
from training.data.atomic_write import write_whole
from training.data.prepared import PreparedDataset
from training.data.provenance import data_fingerprint, lineage
from training.data.training_set import Room
from training.evaluation.reading import posterior_of
from training.evaluation.resampling import DEFAULT_RESAMPLES
from training.fit.distributed import ALONE, Workers
from training.fit.recipe import pretraining_checkpoint
from training.fit.run_record import Timings, config_path, record_path, write_record
from training.fit.train import StageFactory, TrainingError, TrainResult, export, train
from training.fit.warm_start import NOT_BETTER, Start, check_fits, words_left_out
from training.report import Report, build_report, console_table, write_html, write_json
from training.report.model_card import model_card
from training.settings import TrainSettings

if TYPE_CHECKING:
    from training.fit.search import Search


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
    room: Room | None = None,
    workers: Workers = ALONE,
) -> Manifest:
    """Train, write artifact and report, and print the table.

    Beside `out` come `<stem>.report.html`, `<stem>.report.json`, `<stem>.config.toml` and `<stem>.run.json`; while it
    runs, `<stem>.checkpoint`. A search leaves `<stem>.trials.csv`, and while it runs its best settings so far in
    `<stem>.best.toml`.

    Args:
        dataset: prepared sessions.
        settings: what to compute.
        out: the artifact.
        device: `cpu`, `cuda` or `auto`.
        threads: see `training.fit.train.train`.
        resume: go on from the checkpoint of a run that was broken off.
        posterior: exact posterior of a synthetic log, as `willbuy synthesize` writes it.
        log: how the data was read from a log, for the record.
        start: an earlier model to go on from; `settings` are `training.fit.warm_start.warm_config`'s.
        trials: settings to try before; 0 for no search.
        room: where encoded sessions are kept.
        workers: the processes of the run, of which this is the first; the others call `training.fit.train.train`.

    Raises:
        TrainingError: the data cannot be trained on.
        training.evaluation.reading.PosteriorError: the posterior is not of this data.
        training.fit.warm_start.WarmStartError: the data does not fit the earlier model.
    """
    # What would fail at the end is looked at before the work.
    if out.is_dir():
        raise TrainingError(f"{out}: is a folder; name the file to write")
    if posterior is not None and not posterior.is_file():
        raise TrainingError(f"{posterior}: no such file; `willbuy synthesize` writes it beside the log")
    checkpoint = checkpoint_path(out)
    config = RunConfig(settings, log or LogSettings(), ComputeSettings(_device(device), threads))
    warnings = [] if start is None else check_fits(start, dataset)
    timings = Timings()
    stages = timings.watch(stage)
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
            room=room,
            workers=workers,
        )
    except KeyboardInterrupt:
        if search is not None and not search.finished:
            _tell_of_broken_search(search, out)
        elif checkpoint.is_file() or pretraining_checkpoint(checkpoint).is_file():
            ERR.print(
                f"\nprogress is in {checkpoint}; the same command with --resume goes on from it",
                markup=False,
                soft_wrap=True,
            )
        raise
    if search is not None:
        config = replace(config, train=search.settings)
        best_path(out).unlink(missing_ok=True)
    if start is not None:
        warnings += words_left_out(start, dataset, settings)
        if not result.fit.best_epoch:
            warnings.append(NOT_BETTER)
    result.warnings.extend(warnings)
    report = _report(result, dataset, out, posterior, stages)
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
    OUT.print(console_table(report))
    for warning in report.warnings:
        ERR.print(f"note: {warning}", style="yellow", markup=False)
    size = out.stat().st_size / 1024
    OUT.print(
        f"artifact  {out} ({size:.0f} KiB, model {manifest.fingerprint})", markup=False, highlight=False, soft_wrap=True
    )
    tell(f"report    {html}")
    tell(f"settings  {config_path(out)} (what came of them: {record_path(out).name})")
    tell(f"next      willbuy serve --artifact {out} --open")
    return manifest


def checkpoint_path(artifact: Path) -> Path:
    """Return where a run leaves what it needs to go on."""
    return artifact.with_name(f"{artifact.stem}.checkpoint")


def best_path(artifact: Path) -> Path:
    """Return where a search that is still going on leaves its best settings."""
    return artifact.with_name(f"{artifact.stem}.best.toml")


def trials_path(artifact: Path) -> Path:
    """Return where a search leaves the table of its trials."""
    return artifact.with_name(f"{artifact.stem}.trials.csv")


def _search(config: RunConfig, trials: int, out: Path, stages: StageFactory) -> "Search | None":
    if not trials:
        return None
    from training.fit.search import Search  # noqa: PLC0415  # optuna takes a while, and few runs search

    def leave(best: TrainSettings) -> None:
        write_whole(best_path(out), replace(config, train=best).to_toml())

    best_path(out).unlink(missing_ok=True)
    return Search(config.train, trials, trials_path(out), config.compute.device, stages, leave)


def _tell_of_broken_search(search: "Search", out: Path) -> None:
    if search.best is None:
        return
    text = f"the search was broken off; the best settings of {len(search.trials)} trials are in {best_path(out)}, all "
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
    described = dataset.to_dict()
    counts = {name: value for name, value in described["counts"].items() if name != "rejected" and value}
    with stages("resampling test sessions", DEFAULT_RESAMPLES) as shown:
        return build_report(
            result.test.probability,
            result.test.outcome,
            result.test.prefix_length,
            result.test.session_index,
            title=out.stem,
            dataset={
                "format": described["source_format"],
                "times": described["clock"],
                **counts,
                "properties": ", ".join(f"{p.name} ({p.kind})" for p in dataset.properties) or "none",
                "sessions by part": ", ".join(f"{part} {count:,}" for part, count in result.sessions.items()),
                "buyers by part": ", ".join(f"{part} {count:,}" for part, count in result.buyers.items()),
            },
            settings={
                **_flat(result),
                "seconds": round(result.seconds, 1),
                "device": result.device,
                "best epoch": f"{result.fit.best_epoch} of {len(result.fit.epochs)}",
            },
            slices=result.test.slices,
            epochs=result.fit.epochs,
            optimum=optimum,
            warnings=result.warnings,
            progress=shown,
        )


def _flat(result: TrainResult) -> dict[str, Any]:
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
