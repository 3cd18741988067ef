"""Storage for tensors that may be larger than memory: in memory, or in memory-mapped files.

A file is unlinked as soon as every process has it open, so its disk space is freed when the run ends, also by a crash.
"""

import math
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from training.runtime.distributed import SINGLE_PROCESS, Workers


class Storage(Protocol):
    """Allocates uninitialised tensors."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a new tensor."""


class Memory:
    """Tensors in memory."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a new tensor."""
        return torch.empty(list(shape), dtype=dtype)


class Files:
    """Tensors in files that the processes of one machine share; all must allocate the same tensors in one order."""

    def __init__(self, folder: Path, workers: Workers = SINGLE_PROCESS) -> None:
        self._folder = folder
        self._workers = workers
        self._count = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a new tensor.

        Raises:
            OSError: the disk is full.
        """
        size = math.prod(shape)
        if not size:
            return torch.empty(list(shape), dtype=dtype)
        path = self._folder / f"{self._count:03d}"
        self._count += 1
        if self._workers.first_here:
            _reserve(path, size * dtype.itemsize)
        self._workers.wait()
        return torch.frombuffer(_mapped(path), dtype=dtype).reshape(list(shape))


@contextmanager
def files(parent: Path | None, workers: Workers = SINGLE_PROCESS) -> Iterator[Files]:
    """Yield storage in files; tensors allocated inside the `with` stay usable after it, though the files are unlinked.

    Args:
        parent: folder on a disk with enough space; None for the system's folder for temporary files.
        workers: the processes of the run, all of which must call this.

    Raises:
        OSError: the folder does not exist or is not writable.
    """
    folder = tempfile.mkdtemp(prefix=".willbuy-", dir=parent) if workers.first_here else ""
    try:
        # Each machine has its own folder, made by its first process.
        shared = workers.gather(folder)[workers.rank - workers.local_rank]
        yield Files(Path(shared), workers)
        workers.wait()
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    if sys.platform != "win32":
        # A batch reads a few scattered kB: read-ahead would load many times as much in vain.
        mapped.madvise(mmap.MADV_RANDOM)
    return mapped


def _reserve(path: Path, size_bytes: int) -> None:
    """Create a file and reserve its disk space, so that a full disk is an error here and not a crash later."""
    with path.open("xb") as file:
        if sys.platform == "linux":
            os.posix_fallocate(file.fileno(), 0, size_bytes)
        else:
            file.truncate(size_bytes)
