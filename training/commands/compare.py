"""`willbuy compare A B DATA`: two artifacts on the same unseen sessions, to decide on a release."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from model.artifact import ArtifactError, Manifest
from training.commands.console import ERR, OUT, print_line
from training.commands.prepare import PREPARE_ERRORS, column_mapping, prepared_sessions
from training.commands.stages import prepare_progress, stage
from training.config import CompareSettings
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.data.provenance import Unseen, cuts_of, unseen_sessions
from training.evaluation.comparison import Comparison, Scored, compare
from training.evaluation.prefixes import prefixes_of
from training.evaluation.resampling import Estimate
from training.fit.prediction import predict_sessions
from training.fit.warm_start import WarmStartError, check_properties, read_start


class CompareError(ValueError):
    """The artifacts cannot be compared on this data; the message has the reason."""


ALL_COMPARED: Final = "all sessions are compared, seen in training or not"
COMPARE_ERRORS: Final = (*PREPARE_ERRORS, ArtifactError, CompareError, WarmStartError, OSError)


def run_compare(a_path: Path, b_path: Path, data: Path, settings: CompareSettings) -> Comparison:
    """Compare two artifacts and print the result.

    Args:
        a_path: the current artifact.
        b_path: the artifact that may replace it.
        data: prepared sessions, or a log.
        settings: of the comparison.

    Raises:
        COMPARE_ERRORS: an error that the user can fix; the message says how.
    """
    a, b = read_start(a_path), read_start(b_path)
    with prepared_sessions(data, partial(_prepared, data, settings, b.manifest)) as dataset:
        for path, start in ((a_path, a), (b_path, b)):
            try:
                check_properties(start.manifest, dataset)
            except WarmStartError as exc:
                raise CompareError(f"{path}: {exc}") from exc
        # Equal file names would not distinguish the two.
        names = ("A", "B") if a_path.name == b_path.name else (a_path.name, b_path.name)
        unseen = unseen_sessions(dataset, dict(zip(names, (a.manifest, b.manifest), strict=True)))
        chosen = _chosen(data, dataset, unseen, settings)
        with stage("predicting", 2) as show:
            of_a, of_b = (predict_sessions(start.model, dataset.shards, chosen) for start in (a, b))
            show(2)
    columns = of_a.encoded.columns
    session = columns.session_index().numpy()
    with stage("resampling sessions", settings.resamples) as show:
        comparison = compare(
            prefixes_of(columns.outcome.numpy()[session], columns.prefix_length().numpy(), session),
            of_a.probability,
            of_b.probability,
            resamples=settings.resamples,
            seed=settings.seed,
            progress=show,
        )
    document: dict[str, Any] = {
        "a": {"file": str(a_path), "fingerprint": a.manifest.fingerprint},
        "b": {"file": str(b_path), "fingerprint": b.manifest.fingerprint},
        "data": str(data),
        "unseen": {
            "known": unseen.known and not settings.all_sessions,
            "told": ALL_COMPARED if settings.all_sessions else unseen.note,
        },
        "resamples": settings.resamples,
        "seed": settings.seed,
        **comparison.to_dict(),
    }
    if settings.as_json:
        OUT.file.write(json.dumps(document, indent=2) + "\n")
        return comparison
    for name, path, start in (("A", a_path, a), ("B", b_path, b)):
        print_line(f"{name}  {path} (model {start.manifest.fingerprint}, {start.manifest.created})")
    buyers = comparison.pooled.buyers
    print_line(f"   {comparison.sessions:,} sessions, {buyers:,} prefixes of buyers; {document['unseen']['told']}")
    if not unseen.known and not settings.all_sessions:
        ERR.print("note: a model does better on sessions that it was trained on than on new ones", style="yellow")
    _print(comparison)
    return comparison


def _prepared(data: Path, settings: CompareSettings, manifest: Manifest, folder: Path) -> PreparedDataset:
    mapping = column_mapping(settings.log)
    with prepare_progress() as progress:
        return prepare(
            data, folder, format=settings.log.format, mapping=mapping, progress=progress, **cuts_of(manifest)
        )


def _chosen(data: Path, dataset: PreparedDataset, unseen: Unseen, settings: CompareSettings) -> list[str]:
    """Return the ids of the sessions to compare on: unseen ones, or a random sample of them."""
    ids = dataset.sessions()["session_id"].sort()
    if unseen.session_ids is not None and not settings.all_sessions:
        ids = ids.filter(ids.is_in(list(unseen.session_ids)))
        if not len(ids):
            raise CompareError(
                f"{data}: one model or the other was trained on every session; give newer data, or "
                "--all-sessions to compare all the same"
            )
    if not len(ids):
        raise CompareError(f"{data}: holds no session")
    return ids.sample(min(len(ids), settings.most_sessions), shuffle=True, seed=settings.seed).to_list()


def _print(comparison: Comparison) -> None:
    for title, name, digits in (("log loss, nats", "log_loss", 4), ("AUC", "auc", 3)):
        _print_score(comparison, title, name, digits, interval=True)
    _print_score(comparison, "calibration error", "calibration_error", 4, interval=False)
    style = {"better": "bold green", "worse": "bold red", "mixed": "bold red"}.get(comparison.verdict, "bold")
    print_line(comparison.words, style=style)


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
