"""One run on several processes, of one machine or of several, as torchrun starts them.

Each process works on its part of every batch and gradients are averaged (`DistributedDataParallel`), so that the
weights are the same everywhere after every step. Only the first process writes. A process that fails ends the others:
torchrun stops those of its machine, and a call that waits for the lost one fails with `WorkerError`.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

import torch
from torch import Tensor, distributed

_T = TypeVar("_T")

# The longest that a process may be alone with its work: the first one encodes a large log, or writes a report.
_TIMEOUT: Final = timedelta(hours=6)


class WorkerError(RuntimeError):
    """Another process of the run is gone."""


class DeviceError(ValueError):
    """There is no such GPU."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The processes of a run, as one of them sees them.

    Attributes:
        rank: this one's number among all, from 0 up.
        count: how many there are.
        local_rank, local_count: the same, of those on this machine.
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
        """Return this process's part of the items, alike for all in length and kind where the items are sorted."""
        return items[self.rank :: self.count]

    def total(self, *values: float) -> list[float]:
        """Return each value's sum over all processes, the same in all of them."""
        if self.count == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        with _lost_peer_as_worker_error():
            distributed.all_reduce(sums)
            # To the last bit: whether to stop is decided by it.
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
        """Wait until all processes have come here."""
        self.total(0.0)


SINGLE_PROCESS: Final = Workers()


def device_of(name: str, workers: Workers = SINGLE_PROCESS) -> str:
    """Return the device that a process computes on: `auto` is a GPU where there is one, and each process has its own.

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
    """Meet the other processes that torchrun started; alone where it did not.

    Args:
        device: as in `device_of`; GPUs talk by NCCL, CPUs by Gloo.

    Raises:
        WorkerError: another process is gone.
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
    with _lost_peer_as_worker_error():
        distributed.init_process_group(backend, timeout=_TIMEOUT)
        yield workers
        # Not after an error: others may be waiting in a call that this would wait for.
        distributed.destroy_process_group()


@contextmanager
def _lost_peer_as_worker_error() -> Iterator[None]:
    """Turn what Gloo and NCCL say of a lost peer into one sentence."""
    try:
        yield
    except WorkerError:
        raise
    except RuntimeError as exc:
        if not any(word in str(exc) for word in _LOST):
            raise
        raise WorkerError("another process of this run is gone; what it said before tells why") from exc


_LOST: Sequence[str] = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
