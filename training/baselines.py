"""What the network has to beat: the base rate, and gradient boosting on the same running information."""

from typing import Final

import lightgbm
import numpy as np
from numpy.typing import NDArray

from model.encoder import Encoder
from training.loop import Encoded

# Found by a small search on the ClickstreamDMM sessions' validation part; see docs/benchmarks.md.
LIGHTGBM_PARAMETERS: Final = {
    "objective": "binary",
    "learning_rate": 0.03,
    "num_leaves": 31,
    "min_data_in_leaf": 200,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "deterministic": True,
    "verbose": -1,
}
_ROUNDS: Final = 2000
_STOPPING_ROUNDS: Final = 50
# A position with fewer training sessions than this borrows from the one before it.
_LEAST_SESSIONS: Final = 30


def base_rate_by_position(train: Encoded, test: Encoded) -> NDArray[np.float64]:
    """Predict for each test event the share of buyers among the training sessions that came as far, [N]."""
    lengths = train.columns.lengths.numpy()
    bought = train.columns.outcome.numpy() > 0
    longest = max(int(lengths.max()), int(test.columns.lengths.max()))
    alive = np.bincount(lengths, minlength=longest + 1)[::-1].cumsum()[::-1]
    buyers = np.bincount(lengths[bought], minlength=longest + 1)[::-1].cumsum()[::-1]
    rates = np.empty(longest + 1)
    # The rule of succession keeps a rate off 0 and 1, where the log loss has no bound.
    rate = (bought.sum() + 1) / (len(bought) + 2)
    for position in range(longest + 1):
        if alive[position] >= _LEAST_SESSIONS:
            rate = (buyers[position] + 1) / (alive[position] + 2)
        rates[position] = rate
    by_event: NDArray[np.float64] = rates[test.columns.prefix_length().numpy()]
    return by_event


def lightgbm_on_aggregates(
    encoder: Encoder, train: Encoded, validation: Encoded, test: Encoded, *, seed: int, threads: int = 1
) -> tuple[NDArray[np.float64], int]:
    """Fit LightGBM on every prefix's encoder features and indices, stopped early on the validation sessions.

    The encoder's outputs are all that the network sees of an event and of what came before it, bar its own memory.

    Returns:
        Probabilities of the test events [N], and the number of trees kept.
    """
    categorical = [f"index[{name}]" for name in encoder.index_names]
    names = [*encoder.feature_names, *categorical]
    parameters = {**LIGHTGBM_PARAMETERS, "seed": seed, "num_threads": threads}
    sets: list[lightgbm.Dataset] = []
    for data in (train, validation):
        label = data.columns.outcome.numpy()[data.columns.session_index().numpy()]
        sets.append(
            lightgbm.Dataset(
                _matrix(data),
                label,
                reference=sets[0] if sets else None,
                # LightGBM takes JSON's special characters in no name.
                feature_name=[f"feature_{number}" for number in range(len(names))],
                categorical_feature=[f"feature_{number}" for number in range(len(encoder.feature_names), len(names))],
                params={"verbose": -1},
            )
        )
    booster = lightgbm.train(
        parameters,
        sets[0],
        _ROUNDS,
        valid_sets=[sets[1]],
        callbacks=[lightgbm.early_stopping(_STOPPING_ROUNDS, verbose=False)],
    )
    prediction = np.asarray(booster.predict(_matrix(test), num_iteration=booster.best_iteration), dtype=np.float64)
    return prediction, int(booster.best_iteration)


def _matrix(data: Encoded) -> NDArray[np.float32]:
    return np.concatenate([data.features.numpy(), data.indices.numpy().astype(np.float32)], axis=1)
