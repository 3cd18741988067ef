"""Speed of training: compared with a bare LSTM of the same size, and by number and length of sessions.

    python -m benchmarks.training                  # CPU, one thread; a GPU where torch sees one
    python -m benchmarks.training --rounds 3 --sessions 2000 --growth 1000 2000

The bare loop is `torch.nn.LSTM` and a linear head on padded batches of the same sessions, with the network's numbers of
inputs and units, log loss, backward and AdamW. It has no encodings, no head on the inputs and no dropout. Rounds of
both alternate, so that other work on the machine affects both. On a CPU the process's CPU time is measured.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from model.network import SessionModel
from training.commands.stages import stage
from training.config import FitSettings, PretrainingSettings, TeacherSettings, TrainSettings
from training.data.dataset import batches, padded
from training.data.encoded import Encoded, scaling_of
from training.data.prepare import prepare
from training.data.training_set import load
from training.fit.loop import fit
from training.synthetic import PRESETS, generate, write

SETTINGS = TrainSettings(
    fit=FitSettings(epochs=1, patience=1, teacher_weight=0.0),
    pretraining=PretrainingSettings(epochs=0),
    teacher=TeacherSettings(folds=0),
)


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


def growth(counts: list[int], device: str) -> Table:
    """Measure the time of a pass by number and by length of sessions."""
    table = Table(title="what a pass costs", title_justify="left")
    for heading in ("shop", "sessions", "events", "events a session", "seconds", "µs an event"):
        table.add_column(heading, justify="left" if heading == "shop" else "right")
    shops = [("default", count) for count in counts] + [("long-sessions", counts[0])]
    with stage("by sessions and length", len(shops)) as show:
        for done, (shape, count) in enumerate(shops, 1):
            given = shop(count, shape)
            run = ours(given, device)
            taken = min(seconds(run, device) for _ in range(2))
            events = given.events
            sessions = len(given.data.columns.outcome)
            row = (f"{sessions:,}", f"{events:,}", f"{events / sessions:.1f}", f"{taken:.2f}")
            table.add_row(shape, *row, f"{taken / events * 1e6:.1f}")
            show(done)
    return table


def _spread(values: list[float]) -> str:
    return f"{min(values):,.0f} to {max(values):,.0f}"


def _ratio(ratios: list[float]) -> tuple[str, str]:
    return f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=5000, help="for the comparison")
    parser.add_argument("--rounds", type=int, default=7, help="of the comparison")
    parser.add_argument("--growth", type=int, nargs="*", default=[5000, 10_000, 20_000, 40_000], help="sessions")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = Console(width=140)
    out.print(f"torch {torch.__version__}, {torch.cuda.get_device_name() if device == 'cuda' else 'CPU, one thread'}")
    out.print(against_bare(arguments.sessions, arguments.rounds, device))
    if arguments.growth:
        out.print(growth(arguments.growth, device))


if __name__ == "__main__":
    main()
