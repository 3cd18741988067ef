"""What predictions are worth: scores with intervals by prefix length and slice, earliness and profit."""

from training.evaluation.alarms import Earliness, Offer, ProfitCurve, earliness, peaks_of, profit_curve
from training.evaluation.evaluate import SCORES, Row, score_rows
from training.evaluation.prefixes import Prefixes, prefixes_of
from training.evaluation.resampling import DEFAULT_RESAMPLES, Estimate
from training.evaluation.selection import Wanted

__all__ = [
    "DEFAULT_RESAMPLES",
    "SCORES",
    "Earliness",
    "Estimate",
    "Offer",
    "Prefixes",
    "ProfitCurve",
    "Row",
    "Wanted",
    "earliness",
    "peaks_of",
    "prefixes_of",
    "profit_curve",
    "score_rows",
]
