"""Alarms: when a session's score first reaches a threshold, and the expected profit of acting on it.

A session raises an alarm at its first prefix whose probability reaches the threshold, and keeps it. So at any length n
the sessions that raised one by then are those whose highest probability so far reaches the threshold.

Shape legend: S sessions, L prefix lengths, R resamples of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from training.config import EVALUATE_RESAMPLES, Offer
from training.evaluation.metrics import PREFIX_LENGTHS
from training.evaluation.prefixes import Prefixes
from training.evaluation.resampling import Estimate, Weights, estimate, once, resample

_Floats = NDArray[np.float64]

Rule = Literal["precision", "alarm share"]


@dataclass(frozen=True, slots=True)
class Earliness:
    """How many of the buyers a model has found after so many events.

    Attributes:
        rule: the quantity that the threshold fixes: the share of alarmed sessions that buy (`precision`), or the share
            of all sessions that are alarmed (`alarm share`).
        target: value of that quantity.
        threshold: the lowest one that keeps the rule on these sessions; None where there is none.
        precision: share of the alarmed sessions that ended in a purchase.
        alarm_share: share of the sessions that raised an alarm.
        lengths: numbers of events; None means the whole session.
        recall: by length, the share of all buyers whose session raised an alarm by then.
    """

    rule: Rule
    target: float
    threshold: float | None
    precision: Estimate
    alarm_share: Estimate
    lengths: list[int | None]
    recall: list[Estimate]


@dataclass(frozen=True, slots=True)
class Peaks:
    """The highest probability of each session by the time it had so many events.

    Attributes:
        by_length: (L + 1, S), the last row over the whole session; shorter sessions keep their last value.
        lengths: L numbers of events.
        outcome: (S,).
    """

    by_length: _Floats
    lengths: tuple[int, ...]
    outcome: _Floats


def peaks_of(prefixes: Prefixes, probability: _Floats, lengths: Sequence[int] = PREFIX_LENGTHS) -> Peaks:
    """Return the highest probability so far of every session at each length, and over the whole session."""
    found = np.zeros((len(lengths) + 1, prefixes.sessions))
    for row, length in enumerate([*lengths, int(prefixes.prefix_length.max())]):
        inside = prefixes.prefix_length <= length
        np.maximum.at(found[row], prefixes.session[inside], probability[inside])
    return Peaks(found, tuple(lengths), prefixes.session_outcome)


class _Found:
    """Recall by length under the threshold that keeps a rule; each resample has its own threshold."""

    def __init__(self, peaks: Peaks, rule: Rule, target: float) -> None:
        self._peaks, self._rule, self._target = peaks, rule, target
        highest = peaks.by_length[-1]
        self._order = np.argsort(-highest, kind="stable")
        sorted_peaks = highest[self._order]
        # A threshold includes all sessions of the same peak or none of them.
        self._ends = np.flatnonzero(np.diff(sorted_peaks, append=-1.0))
        self._thresholds = sorted_peaks[self._ends]
        self._buyers = np.flatnonzero(peaks.outcome > 0)

    def __call__(self, weights: Weights) -> dict[str, _Floats]:
        """Return threshold, precision, alarm share (R,) and recall (L + 1, R); NaN where the rule cannot hold."""
        ranked = weights[self._order]
        alarms = np.cumsum(ranked, axis=0)[self._ends]
        caught = np.cumsum(ranked * self._peaks.outcome[self._order, None], axis=0)[self._ends]
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = caught / alarms
            share = alarms / weights.sum(axis=0)
            # 1e-9: rounding of the quotient of two sums of weights.
            kept = (precision >= self._target - 1e-9) if self._rule == "precision" else (share <= self._target + 1e-9)
            kept &= alarms > 0
            last = len(kept) - 1 - np.argmax(kept[::-1], axis=0)
            columns = np.arange(weights.shape[1])
            possible = kept[last, columns]
            threshold = np.where(possible, self._thresholds[last], np.nan)
            of_buyers = weights[self._buyers]
            recall = np.stack(
                [
                    ((row[self._buyers, None] >= threshold) * of_buyers).sum(axis=0) / of_buyers.sum(axis=0)
                    for row in self._peaks.by_length
                ]
            )
        return {
            "threshold": threshold,
            "precision": np.where(possible, precision[last, columns], np.nan),
            "alarm_share": np.where(possible, share[last, columns], np.nan),
            "recall": np.where(possible, recall, np.nan),
        }


def earliness(
    peaks: Peaks, rule: Rule, target: float, *, resamples: int = EVALUATE_RESAMPLES, seed: int = 0
) -> Earliness:
    """Return how early a model finds the buyers while the threshold keeps `rule` at `target`.

    The threshold is chosen on the same sessions, one number from all of them, and again in every resample.
    """
    found = _Found(peaks, rule, target)
    sessions = len(peaks.outcome)
    value = once(found, sessions)
    (drawn,) = resample([found], sessions, resamples=resamples, seed=seed)
    threshold = float(value["threshold"])
    return Earliness(
        rule,
        target,
        None if np.isnan(threshold) else threshold,
        estimate(float(value["precision"]), drawn["precision"]),
        estimate(float(value["alarm_share"]), drawn["alarm_share"]),
        [*peaks.lengths, None],
        [estimate(float(v), r) for v, r in zip(value["recall"], drawn["recall"], strict=True)],
    )


PROFIT_SHARES: Final = tuple(float(share) for share in np.linspace(0.0, 1.0, 51))
"""Shares of the sessions contacted that a profit curve shows."""

_PER_SESSIONS: Final = 1_000


@dataclass(frozen=True, slots=True)
class ProfitCurve:
    """Expected profit of contacting the sessions with the highest peaks, for 1,000 sessions.

    Attributes:
        shares: of the sessions contacted.
        profit: with the uplift proportional to each session's own chance to buy.
        evenly: with as many additional purchases in all, but the same chance for every contacted session: ranking then
            has no value, and the curve is a straight line.
        best_share: where the profit is highest on these sessions.
        best: profit there.
        best_threshold: the score that those sessions reach; None where every contact costs more than it earns.
    """

    shares: list[float]
    profit: list[Estimate]
    evenly: list[float]
    best_share: float
    best: Estimate
    best_threshold: float | None = None


def profit_curve(peaks: Peaks, offer: Offer, *, resamples: int = EVALUATE_RESAMPLES, seed: int = 0) -> ProfitCurve:
    """Return the profit of contacting a share of the sessions under the offer's assumptions.

    profit(q) = 1000 * (uplift * margin * buyers among the contacted - cost * contacted) / sessions
    """
    order = np.argsort(-peaks.by_length[-1], kind="stable")
    shares = np.array(PROFIT_SHARES)

    def curve(weights: Weights) -> dict[str, _Floats]:
        ranked = weights[order]
        total = ranked.sum(axis=0)
        reached = np.vstack([np.zeros_like(total), np.cumsum(ranked, axis=0)]) / total
        caught = np.vstack([np.zeros_like(total), np.cumsum(ranked * peaks.outcome[order, None], axis=0)]) / total
        buyers = np.stack(
            [np.interp(shares, reached[:, column], caught[:, column]) for column in range(weights.shape[1])], axis=1
        )
        return {"profit": _PER_SESSIONS * (offer.uplift * offer.margin * buyers - offer.cost * shares[:, None])}

    sessions = len(peaks.outcome)
    value = once(curve, sessions)["profit"]
    (drawn,) = resample([curve], sessions, resamples=resamples, seed=seed)
    profit = [estimate(float(v), r) for v, r in zip(value, drawn["profit"], strict=True)]
    base_rate = float(peaks.outcome.mean())
    best = int(np.argmax(value))
    return ProfitCurve(
        shares.tolist(),
        profit,
        (_PER_SESSIONS * shares * (offer.uplift * offer.margin * base_rate - offer.cost)).tolist(),
        float(shares[best]),
        profit[best],
        float(peaks.by_length[-1][order[round(shares[best] * sessions) - 1]]) if best else None,
    )
