"""The commands' terminal output, and errors without a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer
from rich.console import Console

OUT: Final = Console()
ERR: Final = Console(stderr=True)
_INTERRUPTED: Final = 130


def print_line(text: str, *, style: str = "", console: Console = OUT) -> None:
    """Print a line without markup, and without wrapping, so that a path or command can be copied."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


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
