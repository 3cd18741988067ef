"""Whole runs as the commands do them: train to an artifact with its report, and replay against a service."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.table import Table

from model.artifact import Manifest
from model.predictor import load_predictor
from training.console import ERR, OUT, progress_bars, stage, tell
from training.metrics import score
from training.prepare import prepare
from training.prepared import PreparedDataset, is_prepared, read_prepared
from training.replay import (
    TOLERANCE,
    ReplayError,
    ReplayResult,
    client_of,
    read_sessions,
    replay,
    served_model,
)
from training.report import Report, build_report, console_table, write_html, write_json
from training.settings import TrainSettings
from training.train import Predictions, TrainingError, TrainResult, export, parts_of, train


def run_training(
    dataset: PreparedDataset,
    settings: TrainSettings,
    out: Path,
    *,
    device: str = "cpu",
    threads: int = 1,
    resume: bool = False,
    posterior: Path | None = None,
) -> Manifest:
    """Train, write artifact and report, and print the table.

    Beside `out` come `<stem>.report.html` and `<stem>.report.json`; while it runs, `<stem>.checkpoint`.

    Args:
        dataset: prepared sessions.
        settings: what to compute.
        out: the artifact.
        device: `cpu`, `cuda` or `auto`.
        threads: see `training.train.train`.
        resume: go on from the checkpoint of a run that was broken off.
        posterior: exact posterior of a synthetic log, as `willbuy synthesize` writes it.

    Raises:
        TrainingError: the data cannot be trained on, or the posterior is not of this data.
    """
    # What would fail at the end is looked at before the work.
    if out.is_dir():
        raise TrainingError(f"{out}: is a folder; name the file to write")
    if posterior is not None and not posterior.is_file():
        raise TrainingError(f"{posterior}: no such file; `willbuy synthesize` writes it beside the log")
    checkpoint = out.with_name(f"{out.stem}.checkpoint")
    try:
        result = train(
            dataset, settings, device=device, threads=threads, checkpoint=checkpoint, resume=resume, stages=stage
        )
    except KeyboardInterrupt:
        if checkpoint.is_file():
            ERR.print(
                f"\nprogress is in {checkpoint}; the same command with --resume goes on from it",
                markup=False,
                soft_wrap=True,
            )
        raise
    optimum = None if posterior is None else _optimum(posterior, result.test)
    report = _report(result, dataset, out, optimum)
    manifest = export(result, dataset, settings, _metrics(report), out)
    checkpoint.unlink(missing_ok=True)
    html = out.with_name(f"{out.stem}.report.html")
    write_html(html, report)
    write_json(out.with_name(f"{out.stem}.report.json"), report)
    OUT.print(console_table(report))
    for warning in report.warnings:
        ERR.print(f"note: {warning}", style="yellow", markup=False)
    size = out.stat().st_size / 1024
    OUT.print(
        f"artifact  {out} ({size:.0f} KiB, model {manifest.fingerprint})", markup=False, highlight=False, soft_wrap=True
    )
    tell(f"report    {html}")
    tell(f"next      willbuy serve --artifact {out}")
    return manifest


async def run_replay(
    data: Path, artifact: Path, url: str, sessions: int, part: str, concurrency: int, tolerance: float | None
) -> bool:
    """Replay sessions of a part of the data at a service, print what came back, and return whether it agreed.

    Raises:
        ReplayError: no service, another model in it, or an event that it refused.
    """
    async with client_of(url, concurrency) as client:
        served = await served_model(client)
        state_dtype = served["state_dtype"]
        predictor = load_predictor(artifact, state_dtype=state_dtype)
        if served["fingerprint"] != predictor.fingerprint:
            raise ReplayError(f"the service runs model {served['fingerprint']}, {artifact} is {predictor.fingerprint}")
        limit = TOLERANCE[state_dtype] if tolerance is None else tolerance
        with tempfile.TemporaryDirectory(prefix="willbuy-") as temporary:
            dataset = _dataset(data, Path(temporary) / "prepared", predictor.manifest)
            training = predictor.manifest.training
            chosen = sorted(parts_of(dataset, tuple(training["fractions"]), training["split_seed"])[part])
            if not chosen:
                raise ReplayError(f"the {part} part of {data} holds no session")
            chosen = _sample(chosen, sessions)
            events = read_sessions(dataset, chosen)
            outcomes = dict(dataset.sessions().select("session_id", "outcome").iter_rows())
        with progress_bars() as bars:
            task = bars.add_task("replaying", total=sum(map(len, events.values())), note="")
            result = await replay(
                client, predictor, events, concurrency=concurrency, progress=lambda count: bars.advance(task, count)
            )
    agreed = result.largest_difference <= limit
    _print_replay(result, limit, state_dtype, [outcomes[session_id] for session_id in events])
    return agreed


def _dataset(data: Path, folder: Path, manifest: Manifest) -> PreparedDataset:
    if is_prepared(data):
        return read_prepared(data)
    # Prepared as training did, so that the split falls as it fell then.
    before = manifest.data.get("prepare", {})
    return prepare(
        data,
        folder,
        format=manifest.data.get("source_format", "auto"),
        idle_timeout_s=before.get("idle_timeout_s", 1800.0),
        keep_open_sessions=before.get("keep_open_sessions", False),
    )


def _sample(session_ids: Sequence[str], count: int) -> list[str]:
    """Return at most `count` of the ids, evenly spread, the same ones each time."""
    if count >= len(session_ids):
        return list(session_ids)
    positions = np.linspace(0, len(session_ids) - 1, count).round().astype(int)
    return [session_ids[position] for position in positions]


def _print_replay(result: ReplayResult, limit: float, state_dtype: str, outcomes: list[bool]) -> None:
    latency_ms = np.array(result.latency_s) * 1000
    answers = np.concatenate([np.array(answers) for answers in result.answers])
    bought = np.repeat(np.array(outcomes, dtype=np.float64), [len(answers) for answers in result.answers])
    quality = score(bought, answers)
    table = Table(title="replay", title_justify="left", show_header=False)
    table.add_row("sessions", f"{result.sessions:,}")
    table.add_row("events, each answered", f"{result.events:,}")
    table.add_row("retries", f"{result.retries:,}")
    table.add_row("events a second", f"{result.events / result.seconds:,.0f}")
    table.add_row("latency p50, p99", f"{np.percentile(latency_ms, 50):.1f} ms, {np.percentile(latency_ms, 99):.1f} ms")
    if quality.auc is not None:
        table.add_row("AUC, log loss of the answers", f"{quality.auc:.3f}, {quality.log_loss:.4f}")
    table.add_row("largest difference", f"{result.largest_difference:.2g} (limit {limit:.0e} with {state_dtype} state)")
    OUT.print(table)
    if result.largest_difference <= limit:
        OUT.print("[bold green]every answer equals the offline model's[/bold green]")
    elif result.worst is not None:
        session_id, length = result.worst
        ERR.print(f"error: session {session_id} differs most, after {length} events", style="bold red", markup=False)


def _optimum(posterior: Path, test: Predictions) -> NDArray[np.float64]:
    """Return the exact posterior of each test prefix.

    Raises:
        TrainingError: the file does not hold each of them.
    """
    asked = pl.DataFrame(
        {"session_id": test.session_id[test.session_index], "prefix_length": test.prefix_length},
        schema_overrides={"session_id": pl.String, "prefix_length": pl.Int64},
    )
    try:
        truth = pl.read_parquet(posterior).with_columns(pl.col("prefix_length").cast(pl.Int64))
        joined = asked.join(truth, on=["session_id", "prefix_length"], how="left", maintain_order="left")
        probability = joined["probability"]
    except (OSError, pl.exceptions.PolarsError) as exc:
        raise TrainingError(f"{posterior}: not a posterior that `willbuy synthesize` wrote ({exc})") from exc
    if probability.null_count():
        raise TrainingError(f"{posterior}: is not of this log, {probability.null_count()} test prefixes are not in it")
    return probability.to_numpy()


def _report(result: TrainResult, dataset: PreparedDataset, out: Path, optimum: NDArray[np.float64] | None) -> Report:
    described = dataset.to_dict()
    counts = {name: value for name, value in described["counts"].items() if name != "rejected" and value}
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
        epochs=result.fit.epochs,
        optimum=optimum,
        warnings=result.warnings,
    )


def _flat(result: TrainResult) -> dict[str, Any]:
    sizes = result.model.sizes
    facts: dict[str, Any] = {
        "LSTM": f"{sizes.layers} x {sizes.hidden_size}",
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
