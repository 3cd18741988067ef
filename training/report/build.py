"""From predictions to a report: scores, reliability, earliness, profit and the ladder, all from the same resamples."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.config import EVALUATE_RESAMPLES, Assumptions
from training.data.findings import DOUBTFUL, Finding, worst_first
from training.data.leaks import RankedInput
from training.evaluation.alarms import Earliness, Rule, earliness, peaks_of, profit_curve
from training.evaluation.curves import ranking_curves
from training.evaluation.evaluate import Row, score_rows
from training.evaluation.ladder import Rung, steps_of
from training.evaluation.metrics import PREFIX_LENGTHS, ReliabilityPoint, checked, reliability
from training.evaluation.prefixes import POOLED, Prefixes, prefixes_of
from training.fit.checkpoint import Epoch
from training.fit.importance import Importance
from training.report.content import OPTIMUM, Histogram, Report

FEW_BUYERS: Final = 300
"""With fewer buyers a report warns: an AUC's 95 % interval may then be wider than about 0.03 to either side."""

_HISTOGRAM_BINS: Final = 40
# The prefixes of one length are fewer than all prefixes.
_BINS_BY_LENGTH: Final = 10


def build_report(
    predictions: Mapping[str, ArrayLike],
    outcome: ArrayLike,
    prefix_length: ArrayLike,
    session_index: ArrayLike,
    *,
    title: str,
    slices: Mapping[str, Mapping[str, ArrayLike]] | None = None,
    dataset: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    assumptions: Assumptions | None = None,
    rungs: Mapping[str, Rung] | None = None,
    epochs: Sequence[Epoch] = (),
    inputs_alone: Sequence[RankedInput] = (),
    importance: Sequence[Importance] = (),
    optimum: ArrayLike | None = None,
    warnings: Sequence[str] = (),
    notes: Sequence[str] = (),
    created: datetime | None = None,
    resamples: int = EVALUATE_RESAMPLES,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Return the report on predictions of N prefixes.

    Args:
        predictions: (N,) probabilities by model, the subject first.
        outcome: (N,) 1 where the prefix's session ended in a purchase, 0 elsewhere.
        prefix_length: (N,) number of events of each prefix.
        session_index: (N,) equal for prefixes of one session.
        title: the report's heading.
        slices: by heading and name, (N,) whether a prefix belongs to it (`training.evaluation.slices`).
        dataset: facts of the data.
        settings: facts of the run.
        assumptions: of earliness and profit.
        rungs: which of the models are rungs of the ladder.
        epochs: of the training.
        inputs_alone: how well each input alone ranks buyers.
        importance: what the subject loses without a group of inputs, the largest first.
        optimum: (N,) exact posterior of the same prefixes, for synthetic data.
        warnings: shown first, the worst at the top; those about too few buyers and calibration are added here.
        notes: how the predictions were made.
        created: now by default.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        progress: called with the number of finished resamples of the scores.

    Raises:
        ValueError: no model, no prefix, or arrays that do not fit together; the message names which.
    """
    if not predictions:
        raise ValueError("predictions: at least one model is needed")
    prefixes = prefixes_of(outcome, prefix_length, session_index, slices)
    by_model = {name: checked(prefixes.outcome, chance)[1] for name, chance in predictions.items()}
    truth = {} if optimum is None else {OPTIMUM: checked(prefixes.outcome, optimum)[1]}
    names = list(by_model)
    if truth.keys() & by_model.keys():
        raise ValueError(f"predictions: no model may be named {OPTIMUM!r}")
    assumed = assumptions or Assumptions()
    buyers = int(prefixes.session_outcome.sum())
    rows = score_rows(prefixes, by_model | truth, resamples=resamples, seed=seed, progress=progress)
    steps = {name: rung for name, rung in (rungs or {}).items() if name in by_model}
    return Report(
        title=title,
        created=created or datetime.now(UTC),
        sessions=prefixes.sessions,
        buyers=buyers,
        dataset=dict(dataset or {}),
        settings=dict(settings or {}),
        names=names,
        rows=rows,
        resamples=resamples,
        reliability={name: reliability(prefixes.outcome, by_model[name]) for name in names},
        reliability_by_length=_reliability_by_length(prefixes, by_model[names[0]]),
        ranking={name: ranking_curves(prefixes.outcome, chance) for name, chance in (by_model | truth).items()},
        histogram=_histogram(prefixes.outcome, by_model[names[0]]),
        earliness=_earliness(prefixes, by_model | truth, assumed, resamples, seed),
        assumptions=assumed,
        profit={
            name: profit_curve(peaks_of(prefixes, chance), assumed.offer, resamples=resamples, seed=seed)
            for name, chance in by_model.items()
        },
        rungs=steps,
        ladder=steps_of(prefixes, by_model, steps, resamples=resamples, seed=seed),
        epochs=list(epochs),
        inputs_alone=list(inputs_alone),
        importance=list(importance),
        warnings=worst_first(
            [*warnings, *_few_buyers(prefixes.sessions, buyers), *_miscalibrated(names[0], rows)],
        ),
        notes=list(notes),
    )


def _few_buyers(sessions: int, buyers: int) -> Iterator[str]:
    if buyers < FEW_BUYERS:
        yield Finding(
            f"Only {buyers:,} of {sessions:,} sessions ended in a purchase. That is too few to claim quality: "
            "look at the intervals, not at the digits.",
            DOUBTFUL + 5,
        )


def _miscalibrated(subject: str, rows: Sequence[Row]) -> Iterator[str]:
    pooled = next(row for row in rows if row.name == POOLED and row.kind != "slice")
    found, chance = pooled.scores[subject]["calibration_error"].value, pooled.calibration_noise[subject]
    if found is not None and chance is not None and found > chance:
        yield Finding(
            f"The calibration error of {subject} over all prefixes is {found:.4f}, and chance alone makes at most "
            f"{chance:.4f}: its probabilities are off, though their order may be right.",
            DOUBTFUL + 4,
        )


def _histogram(bought: NDArray[np.float64], probability: NDArray[np.float64]) -> Histogram:
    # Purchases are rare: over [0, 1] nearly all probabilities would share a bin or two.
    top = float(min(1.0, max(1.05 * probability.max(), 0.01)))
    edges = np.linspace(0.0, top, _HISTOGRAM_BINS + 1)
    counts = [np.histogram(probability[bought == group], edges)[0].tolist() for group in (1.0, 0.0)]
    return Histogram(edges.tolist(), *counts)


def _reliability_by_length(prefixes: Prefixes, probability: NDArray[np.float64]) -> dict[int, list[ReliabilityPoint]]:
    found = {}
    for length in PREFIX_LENGTHS:
        inside = prefixes.prefix_length == length
        if inside.any():
            found[length] = reliability(prefixes.outcome[inside], probability[inside], _BINS_BY_LENGTH)
    return found


def _earliness(
    prefixes: Prefixes,
    by_model: Mapping[str, NDArray[np.float64]],
    assumed: Assumptions,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, Earliness]]:
    if not prefixes.outcome.any():
        return {}
    rules: dict[Rule, float] = {"precision": assumed.precision, "alarm share": assumed.alarm_share}
    peaks = {name: peaks_of(prefixes, chance) for name, chance in by_model.items()}
    return {
        rule: {name: earliness(peaks[name], rule, target, resamples=resamples, seed=seed) for name in by_model}
        for rule, target in rules.items()
    }
