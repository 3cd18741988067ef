"""The state of a training run on disk, so that a run that was broken off ends as if it had not been."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.runtime.distributed import SINGLE_PROCESS, WorkerError, Workers


class CheckpointError(ValueError):
    """A checkpoint that cannot be resumed from; the message says why."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one pass came to; losses are log losses in nats a prefix."""

    number: int
    train_loss: float
    validation_loss: float
    learning_rate: float
    seconds: float


@dataclass(slots=True)
class Fit:
    """Progress of a run, and what a checkpoint holds."""

    epochs: list[Epoch] = field(default_factory=list)
    best_loss: float = math.inf
    best_epoch: int = 0
    finished: bool = False


def store(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Fit,
    best: dict[str, Tensor],
    identity: dict[str, Any],
) -> None:
    """Write everything that a run needs to go on; the file is replaced whole.

    Args:
        path: where to.
        model: what is trained, as of the last epoch.
        optimizer: its.
        state: progress.
        best: weights of the best epoch.
        identity: what `restore` must find equal.
    """
    temporary = path.with_name(f".{path.name}.writing")
    torch.save(
        {
            "identity": identity,
            "state": {**asdict(state), "epochs": [asdict(epoch) for epoch in state.epochs]},
            "model": model.state_dict(),
            "best": best,
            "optimizer": optimizer.state_dict(),
        },
        temporary,
    )
    temporary.replace(path)


def restore(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
    workers: Workers = SINGLE_PROCESS,
) -> tuple[Fit, dict[str, Tensor]]:
    """Read what `store` wrote into model and optimizer; return the progress and the best weights.

    Of several processes, the first reads the file and tells the others, which may be on machines without it.

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
        "leave out --resume to start anew, or give the same data and settings"
    )
