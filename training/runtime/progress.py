"""How a run shows where it is, without knowing who looks."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Stage(Protocol):
    """Shows one stage of a run."""

    def __call__(self, done: int, note: str = "") -> None:
        """Show how many steps are done in all, and what to say of it."""


StageFactory = Callable[[str, int], AbstractContextManager[Stage]]
"""Called with a stage's name and its number of steps."""


def null_progress(_name: str, _steps: int) -> AbstractContextManager[Stage]:
    """Show nothing."""

    def stage(done: int, note: str = "") -> None:
        del done, note

    return nullcontext(stage)
