"""The content of a report: scores of every model, differences and warnings; and how scores are formatted."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from training.config import Assumptions
from training.data.leaks import RankedInput
from training.evaluation.alarms import Earliness, ProfitCurve
from training.evaluation.curves import RankingCurves
from training.evaluation.evaluate import Row
from training.evaluation.ladder import Rung, Step
from training.evaluation.metrics import ReliabilityPoint, ScoreRow, Scores
from training.evaluation.prefixes import LAST, PER_SESSION, POOLED
from training.evaluation.resampling import Estimate
from training.fit.checkpoint import Epoch
from training.fit.importance import Importance

NONE: Final = "–"  # noqa: RUF001 - an en dash, as tables have it
_MINUS: Final = "\u2212"


@dataclass(frozen=True, slots=True)
class Metric:
    """How a score is shown; `field` is its name in `training.evaluation.metrics.Scores`."""

    field: str
    name: str
    higher_is_better: bool
    digits: int
    meaning: str

    def text(self, found: Estimate) -> str:
        """Return the value as shown; a dash where it is undefined."""
        return number(found.value, self.digits)

    def interval(self, found: Estimate) -> str:
        """Return the 95 % interval as shown; empty where there is none."""
        return interval(found, self.digits)

    def best(self, row: Sequence[Estimate]) -> list[bool]:
        """Return which of the models' values are the best of the row, at the shown precision."""
        shown = [None if found.value is None else round(found.value, self.digits) for found in row]
        known = [value for value in shown if value is not None]
        if len(row) < 2 or not known:  # noqa: PLR2004 - nothing to compare with
            return [False] * len(row)
        best = max(known) if self.higher_is_better else min(known)
        return [value == best for value in shown]

    def verdict(self, difference: Estimate) -> str:
        """Return `better`, `worse` or `same` from the interval of a difference."""
        if difference.low is None or difference.high is None or difference.low <= 0.0 <= difference.high:
            return "same"
        return "better" if (difference.low > 0.0) == self.higher_is_better else "worse"


METRICS: Final = (
    Metric("auc", "AUC", True, 3, "chance that a buyer is ranked above a non-buyer; 0.5 is guessing"),
    Metric("average_precision", "Average precision", True, 3, "over all thresholds; guessing gives the base rate"),
    Metric("log_loss", "Log loss", False, 4, "surprise at what happened, in nats; punishes confident mistakes"),
    Metric(
        "log_loss_skill", "Skill", True, 3, "share of the loss of saying the base rate at that position that is gone"
    ),
    Metric("brier", "Brier score", False, 4, "mean squared error of the probability"),
    Metric("calibration_error", "Calibration error", False, 4, "mean distance of predicted and observed share"),
    Metric("lift", "Lift in the top decile", True, 2, "how many times as often the top 10 % bought as all did"),
)


def metric(field: str) -> Metric:
    """Return the metric of that field."""
    return next(found for found in METRICS if found.field == field)


def number(value: float | None, digits: int, *, sign: bool = False) -> str:
    """Return a number as shown; a dash where there is none."""
    if value is None:
        return NONE
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", _MINUS)


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as a percentage; a dash where there is none."""
    return NONE if value is None else f"{value:.{digits}%}"


def interval(found: Estimate, digits: int, *, sign: bool = False) -> str:
    """Return an interval as shown; empty where there is none."""
    if found.low is None or found.high is None:
        return ""
    return f"{number(found.low, digits, sign=sign)} to {number(found.high, digits, sign=sign)}"


def row_facts(row: Row) -> tuple[str, str, str]:
    """Return a row's name, number of prefixes and share of buyers, as shown."""
    return row.name, f"{row.count:,}", percent(row.base_rate.value)


OPTIMUM: Final = "best possible"
"""Name of the exact posterior of synthetic data."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of probabilities between consecutive `edges`, apart for prefixes of buyers and of others."""

    edges: list[float]
    bought: list[int]
    left: list[int]


@dataclass(frozen=True, slots=True)
class Report:
    """All content of a report. The first of `names` is the subject; the others are compared with it.

    Attributes:
        title: the report's heading.
        created: when it was made.
        sessions: sessions that were predicted.
        buyers: how many of them ended in a purchase.
        dataset: facts of the data, name to value; nested mappings are shown flat.
        settings: facts of the run likewise: settings, seconds, device.
        names: of the models, without the best possible answer.
        rows: every model's scores in every population; where the data are synthetic, `OPTIMUM`'s too.
        resamples: of the intervals.
        reliability: points of the reliability diagram by model, over all prefixes.
        reliability_by_length: of the subject, by prefix length.
        ranking: ROC and precision-recall curve of each model, and of `OPTIMUM`, over all prefixes; None with one class.
        histogram: spread of the subject's probabilities.
        earliness: by rule, by model.
        assumptions: of earliness and profit.
        profit: by model.
        rungs: which of the models are rungs of the ladder.
        ladder: the gain by memory, gates and aggregates, where models differ in just one of them.
        model_card: of the subject.
        epochs: of the training; may be empty.
        inputs_alone: how well each input alone ranks buyers, the best first; may be empty.
        importance: what the subject loses without a group of inputs, the largest first; may be empty.
        warnings: reasons to doubt the numbers, the worst first.
        notes: how the numbers were computed.
    """

    title: str
    created: datetime
    sessions: int
    buyers: int
    dataset: dict[str, Any]
    settings: dict[str, Any]
    names: list[str]
    rows: list[Row]
    resamples: int
    reliability: dict[str, list[ReliabilityPoint]]
    reliability_by_length: dict[int, list[ReliabilityPoint]]
    ranking: dict[str, RankingCurves | None]
    histogram: Histogram
    earliness: dict[str, dict[str, Earliness]]
    assumptions: Assumptions
    profit: dict[str, ProfitCurve]
    rungs: dict[str, Rung] = field(default_factory=dict)
    ladder: list[Step] = field(default_factory=list)
    model_card: dict[str, Any] = field(default_factory=dict)
    epochs: list[Epoch] = field(default_factory=list)
    inputs_alone: list[RankedInput] = field(default_factory=list)
    importance: list[Importance] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def subject(self) -> str:
        """Name of the model that the report is about."""
        return self.names[0]

    @property
    def has_optimum(self) -> bool:
        """Whether the best possible predictions are known."""
        return OPTIMUM in self.pooled.scores

    @property
    def by_length(self) -> list[Row]:
        """The rows of one prefix length each."""
        return [row for row in self.rows if row.kind == "length"]

    @property
    def pooled(self) -> Row:
        """The row of all prefixes."""
        return self.row(POOLED)

    @property
    def main_rows(self) -> list[Row]:
        """Rows by length, then all prefixes, each session weighing the same, and the last event of each session."""
        return [*self.by_length, self.pooled, self.row(PER_SESSION), self.row(LAST)]

    @property
    def slices(self) -> dict[str, list[Row]]:
        """Rows of the slices, by heading."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.kind == "slice":
                found.setdefault(row.heading, []).append(row)
        return found

    @property
    def models(self) -> dict[str, list[ScoreRow]]:
        """Scores without intervals by model: by prefix length, then pooled."""
        return {name: self._score_rows(name) for name in self.names}

    @property
    def optimum(self) -> list[ScoreRow] | None:
        """Scores without intervals of the best possible predictions, where they are known."""
        return self._score_rows(OPTIMUM) if self.has_optimum else None

    @property
    def differences(self) -> dict[str, Estimate]:
        """Log loss of the subject minus that of each other model, over all prefixes."""
        return {name: self.pooled.differences[name]["log_loss"] for name in self.names[1:]}

    def row(self, name: str) -> Row:
        """Return the row of that name that is no slice."""
        return next(row for row in self.rows if row.name == name and row.kind != "slice")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {
            **asdict(self),
            "created": self.created.isoformat(),
            "models": {name: [asdict(row) for row in rows] for name, rows in self.models.items()},
            "differences": {name: asdict(found) for name, found in self.differences.items()},
        }

    def _score_rows(self, name: str) -> list[ScoreRow]:
        return [
            ScoreRow(
                row.prefix_length,
                Scores(row.count, row.base_rate.value, **{score: e.value for score, e in row.scores[name].items()}),
            )
            for row in [*self.by_length, self.pooled]
        ]


def write_json(path: Path, report: Report) -> None:
    """Write the report as JSON: see `Report.to_dict`; times in RFC 3339, undefined values as null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(report.to_dict(), indent=2, allow_nan=False, ensure_ascii=False, default=str) + "\n",
        encoding="utf-8",
    )
