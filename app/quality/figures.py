"""From counts (`app.quality.counts`) to the figures of model quality and drift.

Figures of fewer than `FEWEST_SESSIONS` sessions are None, and so is an AUC of fewer than `FEWEST_EITHER` buyers or
others: answers within a session depend on each other, so the bound is on sessions.

Drift is the population stability index of each feature, of live sessions against training sessions:

    PSI = sum over bins of (live share - training share) * ln(live share / training share)

(Siddiqi, 2006, "Credit Risk Scorecards"; it is Jeffreys' divergence of the two histograms.) Usual reading: below 0.1 no
shift, above 0.25 a large one. A share of zero counts as one in ten thousand; otherwise one session could make the index
infinite. Without a shift, the index of k bins is about (k - 1) / n for n independent observations. Events of one
session are not independent, so drift needs `FEWEST_DRIFT_SESSIONS` sessions.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import log
from typing import Final

from app.quality.counts import BILLION, GROUPS, cells_of
from app.schemas.quality import AnswersOut, DriftOut, FeatureDriftOut, PrefixAnswersOut, ReliabilityOut
from model.auc import auc_of_groups
from model.summary import DataSummary

FEWEST_SESSIONS: Final = 30
FEWEST_EITHER: Final = 5
_RELIABILITY_BINS: Final = 10
FEWEST_DRIFT_SESSIONS: Final = 100
_MOST_FEATURES: Final = 20
_SMALLEST_SHARE: Final = 1e-4

# Answers without and with a purchase, and the sum of their probabilities in billionths; of one score bin or several.
_Bin = tuple[int, int, int]


def quality_of(counts: Mapping[str, int]) -> tuple[AnswersOut, list[PrefixAnswersOut], list[ReliabilityOut]]:
    """Return the figures of all answers, of each group of prefix lengths, and the reliability diagram."""
    by_group: list[dict[int, _Bin]] = [{} for _ in GROUPS]
    pooled: dict[int, _Bin] = {}
    for cell, found in cells_of(counts).items():
        by_group[cell.group][cell.bin] = found
        pooled[cell.bin] = _sum([pooled.get(cell.bin, (0, 0, 0)), found])
    losses = [counts.get(f"l{group}", 0) for group in range(len(GROUPS))]
    overall = _figures(pooled, sum(losses), counts.get("s", 0), counts.get("b", 0))
    groups = [
        PrefixAnswersOut(
            **{"from": first},
            to=last,
            **_figures(
                by_group[group], losses[group], counts.get(f"s{group}", 0), counts.get(f"b{group}", 0)
            ).model_dump(),
        )
        for group, (first, last) in enumerate(GROUPS)
    ]
    enough = overall.sessions >= FEWEST_SESSIONS
    reliability = [
        ReliabilityOut(
            mean_probability=summed / BILLION / (none + purchase),
            purchase_rate=purchase / (none + purchase),
            predictions=none + purchase,
        )
        for none, purchase, summed in (_equal_bins(pooled) if enough else [])
    ]
    return overall, groups, reliability


def drift_of(counts: Mapping[str, int], summary: DataSummary) -> DriftOut:
    """Return how the counted inputs differ from the training sessions'."""
    sessions, events = counts.get("sessions", 0), counts.get("events", 0)
    enough = sessions >= FEWEST_DRIFT_SESSIONS and events > 0
    indices = []
    if enough:
        for number, (name, trained) in enumerate(zip(summary.features, summary.shares, strict=True)):
            live = [counts.get(f"{number}:{place}", 0) for place in range(len(trained))]
            indices.append(FeatureDriftOut(name=name, psi=population_stability_index(live, trained)))
        indices.sort(key=lambda feature: (-feature.psi, feature.name))
    return DriftOut(
        sessions=sessions,
        unseen_name_share=counts.get("unseen", 0) / events if enough else None,
        trained_unseen_name_share=summary.unseen_name_share,
        features=indices[:_MOST_FEATURES],
        max_psi=indices[0].psi if indices else None,
    )


def population_stability_index(live: Sequence[int], trained: Sequence[float]) -> float:
    """Return the index of live counts against training shares, bin by bin."""
    total = sum(live)
    index = 0.0
    for count, share in zip(live, trained, strict=True):
        now, then = max(count / total, _SMALLEST_SHARE), max(share, _SMALLEST_SHARE)
        index += (now - then) * log(now / then)
    return index


def _figures(bins: Mapping[int, _Bin], loss: int, sessions: int, buyers: int) -> AnswersOut:
    none, purchase, summed = _sum(bins.values())
    predictions = none + purchase
    enough = sessions >= FEWEST_SESSIONS
    enough_of_both = enough and min(buyers, sessions - buyers) >= FEWEST_EITHER
    return AnswersOut(
        sessions=sessions,
        buyers=buyers,
        predictions=predictions,
        base_rate=purchase / predictions if predictions else None,
        mean_probability=summed / BILLION / predictions if predictions else None,
        log_loss=loss / BILLION / predictions if enough and predictions else None,
        auc=_auc(bins) if enough_of_both and none and purchase else None,
        calibration_error=_calibration_error(bins) if enough and predictions else None,
    )


def _auc(bins: Mapping[int, _Bin]) -> float:
    """Return the AUC, answers of one bin being ties."""
    none, purchase, _ = zip(*(bins[number] for number in sorted(bins)), strict=True)
    return float(auc_of_groups(purchase, none))


def _calibration_error(bins: Mapping[int, _Bin]) -> float:
    """Return the expected calibration error over bins of about equally many answers (Nixon et al., 2019)."""
    merged = _equal_bins(bins)
    total = sum(none + purchase for none, purchase, _ in merged)
    return sum(abs(purchase - summed / BILLION) for _, purchase, summed in merged) / total


def _equal_bins(bins: Mapping[int, _Bin]) -> list[_Bin]:
    """Return at most ten bins of about equally many answers, merged from neighbouring score bins."""
    none, purchase, _ = _sum(bins.values())
    wanted = (none + purchase) / _RELIABILITY_BINS
    merged: list[_Bin] = []
    done = 0
    for number in sorted(bins):
        # A bin belongs where its middle lies among all answers.
        middle = done + (bins[number][0] + bins[number][1]) / 2
        place = min(int(middle / wanted), _RELIABILITY_BINS - 1) if wanted else 0
        done += bins[number][0] + bins[number][1]
        while len(merged) <= place:
            merged.append((0, 0, 0))
        merged[place] = _sum([merged[place], bins[number]])
    return [bin_ for bin_ in merged if bin_[0] + bin_[1]]


def _sum(bins: Iterable[_Bin]) -> _Bin:
    none = purchase = summed = 0
    for bin_ in bins:
        none, purchase, summed = none + bin_[0], purchase + bin_[1], summed + bin_[2]
    return none, purchase, summed
