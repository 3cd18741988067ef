"""What a report says: scores of every model, how they compare, and what a reader must be warned of."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.checkpoint import Epoch
from training.metrics import (
    PairedDifference,
    ReliabilityPoint,
    ScoreRow,
    by_prefix_length,
    log_losses,
    paired_bootstrap,
    reliability,
)

FEW_BUYERS: Final = 300
"""With fewer buyers a report warns: an AUC's 95 % interval may then be wider than about 0.03 to either side."""

_HISTOGRAM_BINS: Final = 40


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of probabilities between consecutive `edges`, apart for prefixes of buyers and of others."""

    edges: list[float]
    bought: list[int]
    left: list[int]


@dataclass(frozen=True, slots=True)
class Report:
    """All that a report shows. The first of `models` is its subject; the others are what it is compared with.

    Attributes:
        title: the report's heading.
        created: when it was made.
        sessions: sessions that were predicted.
        buyers: how many of them ended in a purchase.
        dataset: facts of the data, name to value; nested mappings are shown flat.
        settings: facts of the run likewise: settings, seconds, device.
        models: rows by prefix length, the last one pooled, by model.
        optimum: the same of the exact posterior, where it is known; None otherwise.
        differences: log loss of the subject minus that of each other model, over all prefixes.
        reliability: points of the reliability diagram by model, over all prefixes.
        histogram: spread of the subject's probabilities.
        epochs: what training came to; may be empty.
        warnings: what a reader must know before believing the numbers.
    """

    title: str
    created: datetime
    sessions: int
    buyers: int
    dataset: dict[str, Any]
    settings: dict[str, Any]
    models: dict[str, list[ScoreRow]]
    optimum: list[ScoreRow] | None
    differences: dict[str, PairedDifference]
    reliability: dict[str, list[ReliabilityPoint]]
    histogram: Histogram
    epochs: list[Epoch] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def subject(self) -> str:
        """Name of the model that the report is about."""
        return next(iter(self.models))


def build_report(
    predictions: Mapping[str, ArrayLike],
    outcome: ArrayLike,
    prefix_length: ArrayLike,
    session_index: ArrayLike,
    *,
    title: str,
    dataset: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    epochs: Sequence[Epoch] = (),
    optimum: ArrayLike | None = None,
    warnings: Sequence[str] = (),
    created: datetime | None = None,
    resamples: int = 2_000,
) -> Report:
    """Return the report on predictions of N prefixes.

    Args:
        predictions: (N,) probabilities by model, the subject first.
        outcome: (N,) 1 where the prefix's session ended in a purchase, 0 elsewhere.
        prefix_length: (N,) number of events of each prefix.
        session_index: (N,) equal for prefixes of one session.
        title: the report's heading.
        dataset: facts of the data.
        settings: facts of the run.
        epochs: what training came to.
        optimum: (N,) exact posterior of the same prefixes, for synthetic data.
        warnings: shown first; one on too few buyers is added here.
        created: now by default.
        resamples: of the bootstrap that compares the models.

    Raises:
        ValueError: no model, no prefix, or arrays that do not fit together; the message names which.
    """
    if not predictions:
        raise ValueError("predictions: at least one model is needed")
    bought, session = np.asarray(outcome, dtype=np.float64), np.asarray(session_index)
    if not len(bought):
        raise ValueError("outcome: at least one prefix is needed")
    names = list(predictions)
    models = {name: by_prefix_length(prefix_length, bought, predictions[name]) for name in names}
    losses = {name: log_losses(bought, predictions[name]) for name in names}
    differences = {name: paired_bootstrap(session, losses[names[0]], losses[name], resamples) for name in names[1:]}
    sessions, first = np.unique(session, return_index=True)
    buyers = int(bought[first].sum())
    return Report(
        title=title,
        created=created or datetime.now(UTC),
        sessions=len(sessions),
        buyers=buyers,
        dataset=dict(dataset or {}),
        settings=dict(settings or {}),
        models=models,
        optimum=None if optimum is None else by_prefix_length(prefix_length, bought, optimum),
        differences={name: found for name, found in differences.items() if found is not None},
        reliability={name: reliability(bought, predictions[name]) for name in names},
        histogram=_histogram(bought, np.asarray(predictions[names[0]], dtype=np.float64)),
        epochs=list(epochs),
        warnings=[*warnings, *_few_buyers(len(sessions), buyers)],
    )


def write_json(path: Path, report: Report) -> None:
    """Write the report as JSON: the fields of `Report`, the moment in RFC 3339, what is undefined as null."""
    content = {**asdict(report), "created": report.created.isoformat()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False, default=str) + "\n", encoding="utf-8"
    )


def _few_buyers(sessions: int, buyers: int) -> Iterator[str]:
    if buyers < FEW_BUYERS:
        yield (
            f"Only {buyers:,} of {sessions:,} sessions ended in a purchase. That is too few to claim quality: "
            "look at the intervals, not at the digits."
        )


def _histogram(bought: NDArray[np.float64], probability: NDArray[np.float64]) -> Histogram:
    # Purchases are rare: over [0, 1] nearly all probabilities would share a bin or two.
    top = float(min(1.0, max(1.05 * probability.max(), 0.01)))
    edges = np.linspace(0.0, top, _HISTOGRAM_BINS + 1)
    counts = [np.histogram(probability[bought == group], edges)[0].tolist() for group in (1.0, 0.0)]
    return Histogram(edges.tolist(), *counts)
