"""The network's step on a GPU: one copy to the device, one launch, one copy back.

A step has six small tensors as inputs, four as outputs, and about a hundred small kernels. Separate copies would each
wait for the bus, and each kernel would be launched separately. So all inputs are in one buffer of pinned memory, the
step is one CUDA graph for each batch size, and the outputs return as one buffer
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

# Alignment of the parts of a buffer: enough for every type and for a GPU's widest load.
_ALIGNMENT_BYTES: Final = 256
# Runs before a graph is captured: torch's executor specialises in the second run of a size and is stable after the
# third.
_WARM_UP_RUNS: Final = 4


@dataclass(frozen=True, slots=True)
class _Buffer:
    """Tensors in one contiguous allocation, so that one copy transfers all of them."""

    whole: Tensor
    parts: tuple[Tensor, ...]

    @classmethod
    def like(cls, tensors: Sequence[Tensor], device: torch.device, *, pinned: bool = False) -> "_Buffer":
        """Return a buffer that has, for each tensor, a part of the same type and shape."""
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
    """The resources of one batch size: buffers on host and device, and the function that runs the step."""

    inputs: _Buffer
    device_inputs: _Buffer
    outputs: _Buffer
    device_outputs: _Buffer
    run: Callable[[], None]


class DeviceStep:
    """Runs a step on a device, for any batch size; the first call of a batch size prepares its buffers.

    Thread-safe: calls take turns, because they share the buffers.

    Args:
        step: takes and returns tensors on the device; their types and shapes depend only on the batch size.
        device: the device of the step.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self._step = step
        self._device = device
        self._is_gpu = device.type == "cuda"
        self._prepared: dict[int, _Prepared] = {}
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the outputs for inputs, both in host memory; call in inference mode."""
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
    """Return the replay of a CUDA graph of `run`; the tensors that `run` uses must not be reallocated."""
    # Capturing requires a separate stream.
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
