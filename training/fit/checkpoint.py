"""Checkpoints: a resumed run ends exactly as an uninterrupted one."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.atomic_write import replacing
from training.runtime.distributed import SINGLE_PROCESS, WorkerError, Workers


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed; the message has the reason."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The result of one epoch; losses are log losses in nats a prefix."""

    number: int
    train_loss: float
    validation_loss: float
    learning_rate: float
    seconds: float


@dataclass(slots=True)
class Fit:
    """Progress of a run, as a checkpoint holds it; `stopped` has the reason why no further epoch follows."""

    epochs: list[Epoch] = field(default_factory=list)
    best_loss: float = math.inf
    best_epoch: int = 0
    stopped: str = ""


def store(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Fit,
    best: dict[str, Tensor],
    identity: dict[str, Any],
) -> None:
    """Write everything that a run needs to continue; the file is replaced atomically.

    Args:
        path: the file.
        model: the trained module, as of the last epoch.
        optimizer: of the model.
        state: progress.
        best: weights of the best epoch.
        identity: facts that a resuming run must share.
    """
    content = {
        "identity": identity,
        "state": {**asdict(state), "epochs": [asdict(epoch) for epoch in state.epochs]},
        "model": model.state_dict(),
        "best": best,
        "optimizer": optimizer.state_dict(),
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)


def restore(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
    workers: Workers = SINGLE_PROCESS,
) -> tuple[Fit, dict[str, Tensor]]:
    """Load a checkpoint into model and optimizer; return the progress and the best weights.

    The first process reads the file and broadcasts it, as other machines may not have it.

    Raises:
        CheckpointError: the file is damaged, or of a run with another identity.
    """
    try:
        file: Any = torch.load(path, weights_only=True, map_location="cpu") if workers.first else None
        saved = workers.broadcast(file)
        differing = sorted(key for key in identity if saved["identity"].get(key) != identity[key])
        if not differing:
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            epochs = [Epoch(**epoch) for epoch in saved["state"]["epochs"]]
            return Fit(**{**saved["state"], "epochs": epochs}), saved["best"]
    except WorkerError:
        raise
    except Exception as exc:  # unpickling a damaged file may raise nearly anything
        raise CheckpointError(f"{path}: not a readable checkpoint ({type(exc).__name__}); leave out --resume") from exc
    raise CheckpointError(
        f"{path}: was written by another run ({', '.join(differing)} differ); "
        "leave out --resume to start again, or give the same data and settings"
    )
