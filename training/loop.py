"""Fitting the network: the log loss on every prefix, early stopping, checkpoints that resume exactly.

Every prefix of every session is one prediction, and the loss is their mean. A loss on complete sessions only would
teach the network to know what it will not know when asked.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from model.encoder import Encoder
from model.network import FeatureScaling, SessionModel
from training.checkpoint import Epoch, Fit, restore, store
from training.dataset import Columns, batches, padded

# A feature that deviates less than this is constant.
_CONSTANT: Final = 1e-6


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a network is fitted.

    Attributes:
        epochs: passes over the training sessions at most.
        patience: epochs without a better validation loss before it stops.
        batch_sessions: sessions a step.
        learning_rate: highest rate of AdamW; warms up over the first epoch, then falls along a cosine.
        weight_decay: AdamW's, decoupled.
        gradient_norm: longer gradients are clipped to this.
        bucket_batches: see `training.dataset.batches`.
        seed: of weights, order and dropout. Same seed, same result on the same CPU build.
    """

    epochs: int = 30
    patience: int = 5
    batch_sessions: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    gradient_norm: float = 1.0
    bucket_batches: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch_sessions", "bucket_batches"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a whole number from 1 up, not {getattr(self, name)}")
        for name in ("learning_rate", "gradient_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number above 0, not {getattr(self, name)}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay: expected a number from 0 up, not {self.weight_decay}")


@dataclass(slots=True)
class Encoded:
    """Sessions as the network's inputs: features float32 [N, F], indices int64 [N, I], and their layout."""

    features: Tensor
    indices: Tensor
    columns: Columns


Progress = Callable[[int, int, Epoch | None], None]
"""Called with the epoch's number, sessions done in it, and the epoch when it is over."""


def encode(
    encoder: Encoder, columns: Columns, *, batch_sessions: int = 2048, progress: Callable[[int], None] | None = None
) -> Encoded:
    """Fold the encoder over all sessions once; it has no weights, so its features stay true while training goes on.

    Args:
        encoder: with the vocabularies of the training sessions.
        columns: S sessions.
        batch_sessions: sessions folded at once.
        progress: called with the number of sessions done since the last call.
    """
    total = len(columns.timestamp_ms)
    features = torch.empty((total, len(encoder.feature_names)), dtype=torch.float32)
    indices = torch.empty((total, len(encoder.index_names)), dtype=torch.int64)
    with torch.inference_mode():
        for chosen in batches(columns.lengths, batch_sessions, None):
            lengths = columns.lengths[chosen]
            inside = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
            chunk_features, chunk_indices = encoder.sequence(
                padded(columns.timestamp_ms, columns.offsets, chosen),
                padded(columns.codes, columns.offsets, chosen),
                padded(columns.numbers, columns.offsets, chosen),
            )
            target = (columns.offsets[chosen].unsqueeze(1) + torch.arange(inside.size(1)))[inside]
            features[target] = chunk_features[inside]
            indices[target] = chunk_indices[inside]
            if progress is not None:
                progress(len(chosen))
    return Encoded(features, indices, columns)


def scaling_of(features: Tensor, *, bins: int = 12, sample: int = 100_000, seed: int = 0) -> FeatureScaling:
    """Return mean, deviation and quantile bins of the training features [N, F].

    Args:
        features: of every prefix of the training sessions, and of no other.
        bins: quantile bins a feature at most; those of no width (half of all carts are empty) are left out.
        sample: prefixes that the quantiles are read from at most.
        seed: of that sample.
    """
    deviation, mean = torch.std_mean(features.double(), dim=0, correction=0)
    # A constant feature stays zero after centring; scale 1 keeps a later, different value finite.
    deviation = torch.where(deviation > _CONSTANT, deviation, 1.0)
    chosen = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:sample]
    quantiles = torch.quantile(features[chosen], torch.linspace(0, 1, bins + 1), dim=0).t()
    low, width = quantiles[:, :-1], quantiles.diff()
    wide = width > _CONSTANT
    feature = torch.arange(len(quantiles)).unsqueeze(1).expand(wide.shape)
    if not wide.any():
        return replace(FeatureScaling.identity(features.size(1)), mean=mean.float(), deviation=deviation.float())
    return FeatureScaling(mean.float(), deviation.float(), feature[wide], low[wide], width[wide])


def logits(model: SessionModel, data: Encoded, *, batch_sessions: int = 512) -> Tensor:
    """Return the raw logit after each event, float32 [N], on the CPU."""
    device = model.feature_mean.device
    result = torch.empty(len(data.features))
    model.eval()
    with torch.inference_mode():
        for chosen in batches(data.columns.lengths, batch_sessions, None):
            features, indices, inside = _batch(data, chosen)
            values = model.sequence_logits(features.to(device), indices.to(device)).cpu()
            target = (data.columns.offsets[chosen].unsqueeze(1) + torch.arange(inside.size(1)))[inside]
            result[target] = values[inside]
    return result


def fit(
    model: SessionModel,
    train: Encoded,
    validation: Encoded,
    settings: FitSettings,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    resume: bool = False,
    identity: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> Fit:
    """Fit the model in place and leave the weights of its best epoch in it.

    Args:
        model: fresh, its scaling set; moved to `device`.
        train: training sessions.
        validation: sessions for early stopping.
        settings: how.
        device: `cpu` or `cuda`.
        checkpoint: written after each epoch where given.
        resume: go on from `checkpoint` if it is there; the run then ends as one without a break would have.
        identity: what must be equal between the run that wrote a checkpoint and this one.
        progress: see `Progress`.

    Raises:
        training.checkpoint.CheckpointError: the checkpoint is damaged or of another run.
    """
    model.to(device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps_an_epoch = math.ceil(len(train.columns.outcome) / settings.batch_sessions)
    state = Fit()
    best = {name: value.detach().clone() for name, value in model.state_dict().items()}
    identity = {**asdict(settings), **(identity or {})}
    # A run that stopped early may go on with more patience.
    del identity["patience"]
    if resume and checkpoint is not None and checkpoint.is_file():
        state, best = restore(checkpoint, model, optimizer, identity)
        state.finished = _is_over(state, settings)
    while not state.finished:
        number = len(state.epochs) + 1
        started = time.perf_counter()
        rate = 0.0
        # Seeded by epoch, so that a resumed run draws what an uninterrupted one would have drawn.
        torch.manual_seed(settings.seed * 100_003 + number)
        generator = torch.Generator().manual_seed(settings.seed * 100_003 + number)
        model.train()
        total, events, done = 0.0, 0, 0
        for index, chosen in enumerate(
            batches(train.columns.lengths, settings.batch_sessions, generator, bucket_batches=settings.bucket_batches)
        ):
            rate = _rate(settings, (number - 1) * steps_an_epoch + index, steps_an_epoch)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss, count = _loss(model, train, chosen, device)
            optimizer.zero_grad(set_to_none=True)
            (loss / count).backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
            torch.nn.utils.clip_grad_norm_(parameters, settings.gradient_norm)
            optimizer.step()
            total, events, done = total + float(loss.detach()), events + count, done + len(chosen)
            if progress is not None:
                progress(number, done, None)
        epoch = Epoch(
            number, total / events, evaluate_loss(model, validation, device), rate, time.perf_counter() - started
        )
        state.epochs.append(epoch)
        if epoch.validation_loss < state.best_loss:
            state.best_loss, state.best_epoch = epoch.validation_loss, number
            best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        state.finished = _is_over(state, settings)
        if checkpoint is not None:
            store(checkpoint, model, optimizer, state, best, identity)
        if progress is not None:
            progress(number, done, epoch)
    model.load_state_dict(best)
    model.eval()
    return state


def evaluate_loss(model: SessionModel, data: Encoded, device: str = "cpu") -> float:
    """Return the mean log loss over all prefixes, in nats."""
    model.eval()
    total, events = 0.0, 0
    with torch.inference_mode():
        for chosen in batches(data.columns.lengths, 512, None):
            loss, count = _loss(model, data, chosen, device)
            total, events = total + float(loss), events + count
    return total / events


def _is_over(state: Fit, settings: FitSettings) -> bool:
    number = len(state.epochs)
    return number >= settings.epochs or number - state.best_epoch >= settings.patience


def _rate(settings: FitSettings, step: int, steps_an_epoch: int) -> float:
    warm_up = min(1.0, (step + 1) / steps_an_epoch)
    share = step / (settings.epochs * steps_an_epoch)
    return settings.learning_rate * warm_up * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))


def _batch(data: Encoded, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    offsets = data.columns.offsets
    features = padded(data.features, offsets, chosen)
    inside = torch.arange(features.size(1)) < data.columns.lengths[chosen].unsqueeze(1)
    return features, padded(data.indices, offsets, chosen), inside


def _loss(model: SessionModel, data: Encoded, chosen: Tensor, device: str) -> tuple[Tensor, int]:
    """Return the summed log loss over the prefixes of the chosen sessions, and how many those are."""
    features, indices, inside = _batch(data, chosen)
    raw = model.sequence_logits(features.to(device), indices.to(device))
    outcome = data.columns.outcome[chosen].unsqueeze(1).expand(inside.shape)
    inside_there = inside.to(device)
    loss = functional.binary_cross_entropy_with_logits(
        raw[inside_there], outcome.to(device)[inside_there], reduction="sum"
    )
    return loss, int(inside.sum())
