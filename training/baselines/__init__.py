"""Baselines for the network: rates, Markov chains, logistic regressions, and gradient boosting."""

from training.baselines.boosting import boosting_parameters, lightgbm_on_aggregates
from training.baselines.linear import aggregate_regression, ngram_regression
from training.baselines.markov import markov
from training.baselines.suite import (
    BASE_RATE,
    LIGHTGBM,
    Baselines,
    base_rate_by_position,
    cart_seen_by_position,
    fit_baselines,
)

__all__ = [
    "BASE_RATE",
    "LIGHTGBM",
    "Baselines",
    "aggregate_regression",
    "base_rate_by_position",
    "boosting_parameters",
    "cart_seen_by_position",
    "fit_baselines",
    "lightgbm_on_aggregates",
    "markov",
    "ngram_regression",
]
