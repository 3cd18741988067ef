"""Fitting the network: the log loss on every prefix, early stopping, checkpoints that resume exactly.

Every prefix of every session is one prediction, and the loss is their mean. A loss on complete sessions only would
train for a situation that the service never has: the whole session is known.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.network import SessionModel
from training.config import FitSettings
from training.data.dataset import batches, event_indices, short_batches
from training.data.encoded import Encoded
from training.fit.checkpoint import Epoch, Fit, restore, store
from training.fit.objective import Objective, batch_of
from training.runtime.distributed import SINGLE_PROCESS, Workers

# Sessions a batch without gradients, and most events of one, padding included: bounds the memory for long sessions.
_EVALUATED_SESSIONS: Final = 512
MOST_EVALUATED_EVENTS: Final = 8192
# The learning rate warms up over the first epoch, or over so many steps of it.
_WARM_UP_STEPS: Final = 100
# Soft targets are smoother than outcomes and allow a higher rate; on few outcomes it would overfit (docs/recipe.md).
_SOFT_TARGETS_RATE: Final = 2.0


Progress = Callable[[int, int, Epoch | None], None]
"""Called with the epoch's number, the sessions done in it, and the epoch's result at its end."""


def logits(model: SessionModel, data: Encoded, *, batch_sessions: int = _EVALUATED_SESSIONS) -> Tensor:
    """Return the raw logit after each event, float32 [N], on the CPU."""
    device = str(model.feature_mean.device)
    result = torch.empty(len(data.features))
    objective = Objective(model).eval()
    with torch.inference_mode():
        for chosen in short_batches(data.columns.lengths, batch_sessions, MOST_EVALUATED_EVENTS):
            events, _ = event_indices(data.columns.offsets, chosen)
            result[events] = objective.logits(batch_of(data, chosen, device)).cpu()
    return result


def evaluate_loss(model: SessionModel, data: Encoded, device: str = "cpu", workers: Workers = SINGLE_PROCESS) -> float:
    """Return the mean log loss over all prefixes, in nats, the same in all processes."""
    return _mean_loss(Objective(model), data, device, workers)


def _mean_loss(objective: Objective, data: Encoded, device: str, workers: Workers) -> float:
    objective.eval()
    total, events = 0.0, 0
    with torch.inference_mode():
        parts = list(short_batches(data.columns.lengths, _EVALUATED_SESSIONS, MOST_EVALUATED_EVENTS))
        for chosen in parts[workers.rank :: workers.count]:
            batch = batch_of(data, chosen, device)
            total, events = total + float(objective(batch)), events + len(batch.outcome)
    total, count = workers.total(total, events)
    return total / count


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
    loss_to_beat: float = math.inf,
    workers: Workers = SINGLE_PROCESS,
    objective: Objective | None = None,
) -> Fit:
    """Fit the model in place and leave the weights of its best epoch in it.

    Args:
        model: fresh, its scaling set; moved to `device`.
        train: training sessions.
        validation: sessions for early stopping.
        settings: of the fit.
        device: `cpu` or `cuda`.
        checkpoint: file to write after each epoch.
        resume: continue from `checkpoint` if it exists; the run then ends as an uninterrupted one.
        identity: facts that the run of a checkpoint and this run must share.
        progress: see `Progress`.
        loss_to_beat: an epoch with a higher validation loss is not the best; the initial weights stay without one.
        workers: the processes of the run, each with the same model, data and settings.
        objective: the loss to minimise and to stop early by; None for the log loss against outcomes and soft targets,
            weighted as in `settings`. A few thousand outcomes alone are too noisy for early stopping.

    Raises:
        training.fit.checkpoint.CheckpointError: the checkpoint is damaged or of another run.
    """
    model.to(device)
    objective = (
        Objective(model, teacher_weight=settings.teacher_weight, mixed_precision=settings.mixed_precision)
        if objective is None
        else objective.to(device)
    )
    passes = settings.passes(len(train.columns.outcome))
    patience = settings.patience_of(passes)
    has_soft_targets = train.soft_targets is not None and objective.teacher_weight > 0
    rate = settings.learning_rate * (_SOFT_TARGETS_RATE if has_soft_targets else 1.0)
    optimisation = _Optimisation(objective, settings, passes, rate, device, workers)
    state = Fit(best_loss=loss_to_beat)
    best = _copied(model)
    identity = {**asdict(settings), **(identity or {})}
    # A run that stopped early may continue with more patience.
    del identity["patience"]
    if resume and checkpoint is not None and workers.broadcast(checkpoint.is_file()):
        state, best = restore(checkpoint, objective, optimisation.optimizer, identity, workers)
        state.stopped = _reason_to_stop(state, passes, patience)
    while not state.stopped:
        number = len(state.epochs) + 1
        started = time.perf_counter()
        train_loss, rate = optimisation.epoch(train, number, progress)
        validation_loss = _mean_loss(objective, validation, device, workers)
        epoch = Epoch(number, train_loss, validation_loss, rate, time.perf_counter() - started)
        state.epochs.append(epoch)
        if validation_loss < state.best_loss:
            state.best_loss, state.best_epoch = validation_loss, number
            best = _copied(model)
        state.stopped = _reason_to_stop(state, passes, patience)
        if checkpoint is not None and workers.first:
            store(checkpoint, objective, optimisation.optimizer, state, best, identity)
        if progress is not None:
            progress(number, len(train.columns.outcome), epoch)
    model.load_state_dict(best)
    model.eval()
    return state


class _Optimisation:
    """Minimises the loss by AdamW, each process with its share of every batch."""

    def __init__(
        self,
        objective: Objective,
        settings: FitSettings,
        passes: int,
        highest_rate: float,
        device: str,
        workers: Workers,
    ) -> None:
        self._objective = objective
        self._settings = settings
        self._passes = passes
        self._highest_rate = highest_rate
        self._device = device
        self._workers = workers
        self._parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._parameters, lr=highest_rate, weight_decay=settings.weight_decay, fused=True
        )
        self._loss: nn.Module = objective
        if workers.count > 1:
            # The buffers are vocabularies and scaling, which are equal everywhere and constant.
            self._loss = DistributedDataParallel(objective, forward_sync_buffers=False)

    def epoch(self, train: Encoded, number: int, progress: Progress | None) -> tuple[float, float]:
        """Run one epoch; return the mean loss of a prefix and the last learning rate."""
        settings, workers = self._settings, self._workers
        lengths = train.columns.lengths
        steps = math.ceil(len(lengths) / settings.batch_sessions)
        # Seeded by epoch, so that a resumed run draws the same numbers as an uninterrupted one. All processes share the
        # order; dropout differs.
        seed = settings.seed * 100_003 + number
        torch.manual_seed(seed + workers.rank * 1_000_000_007)
        generator = torch.Generator().manual_seed(seed)
        self._objective.train()
        rate, done = 0.0, 0
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for index, chosen in enumerate(
            batches(lengths, settings.batch_sessions, generator, bucket_batches=settings.bucket_batches)
        ):
            rate = _rate(self._highest_rate, (number - 1) * steps + index, steps, self._passes)
            total += self._step(train, chosen, int(lengths[chosen].sum()), rate)
            done += len(chosen)
            if progress is not None:
                progress(number, done, None)
        return workers.total(float(total))[0] / int(lengths.sum()), rate

    def _step(self, train: Encoded, chosen: Tensor, events: int, rate: float) -> Tensor:
        """Take one optimiser step; return this process's part of the summed loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        share = self._workers.share_of(chosen)
        # A process with an empty share must still take part in the exchange of gradients.
        batch = batch_of(train, share if len(share) else chosen[:1], self._device)
        loss: Tensor = self._loss(batch) * float(len(share) > 0)
        self.optimizer.zero_grad(set_to_none=True)
        # The mean over the whole batch: DDP divides the summed gradients by `count`.
        (loss * (self._workers.count / events)).backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
        torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.gradient_norm)
        self.optimizer.step()
        return loss.detach()


def _copied(model: SessionModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _reason_to_stop(state: Fit, passes: int, patience: int) -> str:
    """Return why no further epoch follows; empty where one does."""
    number, best = len(state.epochs), state.best_epoch
    if number - best >= patience:
        return (
            f"stopped early after {number} of {passes} passes: none of the last {patience} had a lower validation loss"
        )
    if number < passes:
        return ""
    if best == number > 1:
        return f"all {passes} passes done, and the last was the best: more may help (fit.epochs)"
    return f"all {passes} passes done"


def _rate(highest: float, step: int, steps_an_epoch: int, passes: int) -> float:
    warm_up = min(1.0, (step + 1) / min(steps_an_epoch, _WARM_UP_STEPS))
    share = step / (passes * steps_an_epoch)
    return highest * warm_up * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share)))
