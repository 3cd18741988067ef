"""Progress of a run's stages, as an interface: the command line shows bars, tests nothing."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Stage(Protocol):
    """Shows the progress of one stage of a run."""

    def __call__(self, done: int, note: str = "") -> None:
        """Show the number of steps done in all, with a note."""


StageFactory = Callable[[str, int], AbstractContextManager[Stage]]
"""Called with a stage's name and its number of steps."""


def null_progress(_name: str, _steps: int) -> AbstractContextManager[Stage]:
    """Show nothing."""

    def stage(done: int, note: str = "") -> None:
        del done, note

    return nullcontext(stage)
