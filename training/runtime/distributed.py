"""One run on several processes, on one machine or several, as torchrun starts them.

Each process computes its share of every batch, and `DistributedDataParallel` averages the gradients, so that all
processes have equal weights after every step. Only the first process writes files. A failing process ends the others:
torchrun stops those of its machine, and a collective call with a lost process raises `WorkerError`.
"""

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

import torch
from torch import Tensor, distributed

_T = TypeVar("_T")

# Longest wait in a collective call: the first process may encode a large log or write a report meanwhile.
_TIMEOUT: Final = timedelta(hours=6)


class WorkerError(RuntimeError):
    """Another process of the run was lost."""


class DeviceError(ValueError):
    """There is no such GPU."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The processes of a run, from the view of one of them.

    Attributes:
        rank: number of this process, from 0 up.
        count: number of processes.
        local_rank, local_count: the same among the processes of this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def first_here(self) -> bool:
        """Whether this process is the first of its machine."""
        return self.local_rank == 0

    def share_of(self, items: Tensor) -> Tensor:
        """Return this process's share of the items: every `count`-th, so that shares of sorted items are alike."""
        return items[self.rank :: self.count]

    def total(self, *values: float) -> list[float]:
        """Return each value's sum over all processes, bitwise equal in all of them."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        with _lost_peer_as_worker_error():
            distributed.all_reduce(sums)
            # Broadcast too, as early stopping must decide alike in all processes.
            distributed.broadcast(sums, 0)
        result: list[float] = sums.tolist()
        return result

    def gather(self, value: _T) -> list[_T]:
        """Return every process's value, by rank."""
        if self.count == 1:
            return [value]
        values: list[_T] = [value] * self.count
        with _lost_peer_as_worker_error():
            distributed.all_gather_object(values, value)
        return values

    def broadcast(self, value: _T) -> _T:
        """Return the first process's value."""
        if self.count == 1:
            return value
        values = [value]
        with _lost_peer_as_worker_error():
            distributed.broadcast_object_list(values, 0, device=torch.device("cpu"))
        return values[0]

    def wait(self) -> None:
        """Wait until all processes have called this (a barrier)."""
        self.total(0.0)


SINGLE_PROCESS: Final = Workers()


def device_of(name: str, workers: Workers = SINGLE_PROCESS) -> str:
    """Return the device of a process: `auto` is a GPU where there is one, and each process has its own GPU.

    Raises:
        DeviceError: there is no such GPU.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cuda":
        return name
    if not torch.cuda.is_available():
        raise DeviceError("device: expected cpu or auto, not cuda: torch sees no GPU here")
    if workers.local_rank >= torch.cuda.device_count():
        raise DeviceError(
            f"device: {workers.local_count} processes for {torch.cuda.device_count()} GPUs; "
            "start torchrun with as many processes a machine as it has GPUs"
        )
    return f"cuda:{workers.local_rank}" if workers.count > 1 else "cuda"


@contextmanager
def join(device: str = "auto") -> Iterator[Workers]:
    """Join the processes that torchrun started, and yield them; without torchrun, `SINGLE_PROCESS`.

    Args:
        device: as in `device_of`; GPUs communicate by NCCL, CPUs by Gloo.

    Raises:
        WorkerError: another process was lost.
        DeviceError: there is no such GPU.
    """
    environment = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in environment) or os.environ["WORLD_SIZE"] == "1":
        yield SINGLE_PROCESS
        return
    workers = Workers(*(int(os.environ[name]) for name in environment))
    place = device_of(device, workers)
    if place.startswith("cuda"):
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if place.startswith("cuda") else "gloo"
    # Its functions have the default argument `group=group.WORLD`. `DistributedDataParallel` imports it: after
    # `init_process_group` that default would keep the process group and its Gloo threads alive until the interpreter
    # exits, and a thread that then needs the GIL aborts the process.
    importlib.import_module("torch.distributed.nn.functional")
    with _lost_peer_as_worker_error():
        distributed.init_process_group(backend, timeout=_TIMEOUT)
        yield workers
        # Not after an error: another process may be blocked in a collective call, and this call would block too.
        distributed.destroy_process_group()


@contextmanager
def _lost_peer_as_worker_error() -> Iterator[None]:
    """Turn the errors of Gloo and NCCL about a lost peer into `WorkerError`."""
    try:
        yield
    except WorkerError:
        raise
    except RuntimeError as exc:
        if not any(word in str(exc) for word in _LOST):
            raise
        raise WorkerError("another process of this run is gone; its own message has the reason") from exc


_LOST: Sequence[str] = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
