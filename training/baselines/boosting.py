"""Gradient boosting on the network's own inputs."""

from typing import Any, Final

import lightgbm
import numpy as np
from numpy.typing import NDArray

from model.encoder import Encoder
from training.data.encoded import Encoded

# Events of a leaf: one in so many of all events, between the two bounds.
_EVENTS_A_LEAF: Final = 150
_SMALLEST_LEAF: Final = 20
_LARGEST_LEAF: Final = 1000
_ROUNDS: Final = 2000
_STOPPING_ROUNDS: Final = 50
_PREDICTED_EVENTS: Final = 65_536


def boosting_parameters(events: int, *, seed: int, threads: int) -> dict[str, Any]:
    """Return LightGBM's parameters for so many training events.

    Found by a search on ClickstreamDMM's validation sessions (docs/recipe.md). Only the leaf size grows with the data.
    """
    return {
        "objective": "binary",
        "learning_rate": 0.04,
        "num_leaves": 31,
        "min_data_in_leaf": max(_SMALLEST_LEAF, min(_LARGEST_LEAF, events // _EVENTS_A_LEAF)),
        "feature_fraction": 0.5,
        "bagging_fraction": 0.6,
        "bagging_freq": 1,
        "lambda_l2": 4.2,
        "path_smooth": 0.05,
        "deterministic": True,
        "force_row_wise": True,
        "seed": seed,
        "num_threads": threads,
        "verbose": -1,
    }


def lightgbm_on_aggregates(
    encoder: Encoder, train: Encoded, validation: Encoded, test: Encoded, *, seed: int, threads: int = 1
) -> tuple[NDArray[np.float64], int]:
    """Fit LightGBM on every prefix's encoder features and indices, stopped early on the validation sessions.

    The encoder's outputs are all inputs of the network except its own memory.

    Returns:
        Probabilities of the test events [N], and the number of trees kept.
    """
    categorical = [f"index[{name}]" for name in encoder.index_names]
    names = [*encoder.feature_names, *categorical]
    parameters = boosting_parameters(len(train.columns.timestamp_ms), seed=seed, threads=threads)
    sets: list[lightgbm.Dataset] = []
    for data in (train, validation):
        label = data.columns.outcome.numpy()[data.columns.session_index().numpy()]
        sets.append(
            # Constructed at once, so that the matrix is freed: bins take a quarter of its memory.
            lightgbm.Dataset(
                _matrix(data),
                label,
                reference=sets[0] if sets else None,
                # LightGBM refuses JSON's special characters in names.
                feature_name=[f"feature_{number}" for number in range(len(names))],
                categorical_feature=[f"feature_{number}" for number in range(len(encoder.feature_names), len(names))],
                params=parameters,
            ).construct()
        )
    booster = lightgbm.train(
        parameters,
        sets[0],
        _ROUNDS,
        valid_sets=[sets[1]],
        callbacks=[lightgbm.early_stopping(_STOPPING_ROUNDS, verbose=False)],
    )
    prediction = np.empty(len(test.features))
    for begin in range(0, len(prediction), _PREDICTED_EVENTS):
        rows = slice(begin, begin + _PREDICTED_EVENTS)
        prediction[rows] = booster.predict(_matrix(test, rows), num_iteration=booster.best_iteration)
    return prediction, int(booster.best_iteration)


def _matrix(data: Encoded, rows: slice = slice(None)) -> NDArray[np.float32]:
    return np.concatenate([data.features.numpy()[rows], data.indices.numpy()[rows].astype(np.float32)], axis=1)
