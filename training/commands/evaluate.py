"""`willbuy evaluate ARTIFACT DATA`: a model's scores on sessions that it has not seen, beside baselines."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from model.artifact import ArtifactError, BaseRateUnknownError
from model.base_rate import logit_shift
from model.columns import fingerprint
from training.baselines import fit_baselines
from training.commands.console import print_line
from training.commands.prepare import PREPARE_ERRORS, prepared_sessions, run_prepare
from training.commands.scores import print_scores
from training.commands.stages import stage
from training.config import EvaluateSettings, LogSettings
from training.data.dataset import read_sessions
from training.data.encoded import Encoded, encode
from training.data.prepared import PreparedDataset, read_prepared
from training.data.provenance import cuts_of
from training.evaluation.ladder import Rung
from training.evaluation.posterior import PosteriorError, posterior_of
from training.evaluation.selection import Selection, SelectionError, select
from training.evaluation.slices import slices_of
from training.fit.importance import permutation_importance
from training.fit.prediction import PredictedSessions, predict_sessions
from training.fit.warm_start import Start, WarmStartError, check_properties, read_start
from training.report.build import build_report
from training.report.content import Report, write_json
from training.report.model_card import model_card
from training.report.page import write_html


class EvaluateError(ValueError):
    """The artifact cannot be evaluated on this data; the message has the reason."""


EVALUATE_ERRORS: Final = (
    *PREPARE_ERRORS, ArtifactError, EvaluateError, PosteriorError, SelectionError, WarmStartError, OSError
)  # fmt: skip


def run_evaluate(artifact: Path, data: Path, settings: EvaluateSettings) -> Report:
    """Evaluate the artifact, write HTML and JSON, and print the table.

    Args:
        artifact: the model.
        data: prepared sessions, or a log.
        settings: of the evaluation.

    Raises:
        EVALUATE_ERRORS: an error that the user can fix; the message says how.
    """
    html = settings.out or artifact.with_name(f"{artifact.stem}.evaluation.html")
    if html.is_dir():
        raise EvaluateError(f"{html}: is a folder; name the file to write")
    torch.set_num_threads(settings.threads)
    models = _models(artifact, settings)
    subject = next(iter(models.values()))
    log = LogSettings(settings.log.format, settings.log.mapping, **cuts_of(subject.manifest))
    with prepared_sessions(data, lambda folder: run_prepare(data, folder, log)) as dataset:
        elsewhere = None if settings.baseline_data is None else read_prepared(settings.baseline_data)
        for name, start in models.items():
            _check_fits(name, start, dataset)
        if elsewhere is not None:
            _check_fits(str(elsewhere.path), subject, elsewhere)
        manifests = {name: start.manifest for name, start in models.items()}
        selection = select(dataset, manifests, replace(settings.selection, seed=settings.seed), elsewhere)
        predicted = _predict(models, dataset, selection)
        encoded = next(iter(predicted.values())).encoded
        columns = encoded.columns
        index, prefix_length = columns.session_index().numpy(), columns.prefix_length().numpy()
        optimum = None
        if settings.posterior is not None:
            optimum = posterior_of(settings.posterior, columns.session_id[index], prefix_length)
        known, item_notes = _known_items(subject, dataset, selection)
        predictions = {name: one.probability for name, one in predicted.items()}
        baselines, notes = _baselines(settings, subject, elsewhere or dataset, selection, encoded)
        clash = sorted(baselines.keys() & predictions.keys())
        if clash:
            raise EvaluateError(f"--beside: {clash[0]!r} is the name of a baseline; choose another")
    with stage("exchanging inputs", 1) as show_group:
        importance = permutation_importance(
            subject.model,
            encoded,
            resamples=settings.resamples,
            seed=settings.seed,
            progress=lambda group: show_group(0, group),
        )
    with stage("resampling sessions", settings.resamples) as show:
        report = build_report(
            predictions | baselines,
            columns.outcome.numpy()[index],
            prefix_length,
            index,
            title=f"{artifact.stem} on {data.name or data}",
            slices=slices_of(columns, known),
            dataset={"data": str(data), **dataset.facts()},
            settings={
                "models": {name: start.manifest.fingerprint for name, start in models.items()},
                "base rate": "as trained" if settings.base_rate is None else settings.base_rate,
                "resamples": settings.resamples,
                "seed": settings.seed,
            },
            assumptions=settings.assumptions,
            rungs={name: Rung(start.model.sizes.cell, start.model.sizes.aggregates) for name, start in models.items()},
            importance=importance,
            optimum=optimum,
            warnings=selection.warnings,
            notes=[*selection.notes, *item_notes, *notes],
            resamples=settings.resamples,
            seed=settings.seed,
            progress=show,
        )
    report = replace(report, model_card=subject.manifest.model_card or model_card(subject.manifest, report))
    write_html(html, report)
    write_json(html.with_suffix(".json"), report)
    _print(report, html)
    return report


def _models(artifact: Path, settings: EvaluateSettings) -> dict[str, Start]:
    """Return the models by name, the subject first, all shifted to the base rate of the settings.

    Raises:
        EvaluateError: a name is given twice, or an option is not `NAME=ARTIFACT`.
        ArtifactError: a file cannot be used, or its base rate is unknown.
    """
    paths = {artifact.stem: artifact}
    for given in settings.beside:
        name, separator, path = given.partition("=")
        if not separator or not name or not path:
            raise EvaluateError(f"--beside: expected NAME=ARTIFACT, not {given!r}")
        if name in paths:
            raise EvaluateError(f"--beside: the name {name!r} is there twice")
        paths[name] = Path(path)
    models = {name: read_start(path) for name, path in paths.items()}
    if settings.base_rate is not None:
        for name, start in models.items():
            trained = start.manifest.base_rate
            if trained is None:
                raise BaseRateUnknownError(
                    f"--base-rate: {name} does not tell the base rate that it was trained at; train it anew"
                )
            start.model.bias.add_(logit_shift(trained, settings.base_rate))
    return models


def _check_fits(name: str, start: Start, dataset: PreparedDataset) -> None:
    """Refuse data without the properties that a model uses."""
    try:
        check_properties(start.manifest, dataset)
    except WarmStartError as exc:
        raise EvaluateError(f"{name}: {exc}") from exc


def _predict(
    models: Mapping[str, Start], dataset: PreparedDataset, selection: Selection
) -> dict[str, PredictedSessions]:
    predicted = {}
    with stage("predicting", len(models) * len(selection.judged)) as show:
        done = 0

        def progress(sessions: int) -> None:
            nonlocal done
            done += sessions
            show(done)

        for name, start in models.items():
            predicted[name] = predict_sessions(start.model, dataset.shards, selection.judged, progress)
    return predicted


def _known_items(
    subject: Start, dataset: PreparedDataset, selection: Selection
) -> tuple[list[str] | NDArray[np.int64], list[str]]:
    """Return the items that count as known, and a note on how they were determined."""
    if selection.own is not None:
        shown = dataset.scan().filter(pl.col("session_id").is_in(list(selection.own))).select("item_id").unique()
        items = shown.collect(engine="streaming")["item_id"].drop_nulls()
        note = "An item is unseen where no training session of the model shows it."
        return np.array([fingerprint(item) for item in items], dtype=np.int64), [note] if len(items) else []
    items_by_name = subject.manifest.items
    note = (
        "An item counts as unseen where the model does not know it by name: the artifact names frequent items only, "
        "and its training sessions are not available."
    )
    return items_by_name, [note] if items_by_name else []


def _baselines(
    settings: EvaluateSettings, subject: Start, source: PreparedDataset, selection: Selection, judged: Encoded
) -> tuple[dict[str, NDArray[np.float64]], list[str]]:
    if selection.training is None:
        return {}, []
    encoder = subject.model.encoder
    training, validation = (
        encode(encoder, read_sessions(source.shards, encoder.properties, ids))
        for ids in (selection.training, selection.validation)
    )
    fitted = 0
    with stage("fitting baselines", 1) as show:

        def progress(name: str) -> None:
            nonlocal fitted
            show(0, name)
            fitted += 1

        found = fit_baselines(
            encoder, training, validation, judged, seed=settings.seed, threads=settings.threads, progress=progress
        )
        show(1, f"{fitted} fitted")
    return found.predictions, found.notes


def _print(report: Report, html: Path) -> None:
    print_scores(report)
    for note in report.notes:
        print_line(note, style="dim")
    print_line(f"report    {html}")
    print_line(f"as JSON   {html.with_suffix('.json')}")
