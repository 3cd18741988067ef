"""Cost of training, on the CPU and on a GPU where torch sees one: whole runs, and `fit` beside a bare LSTM.

    python -m benchmarks.training                                       # everything, an hour
    python -m benchmarks.training --rounds 0 --whole 20000 100000       # whole runs alone, of two sizes of log
    python -m benchmarks.training --rounds 3 --sessions 2000 --whole    # the comparison alone

Whole runs are `willbuy prepare` and `willbuy train` on a synthetic log, each in its own process, with default settings
but for `--set`.

The bare loop is `torch.nn.LSTM` and a linear head on padded batches of the same sessions, with the network's numbers of
inputs and units, log loss, backward and AdamW. It has no encodings, no head on the inputs and no dropout. Rounds of
both alternate, so that other work on the machine affects both. On a CPU the process's CPU time is measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from benchmarks.hotpath.results import markdown_table
from model.network import SessionModel
from training.commands.stages import stage
from training.config import FitSettings, PretrainingSettings, TeacherSettings, TrainSettings
from training.data.dataset import batches, padded
from training.data.encoded import Encoded, scaling_of
from training.data.prepare import prepare
from training.data.prepared import read_prepared
from training.data.training_set import load
from training.fit.loop import fit
from training.synthetic import PRESETS, generate, write

SETTINGS = TrainSettings(
    fit=FitSettings(epochs=1, patience=1, teacher_weight=0.0),
    pretraining=PretrainingSettings(epochs=0),
    teacher=TeacherSettings(folds=0),
)
_MONTH_EVENTS: Final = 118_000_000
"""Events of ten million sessions, a month of a large shop."""


@dataclass(frozen=True, slots=True)
class Shop:
    """Encoded sessions of a synthetic shop, and a network for them."""

    data: Encoded
    model: SessionModel

    @property
    def events(self) -> int:
        """Events of all sessions."""
        return len(self.data.features)


def shop(sessions: int, shape: str = "default") -> Shop:
    """Return so many training sessions of a shop."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.parquet"
        write(generate(PRESETS[shape], round(sessions / 0.94), seed=1), log)
        # Nearly all sessions for training; each other part needs at least one that buys.
        settings = replace(SETTINGS, fractions=(0.94, 0.02, 0.02, 0.02))
        data = load(prepare(log, Path(folder) / "prepared", keep_open_sessions=True), settings)
    train = data.parts["train"].select(torch.arange(min(sessions, data.sessions["train"])))
    torch.manual_seed(0)
    return Shop(train, SessionModel(data.encoder, SETTINGS.sizes, scaling_of(train.features)))


def ours(given: Shop, device: str) -> Callable[[], None]:
    """Return one pass of `training.fit.loop.fit` over the sessions."""
    # One validation session, because only the training steps are measured.
    one = given.data.select(torch.tensor([0]))

    def run() -> None:
        fit(given.model, given.data, one, SETTINGS.fit, device=device)

    return run


def bare(given: Shop, device: str, *, made_before: bool) -> Callable[[], None]:
    """Return one pass of a bare LSTM over the same batches, made from rows of events in or before the loop."""
    sizes, data = given.model.sizes, given.data
    width = given.model.head.in_features - sizes.hidden_size
    lstm = torch.nn.LSTM(width, sizes.hidden_size, sizes.layers, batch_first=True).to(device)
    head = torch.nn.Linear(sizes.hidden_size, 1).to(device)
    parameters = [*lstm.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, fused=True)
    inputs = torch.randn(given.events, width)
    lengths = data.columns.lengths
    order = list(
        batches(
            lengths,
            SETTINGS.fit.batch_sessions,
            torch.Generator().manual_seed(0),
            bucket_batches=SETTINGS.fit.bucket_batches,
        )
    )

    def batch(chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        values = padded(inputs, data.columns.offsets, chosen)
        inside = torch.arange(values.size(1)) < lengths[chosen].unsqueeze(1)
        outcome = data.columns.outcome[chosen].repeat_interleave(lengths[chosen])
        return values.to(device), inside.to(device), outcome.to(device)

    made = [batch(chosen) for chosen in order] if made_before else None

    def run() -> None:
        for index, chosen in enumerate(order):
            values, inside, outcome = made[index] if made is not None else batch(chosen)
            raw = head(lstm(values)[0]).squeeze(-1)[inside]
            loss = functional.binary_cross_entropy_with_logits(raw, outcome)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships it untyped
            torch.nn.utils.clip_grad_norm_(parameters, SETTINGS.fit.gradient_norm)
            optimizer.step()

    return run


def seconds(run: Callable[[], None], device: str) -> float:
    """Return the time of a run: CPU time of the thread on a CPU, wall time on a GPU."""
    if device == "cpu":
        started = time.thread_time()
        run()
        return time.thread_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def against_bare(sessions: int, rounds: int, device: str) -> Table:
    """Compare events a second in interleaved rounds."""
    given = shop(sessions)
    lengths = given.data.columns.lengths
    cut = list(batches(lengths, 128, torch.Generator().manual_seed(0), bucket_batches=SETTINGS.fit.bucket_batches))
    padding = 1 - given.events / sum(len(chosen) * int(lengths[chosen].max()) for chosen in cut)
    runs = {
        "training.fit.loop.fit": ours(given, device),
        "bare LSTM, batches made in the loop": bare(given, device, made_before=False),
        "bare LSTM, batches made before": bare(given, device, made_before=True),
    }
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    with stage("against a bare LSTM", rounds * len(runs)) as show:
        for _ in range(rounds):
            for name, run in runs.items():
                rates[name].append(given.events / seconds(run, device))
                show(sum(map(len, rates.values())))
    table = Table(
        title=f"{len(lengths):,} sessions, {given.events:,} events; {padding:.0%} of the padded batches is padding",
        title_justify="left",
    )
    for heading in ("", "events a second, median", "lowest to highest", "fit against it, median", "lowest to highest"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, values in rates.items():
        ratios = [one / other for one, other in zip(rates["training.fit.loop.fit"], values, strict=True)]
        table.add_row(name, f"{statistics.median(values):,.0f}", _spread(values), *_ratio(ratios))
    return table


@dataclass(frozen=True, slots=True)
class Cost:
    """What a command took: seconds of the processors and of the clock, and its peak of resident memory in GB."""

    cpu_s: float
    wall_s: float
    peak_gb: float


def cost_of(*arguments: object) -> Cost:
    """Run a command of willbuy in a process of its own."""
    began = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603  # our own interpreter and module
        [sys.executable, "-m", "training", *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None  # noqa: S101  # a pipe
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(said.decode())
    return Cost(used.ru_utime + used.ru_stime, time.perf_counter() - began, used.ru_maxrss * 1024 / 1e9)


def whole_runs(counts: list[int], devices: list[str], settings: list[str], folder: Path) -> list[str]:
    """Measure `prepare` and `train` by size of the log, a line each."""
    heads = ("sessions", "events", "command", "CPU s", "clock s", "peak GB", "held-out log loss")
    points: dict[str, list[tuple[int, float]]] = {}
    rows = []
    for count in counts:
        log, sessions, out = (folder / f"{count}{end}" for end in (".parquet", ".sessions", ".pt"))
        write(generate(PRESETS["default"], count, seed=1), log)
        taken = {"prepare": cost_of("prepare", log, "--out", sessions)}
        events = read_prepared(sessions).counts.sessions.events
        losses = {"prepare": ""}
        for device in devices:
            name = f"train --device {device}"
            taken[name] = cost_of("train", sessions, "--out", out, "--device", device, *settings)
            scores = json.loads(out.with_suffix(".report.json").read_text())["models"]["willbuy"]
            losses[name] = f"{scores[-1]['scores']['log_loss']:.4f}"
        for name, cost in taken.items():
            points.setdefault(name, []).append((events, cost.wall_s if "cuda" in name else cost.cpu_s))
            figures = (f"{cost.cpu_s:.0f}", f"{cost.wall_s:.0f}", f"{cost.peak_gb:.2f}")
            rows.append([f"{count:,}", f"{events:,}", name, *figures, losses[name]])
    lines = markdown_table(heads, rows)
    for name, measured in points.items():
        if len(measured) > 1:
            slope, fixed = np.polyfit([at for at, _ in measured], [cost for _, cost in measured], 1)
            hours = (fixed + slope * _MONTH_EVENTS) / 3600
            lines.append(
                f"{name}: {fixed:.0f} s + {slope * 1e6:.1f} µs an event; {_MONTH_EVENTS:,} events {hours:.1f} h"
            )
    return lines


def _spread(values: list[float]) -> str:
    return f"{min(values):,.0f} to {max(values):,.0f}"


def _ratio(ratios: list[float]) -> tuple[str, str]:
    return f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=5000, help="for the comparison")
    parser.add_argument("--rounds", type=int, default=7, help="of the comparison")
    parser.add_argument("--whole", type=int, nargs="*", default=[20_000, 100_000, 300_000], help="sizes of logs")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another setting of whole runs")
    parser.add_argument("--folder", type=Path, help="for the logs; a temporary one by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    has_gpu = torch.cuda.is_available()
    devices = ["cpu", "cuda"] if has_gpu else ["cpu"]
    out = Console(width=140)
    out.print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if has_gpu else 'no GPU'}; CPU: one thread")
    for device in devices if arguments.rounds else []:
        out.print(against_bare(arguments.sessions, arguments.rounds, device))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for line in whole_runs(arguments.whole, devices, [f"--set={one}" for one in arguments.set], Path(folder)):
            out.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
