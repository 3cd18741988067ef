"""StorageBudget for tensors that may be larger than memory: in memory, or in files that the system pages in and out.

A file loses its name as soon as every process that needs it has it open, so that its disk space comes back when the
run ends, however it ends.
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
    """Hands out tensors whose content is yet to be written."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a new tensor."""


class Memory:
    """Tensors in memory."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a new tensor."""
        return torch.empty(list(shape), dtype=dtype)


class Files:
    """Tensors in files of one folder, which the processes of one machine share: all ask for the same, in one order."""

    def __init__(self, folder: Path, workers: Workers = SINGLE_PROCESS) -> None:
        self._folder = folder
        self._workers = workers
        self._count = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a new tensor.

        Raises:
            OSError: the disk has no room for it.
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
    """Give room in files; what was asked for inside the `with` stays usable after it, though the names are gone.

    Args:
        parent: folder on a disk with enough room; None for the system's folder for temporary files.
        workers: the processes of the run, which must all come here together.

    Raises:
        OSError: there is no such folder, or no right to write there.
    """
    folder = tempfile.mkdtemp(prefix=".willbuy-", dir=parent) if workers.first_here else ""
    try:
        # Every machine has a folder of its own, known to its first process.
        shared = workers.gather(folder)[workers.rank - workers.local_rank]
        yield Files(Path(shared), workers)
        workers.wait()
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("r+b") as file:
        room = mmap.mmap(file.fileno(), 0)
    if sys.platform != "win32":
        # A batch is a few kB here and there: reading ahead would bring in many times as much, and throw it away.
        room.madvise(mmap.MADV_RANDOM)
    return room


def _reserve(path: Path, size_bytes: int) -> None:
    """Make a file of that size, and have the disk keep the room: a full disk is an error here, not a crash later."""
    with path.open("xb") as file:
        if sys.platform == "linux":
            os.posix_fallocate(file.fileno(), 0, size_bytes)
        else:
            file.truncate(size_bytes)
