"""Whether a batch's commit goes in two halves, so that the first one's callers are answered while Redis has the second.

A second round trip costs the service some 5 us an event in batches of 64. What it brings is that answers are written
and new requests read while Redis works, so it pays where Redis takes long: with a million live sessions it brings a
seventh more events a second, with a thousand nothing (docs/performance.md). How long is long goes by the model's step,
which a slow processor slows down as well.
"""

from collections.abc import Sequence
from typing import Final, TypeVar

Item = TypeVar("Item")

# Fewer are not worth a second round trip.
_LEAST: Final = 32
# A commit as long as so many steps is worth halving; with a thousand sessions it is as long as 1.2.
_STEPS: Final = 1.5
# Of what was seen before, in each new mean.
_KEPT: Final = 0.9


class Halves:
    """Remembers how long commits take."""

    def __init__(self) -> None:
        self._steps_a_commit = 0.0

    def of(self, items: Sequence[Item]) -> list[Sequence[Item]]:
        """Return the items in one part or in two."""
        if len(items) < _LEAST or self._steps_a_commit < _STEPS:
            return [items]
        middle = len(items) // 2
        return [items[:middle], items[middle:]]

    def observe(self, items: int, *, step_s: float, commit_s: float) -> None:
        """Take note of how long a batch of so many items was stepped, and how long its commit took."""
        if items >= _LEAST and step_s:
            self._steps_a_commit += (1.0 - _KEPT) * (commit_s / step_s - self._steps_a_commit)
