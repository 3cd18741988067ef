"""Storage for tensors that may be larger than memory: in memory, or in memory-mapped files.

A file is unlinked as soon as every process has it open, so its disk space is freed when the run ends, also by a crash.
Pages of files that were read or written are given back to the kernel, so that they do not add up to the whole file.
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
from typing import Final, Protocol

import torch
from torch import Tensor

from training.runtime.distributed import SINGLE_PROCESS, Workers

# A page fault maps up to 64 KiB, so that the sessions of so many events may bring some hundred MB into memory.
_RELEASED_AFTER_EVENTS: Final = 16_384


class Storage(Protocol):
    """Allocates uninitialised tensors."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a new tensor."""

    def touched(self, events: int) -> None:
        """Note that so many events were read or written; the storage may give back their pages."""


class Memory:
    """Tensors in memory."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a new tensor."""
        return torch.empty(list(shape), dtype=dtype)

    def touched(self, events: int) -> None:
        """Do nothing."""


class Files:
    """Tensors in files that the processes of one machine share; all must allocate the same tensors in one order."""

    def __init__(self, folder: Path, workers: Workers = SINGLE_PROCESS) -> None:
        self._folder = folder
        self._workers = workers
        self._maps: list[mmap.mmap] = []
        self._touched = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a new tensor.

        Raises:
            OSError: the disk is full.
        """
        size = math.prod(shape)
        if not size:
            return torch.empty(list(shape), dtype=dtype)
        path = self._folder / f"{len(self._maps):03d}"
        if self._workers.first_here:
            _reserve(path, size * dtype.itemsize)
        self._workers.wait()
        mapped = _mapped(path)
        self._maps.append(mapped)
        return torch.frombuffer(mapped, dtype=dtype).reshape(list(shape))

    def touched(self, events: int) -> None:
        """Note that so many events were read or written, and from time to time give back the pages of all tensors.

        The values stay: the kernel has them in its page cache or writes them to the file.
        """
        self._touched += events
        if self._touched >= _RELEASED_AFTER_EVENTS and sys.platform == "linux":
            self._touched = 0
            for mapped in self._maps:
                mapped.madvise(mmap.MADV_DONTNEED)


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
