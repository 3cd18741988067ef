"""What the commands show in a terminal: progress bars, and errors without a traceback."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Final, Literal, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from training.data.prepare import Progress as PrepareProgress

_P = ParamSpec("_P")
_R = TypeVar("_R")

OUT: Final = Console()
ERR: Final = Console(stderr=True)
_INTERRUPTED: Final = 130


def tell(text: str, *, style: str = "", console: Console = OUT) -> None:
    """Print a line as it is: paths and names are no markup, and a command is not broken at the terminal's edge."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def progress_bars() -> Progress:
    """Return bars that tell stage, share done, a note, and the time left; plain lines where there is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=ERR,
        transient=False,
    )


@contextmanager
def stage(name: str, steps: int) -> Iterator[Callable[..., None]]:
    """Show one stage of a run as a bar; yields `show(done, note="")`."""
    with progress_bars() as bars:
        task = bars.add_task(name, total=steps, note="")

        def show(done: int, note: str = "") -> None:
            bars.update(task, completed=done, note=note)

        yield show
        # Early stopping ends before the last step: the bar should not look broken off.
        bars.update(task, total=max(1, int(bars.tasks[0].completed)), completed=max(1, int(bars.tasks[0].completed)))


@contextmanager
def prepare_progress() -> Iterator["PrepareProgress"]:
    """Show `training.data.prepare.prepare`'s two stages as bars."""
    with progress_bars() as bars:
        tasks = {
            "reading": bars.add_task("reading the log", total=None, note="", visible=False),
            "sessions": bars.add_task("making sessions", total=None, note="", visible=False),
        }

        def show(stage: Literal["reading", "sessions"], done: int, total: int) -> None:
            bars.update(tasks[stage], completed=done, total=total, visible=True)

        yield show


def errors_for_people(*expected: type[Exception]) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Turn expected errors of a command into one line and exit status 1, and Ctrl-C into status 130."""

    def decorate(command: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(command)
        def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            try:
                return command(*args, **kwargs)
            except BaseExceptionGroup as group:
                # A task group wraps what its tasks raised; one of them is what the user did or can mend.
                known, others = group.split(expected)
                if known is None or others is not None:
                    raise
                _say(_first(known))
            except expected as exc:
                _say(exc)
            except KeyboardInterrupt:
                ERR.print("\ninterrupted", style="yellow")
                sys.exit(_INTERRUPTED)
            raise typer.Exit(1)

        return wrapped

    return decorate


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _say(exc: BaseException) -> None:
    ERR.print("error:", style="bold red", end=" ")
    # No markup: the text may hold names from a log.
    ERR.print(str(exc) or type(exc).__name__, markup=False, highlight=False, soft_wrap=True)
