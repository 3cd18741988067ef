"""`willbuy compare A B DATA`: two artifacts on the same unseen sessions, for the one who decides on a release."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from rich.table import Table

from model.artifact import ArtifactError, Manifest
from training.commands.console import ERR, OUT, prepare_progress, stage, tell
from training.commands.prepare import PREPARE_ERRORS, LogOptions
from training.data.dataset import Columns, read_columns
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset, is_prepared, read_prepared
from training.data.provenance import Unseen, cuts_of, unseen_sessions
from training.evaluation.comparison import Comparison, Scored, compare
from training.evaluation.prefixes import prefixes_of
from training.evaluation.resampling import Estimate
from training.fit.loop import encode, logits
from training.fit.warm_start import Start, WarmStartError, check_properties, read_start


class CompareError(ValueError):
    """The artifacts cannot be compared on this data; the message says why."""


COMPARE_ERRORS: Final = (*PREPARE_ERRORS, ArtifactError, CompareError, WarmStartError, OSError)


@dataclass(frozen=True, slots=True)
class CompareRequest:
    """What a command line asks for.

    Attributes:
        a: the artifact that is there.
        b: the one that may follow it.
        data: prepared sessions, or a log.
        log_format: of a log.
        mapping: of a log's columns.
        all_sessions: compare on sessions that a model was trained on, too.
        most_sessions: a random sample of so many where there are more.
        resamples: of the bootstrap.
        seed: of sample and bootstrap.
        as_json: print JSON and nothing else.
    """

    a: Path
    b: Path
    data: Path
    log_format: str = "auto"
    mapping: Path | None = None
    all_sessions: bool = False
    most_sessions: int = 20_000
    resamples: int = 2_000
    seed: int = 0
    as_json: bool = False


@dataclass(frozen=True, slots=True)
class _Predicted:
    """What both models said of N prefixes of S sessions, and what became of them."""

    a: NDArray[np.float64]
    b: NDArray[np.float64]
    outcome: NDArray[np.float64]
    prefix_length: NDArray[np.int64]
    session: NDArray[np.int64]


def run_compare(request: CompareRequest) -> Comparison:
    """Compare, and print what came of it.

    Raises:
        COMPARE_ERRORS: what a user did or can mend; the message says which and how.
    """
    a, b = read_start(request.a), read_start(request.b)
    with tempfile.TemporaryDirectory(prefix="willbuy-") as temporary:
        dataset = _dataset(request, Path(temporary) / "prepared", b.manifest)
        for path, start in ((request.a, a), (request.b, b)):
            try:
                check_properties(start.manifest, dataset)
            except WarmStartError as exc:
                raise CompareError(f"{path}: {exc}") from exc
        # Of equal names, which is which would not be told.
        names = ("A", "B") if request.a.name == request.b.name else (request.a.name, request.b.name)
        unseen = unseen_sessions(dataset, dict(zip(names, (a.manifest, b.manifest), strict=True)))
        chosen = _chosen(dataset, unseen, request)
        predicted = _predict(a, b, dataset, chosen)
    with stage("resampling sessions", request.resamples) as show:
        comparison = compare(
            prefixes_of(predicted.outcome, predicted.prefix_length, predicted.session),
            predicted.a,
            predicted.b,
            resamples=request.resamples,
            seed=request.seed,
            progress=show,
        )
    told = "all sessions are compared, seen in training or not" if request.all_sessions else unseen.told
    if request.as_json:
        document = _document(request, a.manifest, b.manifest, comparison, told, known=unseen.known)
        OUT.file.write(json.dumps(document, indent=2) + "\n")
    else:
        _print(request, a.manifest, b.manifest, comparison, told, known=unseen.known)
    return comparison


def _dataset(request: CompareRequest, folder: Path, manifest: Manifest) -> PreparedDataset:
    if is_prepared(request.data):
        return read_prepared(request.data)
    options = LogOptions(format=request.log_format, mapping=request.mapping)
    with prepare_progress() as progress:
        return prepare(
            request.data,
            folder,
            format=options.format,
            mapping=options.column_mapping(),
            progress=progress,
            **cuts_of(manifest),
        )


def _chosen(dataset: PreparedDataset, unseen: Unseen, request: CompareRequest) -> pl.Series:
    """Return the ids of the sessions to compare on, in random order."""
    ids = dataset.sessions()["session_id"].sort()
    if unseen.session_ids is not None and not request.all_sessions:
        ids = ids.filter(ids.is_in(list(unseen.session_ids)))
        if not len(ids):
            raise CompareError(
                f"{request.data}: one model or the other was trained on every session; give newer data, or "
                "--all-sessions to compare all the same"
            )
    if not len(ids):
        raise CompareError(f"{request.data}: holds no session")
    return ids.sample(min(len(ids), request.most_sessions), shuffle=True, seed=request.seed)


def _predict(a: Start, b: Start, dataset: PreparedDataset, chosen: pl.Series) -> _Predicted:
    parts: list[_Predicted] = []
    sessions = 0
    with stage("predicting", len(chosen)) as show:
        for shard in dataset.shards:
            columns, of_a = _probabilities(a, shard, chosen)
            _, of_b = _probabilities(b, shard, chosen)
            index = columns.session_index().numpy()
            outcome = columns.outcome.numpy()[index].astype(np.float64)
            parts.append(_Predicted(of_a, of_b, outcome, columns.prefix_length().numpy(), index + sessions))
            sessions += len(columns.outcome)
            show(sessions)
    return _Predicted(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("a", "b", "outcome", "prefix_length", "session")
        )
    )


def _probabilities(start: Start, shard: Path, chosen: pl.Series) -> tuple[Columns, NDArray[np.float64]]:
    """Return a shard's chosen sessions and the model's probability after each of their events."""
    columns = read_columns([shard], start.manifest.properties)
    inside = pl.Series(columns.session_id, dtype=pl.String).is_in(chosen.to_list()).arg_true()
    columns = columns.select(torch.from_numpy(inside.to_numpy().astype(np.int64)))
    with torch.inference_mode():
        raw = logits(start.model, encode(start.model.encoder, columns))
        return columns, start.model.calibrated(raw).double().numpy()


def _document(
    request: CompareRequest, a: Manifest, b: Manifest, comparison: Comparison, told: str, *, known: bool
) -> dict[str, Any]:
    return {
        "a": {"file": str(request.a), "fingerprint": a.fingerprint},
        "b": {"file": str(request.b), "fingerprint": b.fingerprint},
        "data": str(request.data),
        "unseen": {"known": known and not request.all_sessions, "told": told},
        "resamples": request.resamples,
        "seed": request.seed,
        **comparison.to_dict(),
    }


def _print(
    request: CompareRequest, a: Manifest, b: Manifest, comparison: Comparison, told: str, *, known: bool
) -> None:
    tell(f"A  {request.a} (model {a.fingerprint}, {a.created})")
    tell(f"B  {request.b} (model {b.fingerprint}, {b.created})")
    tell(f"   {comparison.sessions:,} sessions, {comparison.pooled.buyers:,} prefixes of buyers; {told}")
    if not known and not request.all_sessions:
        ERR.print("note: a model does better on sessions that it was trained on than on new ones", style="yellow")
    for title, name, digits in (("log loss, nats", "log_loss", 4), ("AUC", "auc", 3)):
        _print_score(comparison, title, name, digits, interval=True)
    _print_score(comparison, "calibration error", "calibration_error", 4, interval=False)
    style = {"better": "bold green", "worse": "bold red", "mixed": "bold red"}.get(comparison.verdict, "bold")
    tell(comparison.words, style=style)


def _print_score(comparison: Comparison, title: str, name: str, digits: int, *, interval: bool) -> None:
    table = Table(title=title, title_justify="left")
    headings: Sequence[str] = ("events", "prefixes", "A", "B", "B - A")
    for heading in [*headings, *(["95 % interval"] if interval else [])]:
        table.add_column(heading, justify="right")
    for row in comparison.rows:
        scored: Scored = getattr(row, name)
        cells = [
            "all" if row.prefix_length is None else str(row.prefix_length),
            f"{row.prefixes:,}",
            _shown(scored.a, digits),
            _shown(scored.b, digits),
            _shown(scored.difference.value, digits, sign=True),
        ]
        table.add_row(*cells, *([_interval(scored.difference, digits)] if interval else []))
    OUT.print(table)


def _shown(value: float | None, digits: int, *, sign: bool = False) -> str:
    return "" if value is None else f"{value:{'+' if sign else ''}.{digits}f}"


def _interval(found: Estimate, digits: int) -> str:
    if found.low is None or found.high is None:
        return ""
    return f"{found.low:+.{digits}f} to {found.high:+.{digits}f}"
