"""From counts of answers to figures; see `app.quality.counts` for what is counted.

Figures of fewer than `FEWEST_SESSIONS` sessions are None, an AUC also of fewer than `FEWEST_EITHER` buyers or others:
answers within a session go together, so sessions count and not answers.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from app.quality.counts import BILLION, GROUPS, cells_of
from app.schemas.quality import AnswersOut, PrefixAnswersOut, ReliabilityOut
from model.auc import auc_of_groups

FEWEST_SESSIONS: Final = 30
FEWEST_EITHER: Final = 5
_RELIABILITY_BINS: Final = 10

# Answers without and with a purchase, and billionths said in sum; of one score bin, or of several.
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
            mean_probability=said / BILLION / (none + purchase),
            purchase_rate=purchase / (none + purchase),
            predictions=none + purchase,
        )
        for none, purchase, said in (_equal_bins(pooled) if enough else [])
    ]
    return overall, groups, reliability


def _figures(bins: Mapping[int, _Bin], loss: int, sessions: int, buyers: int) -> AnswersOut:
    none, purchase, said = _sum(bins.values())
    predictions = none + purchase
    enough = sessions >= FEWEST_SESSIONS
    enough_of_both = enough and min(buyers, sessions - buyers) >= FEWEST_EITHER
    return AnswersOut(
        sessions=sessions,
        buyers=buyers,
        predictions=predictions,
        base_rate=purchase / predictions if predictions else None,
        mean_probability=said / BILLION / predictions if predictions else None,
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
    return sum(abs(purchase - said / BILLION) for _, purchase, said in merged) / total


def _equal_bins(bins: Mapping[int, _Bin]) -> list[_Bin]:
    """Return neighbouring score bins put together into at most ten of about equally many answers."""
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
    none = purchase = said = 0
    for bin_ in bins:
        none, purchase, said = none + bin_[0], purchase + bin_[1], said + bin_[2]
    return none, purchase, said
