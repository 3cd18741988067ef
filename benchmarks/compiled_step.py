"""Microseconds of a step with TorchScript and with the compiled step, in one process, in turn.

python -m benchmarks.compiled_step

Trains a small artifact, compiles it, and calls `Predictor.advance` of both on the same events and states. Each figure
is the median over rounds; the ratio is the median of the ratios of paired rounds.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.hotpath.artifact import train_artifact
from benchmarks.hotpath.results import markdown_table
from model.events import Event
from model.predictor import Predictor, load_predictor
from training.fit.compilation import compile_artifact

_SIZES: Final = (1, 2, 8, 32, 64, 128, 256)
_HIDDEN_SIZE: Final = 64
_EVENTS_BEFORE: Final = 8
_ROUND_S: Final = 0.15
_NAMES: Final = ("page_view", "view_item", "add_to_cart", "view_cart")


def _events(sessions: int, number: int) -> list[Event]:
    return [
        Event(
            _NAMES[(session + number) % 4],
            number * 7000 + session,
            item_id=f"SKU-{(session * 7 + number) % 90}",
            price=9.9,
        )
        for session in range(sessions)
    ]


def _states(predictor: Predictor, sessions: int) -> list[bytes | None]:
    states: list[bytes | None] = [None] * sessions
    for number in range(_EVENTS_BEFORE):
        states = [*predictor.advance(_events(sessions, number), states)[1]]
    return states


def _step_us(predictor: Predictor, events: list[Event], states: list[bytes | None]) -> float:
    """Return processor time of one call, in microseconds."""
    calls = 0
    started = time.process_time()
    while time.process_time() - started < _ROUND_S:
        predictor.advance(events, states)
        calls += 1
    return (time.process_time() - started) / calls * 1e6


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        plain = train_artifact(Path(folder), _HIDDEN_SIZE)
        compiled = Path(folder) / "compiled.pt"
        compile_artifact(plain, compiled, print)
        script, native = (load_predictor(path, device="cpu", threads=1) for path in (plain, compiled))
    rows = []
    for sessions in _SIZES:
        events, states = _events(sessions, _EVENTS_BEFORE), _states(script, sessions)
        pairs = [(_step_us(script, events, states), _step_us(native, events, states)) for _ in range(rounds)]
        ratio = median(second / first for first, second in pairs)
        medians = [f"{median(column):,.0f}" for column in zip(*pairs, strict=True)]
        rows.append([str(sessions), *medians, f"{ratio:.2f}"])
    print("\n".join(markdown_table(["sessions", "TorchScript, us", "compiled, us", "ratio"], rows)))


if __name__ == "__main__":
    main()
