"""What memory, gates and aggregates bring: every rung from a feed-forward network on the current event to the default.

    python -m benchmarks.ladder SESSIONS --out rungs                 # all eight, and a report
    python -m benchmarks.ladder SESSIONS --out rungs --only lstm --only feed-forward --set fit.epochs=3

Each rung is a run of `willbuy train` with its own `--cell` and `--aggregates` or `--no-aggregates`. All other settings
and the split are equal, so that a difference between two rungs is due to cell or aggregates.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from model.artifact import Manifest, read_manifest
from training.commands.console import OUT, errors_for_people, print_line
from training.commands.evaluate import EVALUATE_ERRORS, run_evaluate
from training.commands.prepare import prepared_sessions, run_prepare
from training.commands.train import TRAIN_ERRORS, run_training
from training.config import EvaluateSettings, RunConfig, SelectionSettings, TrainSettings
from training.config_file import ConfigError, read_config
from training.evaluation.ladder import CELLS, Rung
from training.fit.train import WILLBUY

_SUMMARY: Final = "ladder.json"
_REPORT: Final = "ladder.report.html"
_POOLED: Final = "all"
_SHOWN: Final = (("log_loss", "log loss", 4), ("auc", "AUC", 3))


RUNGS: Final = tuple(Rung(cell, aggregates) for aggregates in (False, True) for cell in CELLS)


def name_of(rung: Rung) -> str:
    """Return the rung's name in tables, which is its artifact's without the suffix."""
    return rung.cell if rung.aggregates else f"{rung.cell}-no-aggregates"


def rungs_of(names: Sequence[str]) -> tuple[Rung, ...]:
    """Return the rungs of these names from the lowest up; all of them where there is no name.

    Raises:
        ConfigError: there is no such rung.
    """
    known = [name_of(rung) for rung in RUNGS]
    for name in names:
        if name not in known:
            raise ConfigError(f"--only: expected one of {', '.join(known)}, not {name!r}")
    return tuple(rung for rung in RUNGS if not names or name_of(rung) in names)


def run_ladder(
    data: Path,
    folder: Path,
    config: RunConfig,
    *,
    resume: bool = False,
    posterior: Path | None = None,
    rungs: Sequence[Rung] = RUNGS,
    report: bool = True,
) -> dict[str, Manifest]:
    """Train every rung, print their scores by prefix length, and evaluate them together on the test part.

    `folder` gets the artifacts (`lstm.pt`, `lstm-no-aggregates.pt` and so on) with the files that `willbuy train`
    writes beside an artifact, `ladder.json` with the figures of the tables, and the evaluation as `ladder.report.html`
    and `.json`.

    Args:
        data: prepared sessions, or a log in a known format.
        folder: made if it is not there.
        config: of every rung; cell, aggregates and LightGBM are set here.
        resume: keep the rungs that are there, and continue an interrupted one from its checkpoint.
        posterior: exact posterior of a synthetic log.
        rungs: which ones, from the lowest up.
        report: whether to write the evaluation, with intervals for each step of the ladder.

    Returns:
        Each rung's manifest by the rung's name.

    Raises:
        ConfigError: an artifact to keep was trained with other settings.
        training.commands.train.TRAIN_ERRORS: as `willbuy train`.
        training.commands.evaluate.EVALUATE_ERRORS: as `willbuy evaluate`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifests: dict[str, Manifest] = {}
    prepare_into = partial(run_prepare, data, log=config.log, keep_rejected=folder / "rejected.csv")
    with prepared_sessions(data, prepare_into) as dataset:
        config = config.for_sessions(dataset.counts.sessions.sessions)
        for number, rung in enumerate(rungs, 1):
            name = name_of(rung)
            out = folder / f"{name}.pt"
            sizes = replace(config.train.sizes, cell=rung.cell, aggregates=rung.aggregates)
            settings = replace(config.train, sizes=sizes, lightgbm=False)
            OUT.rule(f"{number} of {len(rungs)}: {name}", style="dim")
            if resume and out.is_file():
                manifests[name] = _kept(out, settings)
                continue
            manifests[name] = run_training(
                dataset,
                settings,
                out,
                device=config.compute.device,
                threads=config.compute.threads,
                resume=resume,
                posterior=posterior,
                log=config.log,
            )
        if report:
            top, *others = reversed(manifests)
            run_evaluate(
                folder / f"{top}.pt",
                dataset.path,
                EvaluateSettings(
                    out=folder / _REPORT,
                    beside=tuple(f"{name}={folder / name}.pt" for name in others),
                    posterior=posterior,
                    selection=SelectionSettings(baselines=False),
                    threads=config.compute.threads,
                ),
            )
    _write_summary(folder / _SUMMARY, manifests)
    for key, title, digits in _SHOWN:
        OUT.print(_table(manifests, key, title, digits))
    print_line(f"figures   {folder / _SUMMARY}")
    return manifests


def _kept(out: Path, settings: TrainSettings) -> Manifest:
    """Return the manifest of an existing rung; refuse one with other settings."""
    manifest = read_manifest(out)
    asked: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    differing = [name for name, value in asked.items() if manifest.training.get(name) != value]
    if differing:
        raise ConfigError(
            f"{out}: was trained with other settings ({', '.join(differing)}); train the ladder without --resume, or "
            "into another folder"
        )
    print_line(f"kept      {out}")
    return manifest


def _rows(manifest: Manifest) -> dict[str, Mapping[str, Any]]:
    """Return the network's scores on the test part by prefix length, from the manifest."""
    rows = manifest.metrics["models"][WILLBUY]
    return {_POOLED if row["prefix_length"] is None else str(row["prefix_length"]): row["scores"] for row in rows}


def _table(manifests: Mapping[str, Manifest], key: str, title: str, digits: int) -> Table:
    """Return one row a rung, narrow enough for 80 columns."""
    table = Table(title=f"{title} by number of events", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for length in _rows(next(iter(manifests.values()))):
        table.add_column(length, justify="right", no_wrap=True)
    for aggregates, heading in ((False, "no aggregates"), (True, "aggregates")):
        chosen = [manifest for manifest in manifests.values() if manifest.sizes["aggregates"] is aggregates]
        if chosen:
            table.add_row(heading, style="dim")
        for manifest in chosen:
            values = [row[key] for row in _rows(manifest).values()]
            figures = ["–" if value is None else f"{value:.{digits}f}" for value in values]  # noqa: RUF001 - an en dash
            table.add_row(manifest.sizes["cell"], *figures)
    return table


def _write_summary(path: Path, manifests: Mapping[str, Manifest]) -> None:
    summary = {
        name: {
            "fingerprint": manifest.fingerprint,
            "cell": manifest.sizes["cell"],
            "aggregates": manifest.sizes["aggregates"],
            "seconds": manifest.training["seconds"],
            "scores": _rows(manifest),
        }
        for name, manifest in manifests.items()
    }
    path.write_text(json.dumps(summary, indent=1) + "\n", "utf-8")


def main(
    data: Annotated[Path, typer.Argument(help="Prepared sessions, or a log in a known format.")],
    out: Annotated[Path, typer.Option(help="Folder for the artifacts.")],
    only: Annotated[list[str] | None, typer.Option(help="Only these, repeatable: lstm, gru-no-aggregates.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, order, dropout and split.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the models that are there.")] = False,
    posterior: Annotated[Path | None, typer.Option(help="Exact posterior of a synthetic log.")] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="Another setting, as in `willbuy train`.")
    ] = None,
) -> None:
    """Train the rungs, print their scores, and write a report that measures what memory and gates add."""
    with errors_for_people(*TRAIN_ERRORS, *EVALUATE_ERRORS):
        config = read_config(None, {"fit.seed": seed, "split_seed": seed}, assignments or [])
        run_ladder(data, out, config, resume=resume, posterior=posterior, rungs=rungs_of(only or []))


if __name__ == "__main__":
    typer.run(main)
