"""Cost of explaining a session's last event, beside its trace: `python -m benchmarks.why_cost ARTIFACT`.

In turns on one thread, for sessions of several lengths. Printed are medians of milliseconds and of the paired ratios.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Final

from model.events import Event
from model.predictor import Predictor, load_predictor

_TURNS: Final = 30
_NAMES: Final = ("view_item_list", "view_item", "view_item", "add_to_cart", "view_cart")


def _history(length: int) -> list[Event]:
    return [
        Event(_NAMES[at % len(_NAMES)], 1_780_000_000_000 + 9_000 * at, f"i{at % 7}", "shoes", 10.0 + at)
        for at in range(length)
    ]


def _ms(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - started)


def _pairs(predictor: Predictor, history: list[Event]) -> list[tuple[float, float]]:
    """Return milliseconds of an explanation and of a trace, turn by turn, without the first third."""
    taken = [(_ms(lambda: predictor.explain(history)), _ms(lambda: predictor.traces([history]))) for _ in range(_TURNS)]
    return taken[_TURNS // 3 :]


def main(artifact: Path) -> None:
    """Print a line for each length."""
    predictor = load_predictor(artifact, threads=1)
    for length in (2, 10, 50, 200):
        pairs = _pairs(predictor, _history(length))
        why, trace = (median(one) for one in zip(*pairs, strict=True))
        ratio = median(one / other for one, other in pairs)
        print(f"{length:4} events: why {why:6.1f} ms, trace {trace:6.1f} ms, ratio {ratio:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
