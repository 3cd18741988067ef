"""Progress of a run's stages, as an interface: the command line shows bars, tests nothing. And the time left."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Protocol


class Stage(Protocol):
    """Shows the progress of one stage of a run."""

    def __call__(self, done: int, note: str = "") -> None:
        """Show the number of steps done in all, with a note."""


# Before this share of the expected work is done, the measured pace says nothing.
_LEAST_KNOWN: Final = 0.02
# What a stage that takes longer than expected has left, as a share of what it has taken.
_OVERTIME: Final = 0.05

StageFactory = Callable[[str, int], AbstractContextManager[Stage]]
"""Called with a stage's name and its number of steps."""


def null_progress(_name: str, _steps: int) -> AbstractContextManager[Stage]:
    """Show nothing."""

    def stage(done: int, note: str = "") -> None:
        del done, note

    return nullcontext(stage)


class Forecast:
    """Share done and time left of a run, from what its stages are expected to take beside each other.

    The expectations may be off by a common factor, such as the speed of the machine: finished work corrects it.

    Args:
        expected_s: seconds of each stage by its name; a stage that is not in it counts as short.
    """

    def __init__(self, expected_s: Mapping[str, float]) -> None:
        self.expected_s = expected_s
        self._ahead = dict(expected_s)
        self._finished_s = 0.0

    def position(self, name: str) -> str:
        """Return where in the run a stage is, such as `2 of 6`; empty where it is not in the forecast."""
        names = list(self.expected_s)
        return f"{names.index(name) + 1} of {len(names)}" if name in names else ""

    def finish(self, name: str, taken_s: float) -> None:
        """Count a stage as over."""
        if self._ahead.pop(name, None) is not None:
            self._finished_s += taken_s

    def look(self, name: str, share: float | None, taken_s: float) -> tuple[float, float]:
        """Return the share of the run that is done, and the seconds that it has left.

        Args:
            name: the stage that runs.
            share: of the stage that is done; None: not known.
            taken_s: seconds that the stage has run.
        """
        own_s = self._ahead.get(name, 0.0)
        all_s = sum(self.expected_s.values())
        ahead_s = sum(self._ahead.values()) - own_s
        pace = 1.0
        known_s = all_s - ahead_s - own_s * (1 - (share or 0.0))
        if known_s > _LEAST_KNOWN * all_s:
            pace = (self._finished_s + (taken_s if share else 0.0)) / known_s
        # A stage of unknown length is never taken for complete.
        left_s = own_s * pace * (1 - share) if share is not None else max(own_s * pace - taken_s, taken_s * _OVERTIME)
        left_s += ahead_s * pace
        done_s = self._finished_s + taken_s
        return (done_s / (done_s + left_s) if done_s else 0.0), left_s
