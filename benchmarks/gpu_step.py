"""Time of a step by batch size, on the CPU with TorchScript and, if torch sees one, on the GPU.

    python -m benchmarks.gpu_step                          # trains a small model first
    python -m benchmarks.gpu_step --artifact model.pt --out gpu_step.json

Three times are measured: `Predictor.advance` as the service calls it, from bytes to bytes; the network alone, on
tensors that are already on the device; and, on a GPU, the copies to and from it, by torch's profiler. The rest of
`advance` is packing of bytes and Python.

The floor is a lower bound of a step: the bytes that must move, each once, at the bandwidth of a plain copy on this
machine. On a CPU these are the weights and the states in and out. On a GPU these are states and columns over the bus in
pinned memory, then weights and states in the device's memory.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any, Final

import torch
import typer
from rich.console import Console
from torch import Tensor

from benchmarks.hotpath.artifact import train_artifact
from benchmarks.hotpath.machine import machine
from benchmarks.hotpath.processes import BenchmarkError
from benchmarks.hotpath.results import (
    DOCUMENT,
    JSON_FILE,
    machine_line,
    markdown_table,
    write_markdown,
    write_section,
)
from model.artifact import ArtifactError, load
from model.cells import pack_for_cpu
from model.columns import columns_from_events
from model.events import Event
from model.predictor import Predictor
from training.commands.console import errors_for_people
from training.commands.stages import stage
from training.synthetic import PRESETS, sessions

BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
_HIDDEN_SIZE: Final = 128
_WARM_UPS: Final = 5
_LEAST_RUNS: Final = 15
_LEAST_S: Final = 0.4
_COPIED_BYTES: Final = 256 * 2**20
_MICROSECONDS: Final = 1e6
_OUT: Final = Console()


@dataclass(frozen=True, slots=True)
class Step:
    """Times of a step of so many sessions.

    Attributes:
        device: `cpu` or `cuda`.
        batch: sessions.
        advance_us: from events and bytes to probabilities and bytes, median.
        network_us: the network alone, on tensors on the device, median.
        copies_us: to and from the GPU; None on the CPU.
        floor_us: see the module's docstring.
    """

    device: str
    batch: int
    advance_us: float
    network_us: float
    copies_us: float | None
    floor_us: float

    @property
    def events_per_s(self) -> float:
        """Events a second if batches follow one another."""
        return self.batch / self.advance_us * _MICROSECONDS


class Device:
    """One device: predictor, bare network and bandwidth."""

    def __init__(self, artifact: Path, name: str, largest: int) -> None:
        self.name = name
        torch.set_num_threads(1)
        script, self._manifest = load(artifact)
        # Without a compiled step, of which there is none for the largest batches.
        self.predictor = Predictor(script, self._manifest, device=name, state_dtype="float16", max_batch_size=largest)
        module, _ = load(artifact)
        self.module = module.to(name)
        if name == "cpu":
            pack_for_cpu(self.module.lstm)  # as the predictor does; else the part would take longer than the whole
        self._weight_bytes = sum(weight.numel() * weight.element_size() for weight in module.parameters())
        self.memory_bytes_per_s = self._copy_rate(torch.device(name), torch.device(name))
        self._bus_bytes_per_s: tuple[float, float] | None = None
        if name == "cuda":
            device, host = torch.device("cuda"), torch.device("cpu")
            self._bus_bytes_per_s = self._copy_rate(host, device), self._copy_rate(device, host)

    def step(self, events: list[Event]) -> Step:
        """Return the times of the third event of so many sessions."""
        size = len(events)
        states: list[bytes | None] = [None] * size
        for _ in range(2):
            states = list(self.predictor.advance(events, states)[1])
        columns = tuple(column.to(self.name) for column in columns_from_events(events, self._manifest.properties))
        with torch.inference_mode():
            tensors = tuple(self.module.initial_state(size))
            network_us = self._median_us(lambda: self.module.step(*columns, *tensors))
            advance_us = self._median_us(lambda: self.predictor.advance(events, states))
            copies_us = self._copies_us(lambda: self.predictor.advance(events, states))
        return Step(
            self.name,
            size,
            advance_us,
            network_us,
            copies_us,
            self._floor_us(size, sum(len(state or b"") for state in states), columns),
        )

    def _floor_us(self, size: int, state_bytes: int, columns: tuple[Tensor, ...]) -> float:
        seconds = (2 * state_bytes + self._weight_bytes) / self.memory_bytes_per_s
        if self._bus_bytes_per_s is not None:
            there, back = self._bus_bytes_per_s
            column_bytes = sum(column.numel() * column.element_size() for column in columns)
            seconds += (state_bytes + column_bytes) / there + (state_bytes + 4 * size) / back
        return seconds * _MICROSECONDS

    def _median_us(self, run: Callable[[], object]) -> float:
        for _ in range(_WARM_UPS):
            run()
        self._settle()
        taken: list[float] = []
        while len(taken) < _LEAST_RUNS or sum(taken) < _LEAST_S:
            began_s = time.perf_counter()
            run()
            self._settle()
            taken.append(time.perf_counter() - began_s)
        return statistics.median(taken) * _MICROSECONDS

    def _copies_us(self, run: Callable[[], object]) -> float | None:
        if self.name == "cpu":
            return None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(_LEAST_RUNS):
                run()
            self._settle()
        copied = (one.self_device_time_total for one in profile.key_averages() if one.key.startswith("Memcpy"))
        return float(sum(copied)) / _LEAST_RUNS

    def _copy_rate(self, source: torch.device, target: torch.device) -> float:
        """Return the bytes a second of a plain copy; within one memory each byte counts twice, for read and write."""
        pinned = source != target
        there = torch.ones(_COPIED_BYTES, dtype=torch.uint8, device=source, pin_memory=pinned and source.type == "cpu")
        here = torch.empty(_COPIED_BYTES, dtype=torch.uint8, device=target, pin_memory=pinned and target.type == "cpu")
        seconds = self._median_us(lambda: here.copy_(there, non_blocking=True)) / _MICROSECONDS
        return _COPIED_BYTES * (1 if pinned else 2) / seconds

    def _settle(self) -> None:
        if self.name == "cuda":
            torch.cuda.synchronize()


def measure(artifact: Path, largest: int, show: Callable[[str], None]) -> list[Step]:
    """Return the times of a step on each available device, for every batch size up to the largest."""
    shown = chain.from_iterable(sessions(PRESETS["default"], seed=1))
    events = list(islice((event for event in shown if event.event_name != "purchase"), largest))
    found = []
    for name in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        show(f"{name}: warm-up")
        device = Device(artifact, name, largest)
        for size in BATCHES:
            if size <= largest:
                show(f"{name}: {size:,} sessions")
                found.append(device.step(events[:size]))
    return found


def table(steps: list[Step]) -> list[str]:
    """Return the times as Markdown, and the batch size from which the GPU is faster."""
    heads = ("sessions", "device", "step µs", "network alone", "rest", "copies", "floor µs", "step / floor", "events/s")
    rows = [
        [
            f"{step.batch:,}",
            step.device,
            f"{step.advance_us:,.0f}",
            f"{step.network_us:,.0f}",
            f"{max(0.0, 1 - step.network_us / step.advance_us):.0%}",
            "" if step.copies_us is None else f"{step.copies_us / step.advance_us:.0%}",
            f"{step.floor_us:,.1f}",
            f"{step.advance_us / step.floor_us:,.0f}",
            f"{step.events_per_s:,.0f}",
        ]
        for step in sorted(steps, key=lambda step: (step.batch, step.device))
    ]
    lines = markdown_table(heads, rows)
    by_device = {
        name: {step.batch: step.advance_us for step in steps if step.device == name} for name in ("cpu", "cuda")
    }
    if not by_device["cuda"]:
        lines += ["", "No GPU was measured."]
    else:
        quicker = [size for size, taken in by_device["cuda"].items() if taken < by_device["cpu"][size]]
        said = f"from {min(quicker):,} sessions a step on" if quicker else "at no size"
        lines += ["", f"The GPU is quicker than one thread of the CPU {said}."]
    return lines


def figures(steps: list[Step]) -> dict[str, Any]:
    """Return what goes into the JSON file."""
    return {"steps": [asdict(step) for step in steps]}


def machine_with_gpu() -> dict[str, str]:
    """Return date, processor, memory, versions and the GPU if there is one."""
    return machine() | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


@errors_for_people(BenchmarkError, ArtifactError)
def main(
    artifact: Annotated[Path | None, typer.Option(help="The model; without it a small one is trained.")] = None,
    largest: Annotated[int, typer.Option(min=1, max=8192, help="Largest batch.")] = 8192,
    out: Annotated[Path, typer.Option(help="JSON file whose section `step` gets the figures.")] = JSON_FILE,
    document: Annotated[Path, typer.Option(help="Where the table goes.")] = DOCUMENT,
) -> None:
    """Measure a step on CPU and GPU for batches of 1 to 8,192 sessions."""
    with tempfile.TemporaryDirectory(prefix="willbuy-") as folder, stage("step", 1) as show:
        show(0, "training a model")
        path = artifact or train_artifact(Path(folder), _HIDDEN_SIZE)
        steps = measure(path, largest, lambda note: show(0, note))
    where = machine_with_gpu()
    lines = [*table(steps), "", machine_line(where)]
    for line in lines:
        _OUT.print(line, markup=False, highlight=False, soft_wrap=True)
    write_section("step", where, figures(steps), out)
    write_markdown("step", lines, document)
    _OUT.print(f"written: {out}, {document}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
