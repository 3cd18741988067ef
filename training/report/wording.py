"""How scores are put into words and digits, the same in the terminal and on the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from training.evaluation.evaluate import Row
from training.evaluation.resampling import Estimate

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
        """Return which of the models' values are the best of the row, as far as the shown digits tell."""
        shown = [None if found.value is None else round(found.value, self.digits) for found in row]
        known = [value for value in shown if value is not None]
        if len(row) < 2 or not known:  # noqa: PLR2004 - nothing to compare with
            return [False] * len(row)
        best = max(known) if self.higher_is_better else min(known)
        return [value == best for value in shown]

    def verdict(self, difference: Estimate) -> str:
        """Return `better`, `worse` or `same`, as far as the interval of a difference tells."""
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
