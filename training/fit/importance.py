"""Permutation importance of groups of inputs (Breiman 2001; Fisher et al. 2019): what the model loses without them.

The encoded inputs of one group are exchanged among all events of the sessions, all columns of the group together. So
the group keeps its distribution and loses its relation to the session. The increase of the log loss is the importance.
Groups that know the same share it: exchanging one of them costs little while the other is there.

Shape legend: N events of S sessions.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.explain import group_of
from model.network import SessionModel
from training.config import EVALUATE_RESAMPLES
from training.data.encoded import Encoded
from training.evaluation.metrics import log_losses
from training.evaluation.resampling import ClusterMean, Estimate, estimate, once, resample
from training.fit.loop import logits

MOST_EVENTS: Final = 15_000
"""Events that are looked at: the intervals of so many are narrow enough to rank the groups."""

# Their mean is less noisy than one permutation.
_PERMUTATIONS: Final = 2


@dataclass(frozen=True, slots=True)
class Importance:
    """What the model loses without a group of inputs.

    Attributes:
        group: `event`, `time`, `item`, and so on, as in `model.explain`.
        log_loss: increase of the log loss over all prefixes, in nats, with its 95 % interval over sessions.
    """

    group: str
    log_loss: Estimate


def groups_of(model: SessionModel) -> dict[str, tuple[list[int], list[int]]]:
    """Return the columns of features and of indices of each group that the model has."""
    groups: dict[str, tuple[list[int], list[int]]] = {}
    for kind, names in enumerate((model.encoder.feature_names, model.encoder.index_names)):
        for column, name in enumerate(names):
            groups.setdefault(group_of(name), ([], []))[kind].append(column)
    return groups


def permutation_importance(
    model: SessionModel,
    data: Encoded,
    *,
    resamples: int = EVALUATE_RESAMPLES,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[Importance]:
    """Return the importance of each group of inputs, the largest first.

    Args:
        model: fitted and calibrated.
        data: sessions that it has not seen; a random sample represents more than 15,000 events.
        resamples: of the bootstrap.
        seed: of sample, permutations and bootstrap.
        progress: called with each group before its turn.
    """
    data = data.sample(MOST_EVENTS, seed)
    session = data.columns.session_index().numpy()
    outcome = data.columns.outcome.numpy()[session]
    sessions = len(data.columns.outcome)
    chance = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(data.features), generator=chance) for _ in range(_PERMUTATIONS)]
    intact = _losses(model, data, outcome)
    means: dict[str, ClusterMean] = {}
    for group, (features, indices) in groups_of(model).items():
        if progress is not None:
            progress(group)
        losses = [
            _losses(
                model,
                replace(
                    data,
                    features=_exchanged(data.features, features, order),
                    indices=_exchanged(data.indices, indices, order),
                ),
                outcome,
            )
            for order in orders
        ]
        means[group] = ClusterMean(np.mean(losses, axis=0) - intact, session, sessions)
    drawn = resample(list(means.values()), sessions, resamples=resamples, seed=seed)
    found = [
        Importance(group, estimate(float(once(mean, sessions)["mean"]), values["mean"]))
        for (group, mean), values in zip(means.items(), drawn, strict=True)
    ]
    return sorted(found, key=lambda one: -(one.log_loss.value or 0.0))


def _exchanged(values: Tensor, columns: list[int], order: Tensor) -> Tensor:
    """Return the values [N, ...] with some columns in another order of events."""
    if not columns:
        return values
    exchanged = values.clone()
    exchanged[:, columns] = values[order][:, columns]
    return exchanged


def _losses(model: SessionModel, data: Encoded, outcome: NDArray[np.float64]) -> NDArray[np.float64]:
    with torch.inference_mode():
        raw = logits(model, data).to(model.bias.device)
        return log_losses(outcome, model.calibrated(raw).cpu().double().numpy())
