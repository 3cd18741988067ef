"""Events a second of a rebuild: histories folded by one call of the script, and event by event.

python -m benchmarks.rebuild MODEL.pt
"""

import argparse
import time
from pathlib import Path

from model.events import Event
from model.predictor import load_predictor

_EVENTS = 2000
_SESSIONS = (1, 4, 16, 64)


def _history(length: int) -> list[Event]:
    names = ("page_view", "view_item", "add_to_cart")
    return [
        Event(names[number % 3], number * 1000, item_id=f"SKU-{number % 40}", price=9.9) for number in range(length)
    ]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    predictor = load_predictor(parser.parse_args().artifact, threads=1)
    print("sessions  events each  fold, events/s  step by step, events/s")
    for sessions in _SESSIONS:
        length = _EVENTS // sessions
        histories = [_history(length)] * sessions
        predictor.fold(histories, [None] * sessions)
        started = time.process_time()
        predictor.fold(histories, [None] * sessions)
        folded_s = time.process_time() - started
        states: list[bytes | None] = [None] * sessions
        started = time.process_time()
        for event in histories[0]:
            _, following = predictor.advance([event] * sessions, states)
            states = [*following]
        stepped_s = time.process_time() - started
        total = sessions * length
        print(f"{sessions:8}  {length:11}  {total / folded_s:14,.0f}  {total / stepped_s:22,.0f}")


if __name__ == "__main__":
    main()
