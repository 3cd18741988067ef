"""What predictions are worth: scores with intervals by prefix length and slice, earliness and profit."""

from training.config import EVALUATE_RESAMPLES, Offer, SelectionSettings
from training.evaluation.alarms import Earliness, ProfitCurve, earliness, peaks_of, profit_curve
from training.evaluation.evaluate import SCORES, Row, score_rows
from training.evaluation.prefixes import Prefixes, prefixes_of
from training.evaluation.resampling import Estimate

__all__ = [
    "EVALUATE_RESAMPLES",
    "SCORES",
    "Earliness",
    "Estimate",
    "Offer",
    "Prefixes",
    "ProfitCurve",
    "Row",
    "SelectionSettings",
    "earliness",
    "peaks_of",
    "prefixes_of",
    "profit_curve",
    "score_rows",
]
