"""The commands' terminal output: progress bars, and errors without a traceback."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from training.data.prepare import Progress as PrepareProgress

OUT: Final = Console()
ERR: Final = Console(stderr=True)
_INTERRUPTED: Final = 130


def print_line(text: str, *, style: str = "", console: Console = OUT) -> None:
    """Print a line without markup, and without wrapping, so that a path or command can be copied."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def progress_bars() -> Progress:
    """Return bars of stage, share done, time left and a note; plain lines without a terminal."""
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
        # Early stopping ends before the last step; the bar is shown as complete.
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


@contextmanager
def errors_for_people(*expected: type[Exception]) -> Iterator[None]:
    """Turn expected errors into one line and exit status 1, and Ctrl-C into status 130; also a decorator."""
    try:
        yield
    except BaseExceptionGroup as group:
        # A task group wraps the errors of its tasks.
        known, others = group.split(expected)
        if known is None or others is not None:
            raise
        _print_error(_first(known))
    except expected as exc:
        _print_error(exc)
    except KeyboardInterrupt:
        ERR.print("\ninterrupted", style="yellow")
        sys.exit(_INTERRUPTED)
    else:
        return
    raise typer.Exit(1)


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _print_error(exc: BaseException) -> None:
    ERR.print("error:", style="bold red", end=" ")
    # No markup: the text may hold names from a log.
    ERR.print(str(exc) or type(exc).__name__, markup=False, highlight=False, soft_wrap=True)
