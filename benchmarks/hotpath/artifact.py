"""A model to serve: trained for one pass on a small synthetic shop, at the size that the comparison is about."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.hotpath.processes import BenchmarkError
from benchmarks.hotpath.servers import ROOT
from model.compiled import compiled_digest

_SESSIONS: Final = 4000
# What it says does not matter here, what it costs does: one pass, no teacher, no comparison.
_QUICK: Final = ("fit.epochs=1", "pretraining.epochs=0", "teacher.folds=0")


def train_artifact(folder: Path, hidden_size: int) -> Path:
    """Return a new artifact in a folder; takes about a quarter of a minute.

    Raises:
        BenchmarkError: a command failed; the message has what it printed.
    """
    log, artifact = folder / "shop.parquet", folder / "model.pt"
    _willbuy("synthesize", "--sessions", str(_SESSIONS), "--seed", "1", "--out", str(log))
    settings = [part for setting in _QUICK for part in ("--set", setting)]
    sizes = ("--hidden-size", str(hidden_size))
    _willbuy("train", str(log), "--out", str(artifact), "--device", "cpu", "--no-lightgbm", *sizes, *settings)
    return artifact


def with_compiled_step(artifact: Path, folder: Path) -> Path:
    """Return the artifact with its compiled step: itself, or a copy in a folder; half a minute.

    Without a C++ compiler it is the artifact as it is.

    Raises:
        BenchmarkError: the command failed; the message has what it printed.
    """
    if compiled_digest(artifact) is not None or not any(map(shutil.which, ("g++", "clang++"))):
        return artifact
    compiled = folder / "compiled.pt"
    _willbuy("compile", str(artifact), "--out", str(compiled))
    return compiled


def _willbuy(*arguments: str) -> None:
    command = [sys.executable, "-m", "app", *arguments]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603  # all ours
    if told.returncode:
        raise BenchmarkError(f"willbuy {arguments[0]} failed:\n{told.stdout[-2000:]}{told.stderr[-2000:]}")
