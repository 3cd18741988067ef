"""A model's probabilities for prepared sessions, read one shard at a time.

Shape legend: S sessions, N events of all sessions.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.network import SessionModel
from training.data.dataset import read_sessions
from training.data.encoded import Encoded, encode
from training.fit.loop import logits


@dataclass(frozen=True, slots=True)
class PredictedSessions:
    """Sessions with a model's predictions.

    Attributes:
        encoded: the sessions as the model's inputs.
        probability: (N,) probability after each event.
    """

    encoded: Encoded
    probability: NDArray[np.float64]


def predict_sessions(
    model: SessionModel,
    shards: Sequence[Path],
    session_ids: Collection[str],
    progress: Callable[[int], None] | None = None,
) -> PredictedSessions:
    """Return the model's probability after each event of these sessions.

    Args:
        model: fitted and calibrated.
        shards: of prepared sessions.
        session_ids: the sessions to predict.
        progress: called with the number of sessions done since the last call.

    Raises:
        ValueError: the shards hold none of the sessions.
    """
    encoded = encode(model.encoder, read_sessions(shards, model.encoder.properties, session_ids), progress=progress)
    with torch.inference_mode():
        probability = model.calibrated(logits(model, encoded)).double().numpy()
    return PredictedSessions(encoded, probability)
