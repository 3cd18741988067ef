"""A program for torchrun: processes train a model, stop after an epoch, and continue from the checkpoint.

torchrun --nproc-per-node 2 tests/support/resumed_workers.py PREPARED CHECKPOINT
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.network import SessionModel
from model.sizes import NetworkSizes
from training.config import FitSettings, TrainSettings
from training.data.encoded import scaling_of
from training.data.prepared import read_prepared
from training.data.training_set import load
from training.fit.checkpoint import Epoch, Fit
from training.fit.loop import fit
from training.runtime.distributed import join


class BrokenOffError(Exception):
    """Raised to interrupt a run."""


def break_off(number: int, done: int, epoch: Epoch | None) -> None:
    if epoch is not None:
        raise BrokenOffError


with join("cpu") as workers:
    torch.set_num_threads(1)
    data = load(read_prepared(Path(sys.argv[1])), TrainSettings(), workers=workers)
    train, validation = data.parts["train"], data.parts["validation"]
    settings = FitSettings(epochs=2, batch_sessions=32, teacher_weight=0.0)
    sizes = NetworkSizes(hidden_size=8, head_size=8, dropout=0.2)

    def run(**options: Any) -> tuple[Fit, SessionModel]:
        torch.manual_seed(0)
        model = SessionModel(data.encoder, sizes, scaling_of(train.features))
        return fit(model, train, validation, settings, workers=workers, **options), model

    checkpoint = Path(sys.argv[2])
    whole, expected = run()
    try:
        run(checkpoint=checkpoint, progress=break_off)
    except BrokenOffError:
        workers.wait()
    state, model = run(checkpoint=checkpoint, resume=True)
    # Dropout too was drawn by each process as it would have been.
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), expected.parameters(), strict=True))
    kept = [replace(epoch, seconds=0.0) for epoch in state.epochs]
    assert kept == [replace(epoch, seconds=0.0) for epoch in whole.epochs]
    assert workers.gather([epoch.validation_loss for epoch in kept]) == [[e.validation_loss for e in kept]] * 2
    # One write with its end of line: the processes share a pipe, where print's two writes may interleave.
    sys.stdout.write(f"process {workers.rank}: {len(kept)} epochs\n")
# `join` has ended the Gloo threads: one that needs the GIL while the interpreter exits aborts the process.
assert not [name for name in Path("/proc/self/task").glob("*/comm") if "gloo" in name.read_text()]
