"""All baselines on the same sessions: fitted on the training part, chosen on the validation part, never on the rest."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from model.encoder import Encoder
from training.baselines.boosting import lightgbm_on_aggregates
from training.baselines.linear import MOST_PREFIXES, aggregate_regression, ngram_regression
from training.baselines.markov import markov
from training.data.encoded import Encoded
from training.evaluation.slices import cart_seen

# A position with fewer training sessions than this borrows from the one before it.
_LEAST_SESSIONS: Final = 30


def base_rate_by_position(train: Encoded, test: Encoded) -> NDArray[np.float64]:
    """Predict for each test event the share of buyers among training sessions of at least that length, [N]."""
    everyone = np.zeros(len(train.columns.timestamp_ms), dtype=np.int64)
    return _rates(train, test, everyone, np.zeros(len(test.columns.timestamp_ms), dtype=np.int64), groups=1)


def cart_seen_by_position(train: Encoded, test: Encoded) -> NDArray[np.float64]:
    """Predict as `base_rate_by_position`, separately for sessions with and without an earlier cart event, [N]."""
    return _rates(
        train,
        test,
        cart_seen(train.columns).astype(np.int64),
        cart_seen(test.columns).astype(np.int64),
        groups=2,
    )


def _rates(
    train: Encoded, test: Encoded, group: NDArray[np.int64], test_group: NDArray[np.int64], *, groups: int
) -> NDArray[np.float64]:
    """Return the share of buyers by position and group; a position with too few sessions uses the one before."""
    position, test_position = (data.columns.prefix_length().numpy() for data in (train, test))
    longest = int(max(position.max(), test_position.max()))
    bought = train.columns.outcome.numpy()[train.columns.session_index().numpy()] > 0
    cell = group * (longest + 1) + position
    sessions = np.bincount(cell, minlength=groups * (longest + 1)).reshape(groups, -1)
    buyers = np.bincount(cell[bought], minlength=groups * (longest + 1)).reshape(groups, -1)
    # The rule of succession keeps rates away from 0 and 1, where the log loss is unbounded.
    outcome = train.columns.outcome.numpy() > 0
    rate = np.full(groups, (outcome.sum() + 1) / (len(outcome) + 2))
    rates = np.empty((groups, longest + 1))
    for at in range(longest + 1):
        enough = sessions[:, at] >= _LEAST_SESSIONS
        rate = np.where(enough, (buyers[:, at] + 1) / (sessions[:, at] + 2), rate)
        rates[:, at] = rate
    by_event: NDArray[np.float64] = rates[test_group, test_position]
    return by_event


BASE_RATE: Final = "base rate"
CART_SEEN: Final = "cart seen"
N_GRAMS: Final = "n-grams"
LOGISTIC: Final = "logistic"
LIGHTGBM: Final = "LightGBM"
_ORDERS: Final = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Baselines:
    """Probabilities of the predicted events by baseline, [N] each, and notes on how they were fitted."""

    predictions: dict[str, NDArray[np.float64]]
    notes: list[str]


def fit_baselines(
    encoder: Encoder,
    train: Encoded,
    validation: Encoded,
    test: Encoded,
    *,
    seed: int = 0,
    threads: int = 1,
    progress: Callable[[str], None] | None = None,
) -> Baselines:
    """Fit every baseline and predict the test events.

    All see the encoder's outputs: event types by the artifact's vocabulary, and its running aggregates.

    Args:
        encoder: that encoded the three parts.
        train: sessions to fit on.
        validation: sessions to choose strengths and numbers of trees by.
        test: sessions to predict; their outcomes are not used.
        seed: of all random draws.
        threads: of LightGBM and of linear algebra.
        progress: called with the name of each baseline before it is fitted.

    Raises:
        ValueError: the training or validation sessions lack buyers or non-buyers.
    """
    for name, data in (("training", train), ("validation", validation)):
        buyers, sessions = int(data.columns.outcome.sum()), len(data.columns.outcome)
        if not 0 < buyers < sessions:
            raise ValueError(
                f"baselines: the {name} sessions have {buyers} buyers among {sessions}; at least one of each outcome "
                "is needed: leave the baselines out with --no-baselines"
            )
    recipes: dict[str, Callable[[], NDArray[np.float64]]] = {BASE_RATE: lambda: base_rate_by_position(train, test)}
    notes = []
    if cart_seen(train.columns).any():
        recipes[CART_SEEN] = lambda: cart_seen_by_position(train, test)
    else:
        notes.append(
            "No training session has an add_to_cart event, so there is no baseline on whether a cart was seen."
        )
    for order in _ORDERS:
        recipes[f"Markov {order}"] = partial(markov, train, validation, test, order)
    recipes[N_GRAMS] = lambda: ngram_regression(train, validation, test, seed=seed)
    recipes[LOGISTIC] = lambda: aggregate_regression(encoder, train, validation, test, seed=seed)
    recipes[LIGHTGBM] = lambda: lightgbm_on_aggregates(encoder, train, validation, test, seed=seed, threads=threads)[0]
    events = len(train.columns.timestamp_ms)
    if events > MOST_PREFIXES:
        notes.append(f"The logistic regressions were fitted on {MOST_PREFIXES:,} of {events:,} prefixes.")
    predictions = {}
    for name, recipe in recipes.items():
        if progress is not None:
            progress(name)
        # With more threads than free cores, threads on the regressions' small matrices wait for each other.
        with threadpool_limits(threads):
            predictions[name] = recipe()
    return Baselines(predictions, notes)
