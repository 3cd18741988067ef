"""What a training run came to."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.network import SessionModel
from model.summary import DataSummary
from training.fit.calibration import Calibration
from training.fit.checkpoint import Fit


@dataclass(frozen=True, slots=True)
class Predictions:
    """What each model said of every prefix of the test sessions, all [N], what became of them, and slices of them."""

    probability: dict[str, NDArray[np.float64]]
    outcome: NDArray[np.float64]
    prefix_length: NDArray[np.int64]
    session_index: NDArray[np.int64]
    session_id: NDArray[np.object_]
    slices: Mapping[str, Mapping[str, NDArray[np.bool_]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a run came to."""

    model: SessionModel
    fit: Fit
    calibration: Calibration | None
    test: Predictions
    sessions: dict[str, int]
    buyers: dict[str, int]
    seconds: float
    warnings: list[str]
    device: str
    inputs: DataSummary
