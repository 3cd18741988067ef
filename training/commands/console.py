"""The commands' terminal output, and errors without a traceback."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import typer
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment

# Escape sequences begin with one; line breaks and tabs are those of the output itself.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class _Harmless:
    """Something to print, without the control characters of its texts."""

    printed: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self.printed, options):
            is_text = segment.control is None
            yield Segment(_CONTROL.sub(_REPLACEMENT, segment.text), segment.style) if is_text else segment


class _HarmlessTexts(RenderHook):
    """Keeps names from a log from moving the cursor or changing the terminal."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Harmless(one) for one in renderables]


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr)
    console.push_render_hook(_HarmlessTexts())
    return console


OUT: Final = _console(stderr=False)
ERR: Final = _console(stderr=True)
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
