"""`willbuy evaluate ARTIFACT DATA`: what a model is worth on sessions that it has not seen, beside baselines."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from model.columns import fingerprint
from training.baselines import fit_baselines
from training.commands.console import ERR, OUT, stage, tell
from training.commands.evaluate_request import EvaluateError, EvaluateRequest, check_fits, dataset_of, models_of
from training.data.dataset import Columns
from training.data.encoded import encode
from training.data.prepared import PreparedDataset, read_prepared
from training.evaluation.ladder import Rung
from training.evaluation.reading import Asked, ask, posterior_of, read_sessions
from training.evaluation.selection import Selection, select
from training.evaluation.slices import slices_of
from training.fit.warm_start import Start
from training.report import Report, build_report, console_table, write_html, write_json
from training.report.model_card import model_card


def run_evaluate(request: EvaluateRequest) -> Report:
    """Judge the artifact, write HTML and JSON, and print the table.

    Raises:
        EVALUATE_ERRORS: what a user did or can mend; the message says which and how.
    """
    html = request.out or request.artifact.with_name(f"{request.artifact.stem}.evaluation.html")
    if html.is_dir():
        raise EvaluateError(f"{html}: is a folder; name the file to write")
    torch.set_num_threads(request.threads)
    models = models_of(request)
    subject = next(iter(models.values()))
    with tempfile.TemporaryDirectory(prefix="willbuy-") as temporary:
        dataset = dataset_of(request, Path(temporary) / "prepared", subject)
        elsewhere = None if request.baseline_data is None else read_prepared(request.baseline_data)
        for name, start in models.items():
            check_fits(name, start, dataset)
        if elsewhere is not None:
            check_fits(str(elsewhere.path), subject, elsewhere)
        manifests = {name: start.manifest for name, start in models.items()}
        selection = select(dataset, manifests, replace(request.wanted, seed=request.seed), elsewhere)
        asked = _ask(models, dataset, selection)
        first = next(iter(asked.values()))
        columns = first.encoded.columns
        index, prefix_length = columns.session_index().numpy(), columns.prefix_length().numpy()
        optimum = None
        if request.posterior is not None:
            optimum = posterior_of(request.posterior, columns.session_id[index], prefix_length)
        known, told = _known_items(subject, dataset, selection)
        predictions = {name: one.probability for name, one in asked.items()}
        baselines, notes = _baselines(request, subject, elsewhere or dataset, selection, first)
        clash = sorted(baselines.keys() & predictions.keys())
        if clash:
            raise EvaluateError(f"--beside: {clash[0]!r} is the name of a baseline; choose another")
    with stage("resampling sessions", request.resamples) as show:
        report = build_report(
            predictions | baselines,
            columns.outcome.numpy()[index],
            prefix_length,
            index,
            title=f"{request.artifact.stem} on {request.data.name or request.data}",
            slices=slices_of(columns, known),
            dataset=_facts_of_data(request, dataset),
            settings=_facts_of_run(request, models),
            assumptions=request.assumptions,
            rungs={name: _rung(start) for name, start in models.items()},
            optimum=optimum,
            warnings=selection.warnings,
            notes=[*selection.notes, *told, *notes],
            resamples=request.resamples,
            seed=request.seed,
            progress=show,
        )
    report = replace(report, model_card=subject.manifest.model_card or model_card(subject.manifest, report))
    write_html(html, report)
    write_json(html.with_suffix(".json"), report)
    _print(report, html)
    return report


def _ask(models: Mapping[str, Start], dataset: PreparedDataset, selection: Selection) -> dict[str, Asked]:
    asked = {}
    with stage("asking the models", len(models) * len(selection.judged)) as show:
        done = 0

        def progress(sessions: int) -> None:
            nonlocal done
            done += sessions
            show(done)

        for name, start in models.items():
            asked[name] = ask(start.model, dataset.shards, selection.judged, progress)
    return asked


def _known_items(
    subject: Start, dataset: PreparedDataset, selection: Selection
) -> tuple[list[str] | NDArray[np.int64], list[str]]:
    """Return the items that count as known, and how that was told."""
    if selection.own is not None:
        shown = dataset.scan().filter(pl.col("session_id").is_in(list(selection.own))).select("item_id").unique()
        items = shown.collect(engine="streaming")["item_id"].drop_nulls()
        told = "An item is unseen that no training session of the model shows."
        return np.array([fingerprint(item) for item in items], dtype=np.int64), [told] if len(items) else []
    items_by_name = subject.manifest.items
    told = (
        "An item counts as unseen that the model does not know by name: the artifact has the names of frequent items "
        "only, and its training sessions are not at hand."
    )
    return items_by_name, [told] if items_by_name else []


def _baselines(
    request: EvaluateRequest, subject: Start, source: PreparedDataset, selection: Selection, judged: Asked
) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    if selection.training is None:
        return {}, []
    encoder = subject.model.encoder

    def columns(ids: frozenset[str]) -> Columns:
        return read_sessions(source.shards, encoder.properties, ids)

    training, validation = (encode(encoder, columns(ids)) for ids in (selection.training, selection.validation))
    fitted = 0
    with stage("fitting baselines", 1) as show:

        def progress(name: str) -> None:
            nonlocal fitted
            show(0, name)
            fitted += 1

        found = fit_baselines(
            encoder,
            training,
            validation,
            judged.encoded,
            seed=request.seed,
            threads=request.threads,
            progress=progress,
        )
        show(1, f"{fitted} fitted")
    return found.predictions, found.notes


def _rung(start: Start) -> Rung:
    sizes = start.model.sizes
    return Rung(sizes.cell, sizes.aggregates)


def _facts_of_data(request: EvaluateRequest, dataset: PreparedDataset) -> dict[str, Any]:
    described = dataset.to_dict()
    counts = {name: value for name, value in described["counts"].items() if name != "rejected" and value}
    return {
        "data": str(request.data),
        "format": described["source_format"],
        "times": described["clock"],
        **counts,
        "properties": ", ".join(f"{p.name} ({p.kind})" for p in dataset.properties) or "none",
    }


def _facts_of_run(request: EvaluateRequest, models: Mapping[str, Start]) -> dict[str, Any]:
    return {
        "models": {name: start.manifest.fingerprint for name, start in models.items()},
        "base rate": "as trained" if request.base_rate is None else request.base_rate,
        "resamples": request.resamples,
        "seed": request.seed,
    }


def _print(report: Report, html: Path) -> None:
    OUT.print(console_table(report))
    for warning in report.warnings:
        ERR.print(f"note: {warning}", style="yellow", markup=False, soft_wrap=True)
    for note in report.notes:
        tell(note, style="dim")
    tell(f"report    {html}")
    tell(f"as JSON   {html.with_suffix('.json')}")
