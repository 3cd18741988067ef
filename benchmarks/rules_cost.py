"""Cost of rules in the scorer: processor time an event without rules, with ten, and with a release before rules.

python -m benchmarks.rules_cost [--before FOLDER]

Each variant runs in a process of its own, in turns, so that a busy machine meets all alike. A turn scores batches of
events of many sessions on a store in memory; the first turn warms up. Printed are medians over turns of the processor
time an event, and the median of the paired differences with an interval; and the least, which a busy machine disturbs
less. `--before` names a checkout of a release
without rules; its interpreter path is this one's.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Final

_TURNS: Final = 40
_RULES: Final = """
[[rules]]
name = "voucher"
events = ["view_cart"]
probability_between = [0.15, 0.45]
cart_value_at_least = 40
control = 0.2

[[rules]]
name = "hesitates"
probability_between = [0.1, 0.3]
min_events = 8
without_events = ["add_to_cart"]

[[rules]]
name = "high"
crosses_up = 0.6
control = 0.5

[[rules]]
name = "drops"
crosses_down = 0.2
min_events = 5

[[rules]]
name = "mobile"
properties = { device = "mobile" }
probability_above = 0.4

[[rules]]
name = "long"
min_events = 25

[[rules]]
name = "search"
events = ["search"]
probability_below = 0.1
min_events = 4

[[rules]]
name = "cart"
events = ["add_to_cart"]
cart_value_at_least = 150

[[rules]]
name = "leaves"
events = ["remove_from_cart"]
probability_above = 0.2

[[rules]]
name = "rich"
cart_value_at_least = 500
without_events = ["begin_checkout"]
"""
# Runs in either checkout, so it names no part that only one of them has.
_PROGRAM: Final = '''
import asyncio, gc, json, random, struct, sys, time
import structlog
sys.path.insert(0, "tests")
from support.memory_store import MemoryStore
from app.monitoring.metrics import Metrics
from app.scoring.events import QueuedEvent
from app.scoring.scorer import Scorer
from model.events import Event

float32 = lambda number: struct.unpack("<f", struct.pack("<f", number))[0]
NAMES = ["page_view", "view_item", "view_item", "view_item_list", "search", "add_to_cart", "view_cart"]
BATCH, BATCHES, NOW_MS = 64, 60, 1_795_392_000_000

class Model:
    """Answers at once, so that the scorer's own time is seen; its probabilities wander as a model's do."""
    fingerprint = "00" * 8
    def reads(self, state): return True
    def advance(self, events, states):
        before = [0.1 if state is None else int.from_bytes(state[:4], "little") / 2**32 for state in states]
        now = [float32(min(0.99, max(0.001, p * step))) for p, step in zip(before, STEPS)]
        return now, [int(p * 2**32).to_bytes(4, "little") * 60 for p in now]

STEPS = [random.Random(n).choice([0.8, 0.95, 1.05, 1.3]) for n in range(BATCH)]

def scorer_of(store):
    options = {}
    if RULES:
        from model.events import canonical_event_name
        from model.interventions.decide import Decider
        from model.interventions.rules import parse_rules
        import tomllib
        class Vocabulary:
            canonical_name = staticmethod(canonical_event_name)
            def knows(self, name): return True
        options["decider"] = Decider(parse_rules(tomllib.loads(RULES), Vocabulary(), source="rules"))
    logger = structlog.wrap_logger(structlog.ReturnLogger())
    return Scorer(store, Model(), metrics=Metrics(), logger=logger, max_session_events=1000,
                  max_session_bytes=2**22, dedupe_window=64, **options)

async def turn(number):
    chance = random.Random(number)
    batches = []
    for batch in range(BATCHES):
        batches.append([
            QueuedEvent(f"s{number}-{at}", Event(chance.choice(NAMES), NOW_MS + batch, f"i{at}", "shoes",
                        float(chance.randrange(5, 90)), None, {"device": "mobile" if at % 2 else "desktop"}),
                        chance.getrandbits(62), True, NOW_MS)
            for at in range(BATCH)
        ])
    store = MemoryStore(session_idle_s=1800, now_ms=lambda: NOW_MS)
    scorer = scorer_of(store)
    # As the service does after its start: full collections of its modules would be counted otherwise.
    gc.collect()
    gc.freeze()
    began = time.process_time()
    for events in batches:
        await scorer.score(events)
    return (time.process_time() - began) / (BATCH * BATCHES) * 1e6

for line in sys.stdin:
    print(json.dumps(asyncio.run(turn(int(line)))), flush=True)
'''


class Variant:
    """A process that runs one turn for each line."""

    def __init__(self, folder: Path, rules: str) -> None:
        program = f"RULES = {rules!r}\n{_PROGRAM}"
        self._process = subprocess.Popen(  # noqa: S603 - this program's own interpreter and text
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{program}"],
            cwd=folder,
            env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def turn(self, number: int) -> float:
        """Return the processor time an event, in microseconds."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("the process has no pipes")
        stdin.write(f"{number}\n")
        stdin.flush()
        return float(json.loads(stdout.readline()))

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", type=Path, help="checkout of a release without rules")
    parser.add_argument("--turns", type=int, default=_TURNS)
    given = parser.parse_args()
    here = Path(__file__).parent.parent
    rare = "".join(f'[[rules]]\nname = "r{number}"\nprobability_above = 0.99{number}\n' for number in range(10))
    variants = {
        "without rules": Variant(here, ""),
        "ten rules that fire rarely": Variant(here, rare),
        "ten rules of which seven fire in a session": Variant(here, _RULES),
    }
    if given.before is not None:
        variants["a release before rules"] = Variant(given.before.resolve(), "")
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(given.turns + 1):
        # In another order each time.
        for name in sorted(variants, key=lambda name: hash((number, name))):
            one = variants[name].turn(number)
            if number:
                times[name].append(one)
    for variant in variants.values():
        variant.close()
    base = times["without rules"]
    for name, found in times.items():
        differences = sorted(one - other for one, other in zip(found, base, strict=True))
        low, high = differences[len(differences) // 4], differences[-len(differences) // 4 - 1]
        print(
            f"{name}: {median(found):.1f} us an event; to no rules {median(differences):+.2f} us, "
            f"middle half {low:+.2f} to {high:+.2f}, ratio {median(found) / median(base):.3f}; "
            f"least {min(found):.1f}, to no rules {min(found) - min(base):+.2f}"
        )


if __name__ == "__main__":
    main()
