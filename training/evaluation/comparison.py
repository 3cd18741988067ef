"""Whether one model is better than another on the same prefixes: paired differences with intervals, and a verdict.

Both models are scored under the same bootstrap resamples of the sessions (`training.evaluation.resampling`), so that
the difficulty of sessions cancels. Differences are B minus A: a log loss below zero is in B's favour.

Pooled over all prefixes the verdict takes a 95 % interval of the log loss. At single prefix lengths it takes intervals
that hold for all lengths together (Bonferroni: Dunn, 1961), as one of eight would else exclude zero by luck too often.

Shape legend: N prefixes, R resamples.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.config import COMPARE_RESAMPLES
from training.evaluation.metrics import PREFIX_LENGTHS, checked, position_rates
from training.evaluation.prefixes import Prefixes
from training.evaluation.resampling import UNDEFINED, Estimate, estimate, once, resample
from training.evaluation.scoring import Scoring

_SCORES: Final = ("log_loss", "auc", "calibration_error")
_ERROR_RATE: Final = 0.05

Verdict = Literal["equal", "better", "undecided", "mixed", "worse"]
"""`mixed` is not worse over all prefixes, and worse at some length."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One score of both models."""

    a: float | None
    b: float | None
    difference: Estimate


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """Both models on the prefixes of one length, or on all of them where `prefix_length` is None.

    Attributes:
        prefix_length: number of events.
        prefixes: how many there are.
        buyers: how many of them are of sessions that ended in a purchase.
        log_loss, auc, calibration_error: of A, of B, and B minus A with its 95 % interval.
        told_apart: whether the log losses differ, by the interval that the verdict takes.
    """

    prefix_length: int | None
    prefixes: int
    buyers: int
    log_loss: Scored
    auc: Scored
    calibration_error: Scored
    told_apart: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """The result of a comparison; the last of `rows` is pooled over all prefixes."""

    rows: list[ComparedRow]
    verdict: Verdict
    words: str
    sessions: int

    @property
    def pooled(self) -> ComparedRow:
        """The row of all prefixes."""
        return self.rows[-1]

    def passes(self, tolerance: float | None = None) -> bool:
        """Return whether B may replace A: B is not worse, neither over all prefixes nor at any length.

        Args:
            tolerance: the whole interval over all prefixes must also lie below this many nats. Without a tolerance, B
                passes where there are too few sessions for a verdict.
        """
        if self.verdict in {"worse", "mixed"}:
            return False
        high = self.pooled.log_loss.difference.high
        return tolerance is None or (high is not None and high < tolerance)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values."""
        return {**asdict(self), "not_worse": self.passes()}


def compare(
    prefixes: Prefixes,
    a: ArrayLike,
    b: ArrayLike,
    *,
    resamples: int = COMPARE_RESAMPLES,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Compare two models on the same prefixes.

    Args:
        prefixes: N prefixes.
        a: (N,) probabilities of the current model.
        b: (N,) probabilities of the model that may replace it.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        progress: called with the number of finished resamples.

    Raises:
        ValueError: probabilities that do not fit the prefixes.
    """
    by_model = {name: checked(prefixes.outcome, chance)[1] for name, chance in (("a", a), ("b", b))}
    rows_of: dict[int | None, NDArray[np.int64]] = {
        length: np.flatnonzero(prefixes.prefix_length == length) for length in PREFIX_LENGTHS
    }
    rows_of = {length: rows for length, rows in rows_of.items() if len(rows)}
    lengths = len(rows_of)
    rows_of[None] = np.arange(len(prefixes.outcome))
    drawn = resample(
        [
            _scoring(prefixes, rows, chance[rows], exact=False)
            for rows in rows_of.values()
            for chance in by_model.values()
        ],
        prefixes.sessions,
        resamples=resamples,
        seed=seed,
        predictions=len(prefixes.outcome),
        progress=progress,
    )
    compared = []
    for index, (length, rows) in enumerate(rows_of.items()):
        exact = {
            name: once(_scoring(prefixes, rows, chance[rows], exact=True), prefixes.sessions)
            for name, chance in by_model.items()
        }
        error_rate = _ERROR_RATE / (1 if length is None else lengths)
        of_a, of_b = drawn[2 * index : 2 * index + 2]
        compared.append(_row(length, prefixes.outcome[rows], exact, of_a, of_b, error_rate))
    verdict, words = _verdict(compared, equal=bool(np.array_equal(by_model["a"], by_model["b"])))
    return Comparison(compared, verdict, words, prefixes.sessions)


def _scoring(prefixes: Prefixes, rows: NDArray[np.int64], chance: NDArray[np.float64], *, exact: bool) -> Scoring:
    outcome = prefixes.outcome[rows]
    return Scoring(
        outcome,
        chance,
        prefixes.session[rows],
        prefixes.sessions,
        np.ones(len(rows)),
        position_rates(prefixes.prefix_length[rows], outcome),
        exact=exact,
    )


def _row(
    length: int | None,
    outcome: NDArray[np.float64],
    exact: Mapping[str, Mapping[str, NDArray[np.float64]]],
    of_a: Mapping[str, NDArray[np.float64]],
    of_b: Mapping[str, NDArray[np.float64]],
    error_rate: float,
) -> ComparedRow:
    scored = {}
    for score in _SCORES:
        a, b = float(exact["a"][score]), float(exact["b"][score])
        difference = UNDEFINED if np.isnan([a, b]).any() else estimate(b - a, of_b[score] - of_a[score])
        scored[score] = Scored(_number(a), _number(b), difference)
    differences = of_b["log_loss"] - of_a["log_loss"]
    # A resample may have no prefix of a rare length.
    defined = differences[~np.isnan(differences)]
    low, high = np.quantile(defined, [error_rate / 2, 1 - error_rate / 2]) if len(defined) else (0.0, 0.0)
    return ComparedRow(
        prefix_length=length,
        prefixes=len(outcome),
        buyers=int(outcome.sum()),
        told_apart=bool(low > 0 or high < 0),
        **scored,
    )


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _verdict(rows: list[ComparedRow], *, equal: bool) -> tuple[Verdict, str]:
    if equal:
        return "equal", "A and B are equal: they give every prefix the same probability."
    *by_length, pooled = rows
    worse_at = [row for row in by_length if row.told_apart and (row.log_loss.difference.value or 0.0) > 0]
    places = f"worse at prefix length {', '.join(f'{row.prefix_length}' for row in worse_at)}" if worse_at else ""
    difference = pooled.log_loss.difference
    value = difference.value or 0.0
    against = f"log loss {value:+.4f} nats against A's"
    if difference.low is not None and difference.high is not None:
        against += f" (95 % interval {difference.low:+.4f} to {difference.high:+.4f})"
    if not pooled.told_apart:
        words = f"A and B cannot be told apart: B has a {against}"
        return ("mixed", f"{words}, yet is {places}.") if worse_at else ("undecided", f"{words}.")
    if value > 0:
        return "worse", f"B is worse: {against}."
    words = f"B is better: {against}"
    return ("mixed", f"{words}, yet it is {places}.") if worse_at else ("better", f"{words}.")
