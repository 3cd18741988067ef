"""The network's step on a device that has a memory of its own: one copy there, one launch, one copy back.

A step's inputs are six small tensors and its outputs four. Copied one by one each waits for the bus, and a step is some
hundred small kernels, each launched for itself. So all inputs lie one after another in one buffer of pinned memory, the
step between the two copies is one CUDA graph for each batch size, and the outputs come back as one buffer
(https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs).
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import torch
from torch import Tensor

Step = Callable[..., tuple[Tensor, ...]]

# Where parts of a buffer begin: a multiple of what any type, and a GPU's widest load, asks for.
_ALIGNMENT_BYTES: Final = 256
# Runs before a graph is captured: torch's executor specialises in the second run of a size and settles in the third.
_WARM_UP_RUNS: Final = 4


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Tensors that lie one after another, so that they can be copied at once."""

    whole: Tensor
    parts: tuple[Tensor, ...]

    @classmethod
    def like(cls, tensors: Sequence[Tensor], device: torch.device, *, pinned: bool = False) -> "_Buffer":
        """Return a buffer with a part of the type and shape of each tensor."""
        sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
        aligned = [-(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES for size in sizes]
        ends = list(accumulate(aligned, initial=0))
        whole = torch.empty(ends[-1], dtype=torch.uint8, device=device, pin_memory=pinned)
        parts = tuple(
            whole[start : start + size].view(tensor.dtype).view(tensor.shape)
            for tensor, start, size in zip(tensors, ends[:-1], sizes, strict=True)
        )
        return cls(whole, parts)

    def fill(self, tensors: Sequence[Tensor]) -> None:
        """Copy each tensor into its part."""
        for part, tensor in zip(self.parts, tensors, strict=True):
            part.copy_(tensor)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a batch size needs: buffers on both sides, and what runs the step from one to the other."""

    inputs: _Buffer
    device_inputs: _Buffer
    outputs: _Buffer
    device_outputs: _Buffer
    run: Callable[[], None]


class DeviceStep:
    """Runs a step on a device, for any batch size; each is prepared when it comes first.

    Several threads may call it; they take turns, as the buffers are used again.

    Args:
        step: what is run; takes and gives tensors on the device, whose types and shapes depend on the batch size alone.
        device: of the step.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self._step = step
        self._device = device
        self._is_gpu = device.type == "cuda"
        self._prepared: dict[int, _Prepared] = {}
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the outputs for inputs, both in the host's memory; to be called in inference mode."""
        with self._lock:
            size = inputs[0].size(0)
            prepared = self._prepared.get(size)
            if prepared is None:
                prepared = self._prepared[size] = self._prepare(inputs)
            prepared.inputs.fill(inputs)
            prepared.device_inputs.whole.copy_(prepared.inputs.whole, non_blocking=True)
            prepared.run()
            prepared.outputs.whole.copy_(prepared.device_outputs.whole, non_blocking=True)
            if self._is_gpu:
                torch.cuda.current_stream(self._device).synchronize()
            return tuple(part.clone() for part in prepared.outputs.parts)

    def _prepare(self, inputs: Sequence[Tensor]) -> _Prepared:
        host = torch.device("cpu")
        device_inputs = _Buffer.like(inputs, self._device)
        device_inputs.fill(inputs)
        found = self._step(*device_inputs.parts)
        device_outputs = _Buffer.like(found, self._device)

        def run() -> None:
            device_outputs.fill(self._step(*device_inputs.parts))

        return _Prepared(
            _Buffer.like(inputs, host, pinned=self._is_gpu),
            device_inputs,
            _Buffer.like(found, host, pinned=self._is_gpu),
            device_outputs,
            _captured(run, self._device) if self._is_gpu else run,
        )


def _captured(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Return a CUDA graph of what is run; its tensors must stay where they are."""
    # On a stream of its own, as capturing asks for.
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch ships it untyped
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP_RUNS):
            run()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    replay: Callable[[], None] = graph.replay
    return replay
