"""How scores are put into words and digits, the same in the terminal and on the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from training.metrics import ScoreRow, Scores


@dataclass(frozen=True, slots=True)
class Metric:
    """How a field of `Scores` is shown."""

    field: str
    name: str
    higher_is_better: bool
    digits: int
    meaning: str

    def text(self, scores: Scores) -> str:
        """Return the value as shown; a dash where it is undefined."""
        value = getattr(scores, self.field)
        return "–" if value is None else f"{value:.{self.digits}f}"  # noqa: RUF001 - an en dash, as tables have it

    def best(self, row: Sequence[Scores]) -> list[bool]:
        """Return which of the models' scores are the best of the row, as far as the shown digits tell."""
        shown = [None if getattr(s, self.field) is None else float(self.text(s)) for s in row]
        known = [value for value in shown if value is not None]
        if len(row) < 2 or not known:  # noqa: PLR2004 - nothing to compare with
            return [False] * len(row)
        best = max(known) if self.higher_is_better else min(known)
        return [value == best for value in shown]


METRICS: Final = (
    Metric("auc", "AUC", True, 3, "chance that a buyer is ranked above a non-buyer; 0.5 is guessing"),
    Metric("average_precision", "Average precision", True, 3, "over all thresholds; guessing gives the base rate"),
    Metric("log_loss", "Log loss", False, 4, "surprise at what happened, in nats; punishes confident mistakes"),
    Metric("log_loss_skill", "Skill", True, 3, "share of the base-rate loss that is gone; 0 is no better"),
    Metric("brier", "Brier score", False, 4, "mean squared error of the probability"),
    Metric("calibration_error", "Calibration error", False, 4, "mean distance of predicted and observed share"),
)


def row_facts(row: ScoreRow) -> tuple[str, str, str]:
    """Return a row's prefix length, number of prefixes and share of buyers, as shown."""
    scores = row.scores
    share = "–" if scores.base_rate is None else f"{scores.base_rate:.1%}"  # noqa: RUF001 - an en dash
    return "all" if row.prefix_length is None else str(row.prefix_length), f"{scores.count:,}", share
