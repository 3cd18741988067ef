"""Progress of a command's stages: bars on a terminal, plain lines elsewhere, on standard error."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, Self

from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from training.commands.console import ERR, print_line
from training.runtime.progress import Forecast, Stage

if TYPE_CHECKING:
    from training.data.prepare import Progress as PrepareProgress

_LINE_EVERY_S: Final = 10.0
_MINUTE_S: Final = 60


@dataclass(slots=True)
class _Shown:
    """A stage that runs: share done, None where no length is known; seconds; and share and seconds left of the run."""

    name: str
    share: float | None
    taken_s: float = 0.0
    left_s: float | None = None
    note: str = ""
    run_share: float = 0.0
    run_left_s: float | None = None
    position: str = ""


class _View(Protocol):
    def begin(self, shown: _Shown) -> None: ...

    def show(self, shown: _Shown) -> None: ...

    def finish(self, shown: _Shown) -> None: ...

    def close(self, *, complete: bool) -> None: ...


class Stages:
    """Shows the stages of a run, one after another; a `training.runtime.progress.StageFactory`, and a context.

    With a forecast, one more bar, or a part of each line, is about the whole run and the time that it has left.

    Args:
        expected_s: what each stage of the run is expected to take, by its name.
        clock_s: a clock that never goes back.
    """

    def __init__(
        self, expected_s: Mapping[str, float] | None = None, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._forecast = Forecast(expected_s or {})
        self._clock_s = clock_s
        self._view: _View = _Bars(whole_run=bool(expected_s)) if ERR.is_terminal else _Lines(clock_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._view.close(complete=kind is None)

    @contextmanager
    def __call__(self, name: str, steps: int) -> Iterator[Stage]:
        """Show a stage; yields `show(done, note="")`. Of a stage with one step, no length is known."""
        began_s = self._clock_s()
        shown = _Shown(name, 0.0 if steps > 1 else None, position=self._forecast.position(name))
        self._view.begin(shown)

        def show(done: int, note: str = "") -> None:
            shown.taken_s = self._clock_s() - began_s
            shown.note = note
            if steps > 1:
                shown.share = share = min(1.0, done / steps)
                shown.left_s = shown.taken_s * (1 - share) / share if share else None
            if self._forecast.expected_s:
                shown.run_share, shown.run_left_s = self._forecast.look(name, shown.share, shown.taken_s)
            self._view.show(shown)

        yield show
        shown.taken_s = self._clock_s() - began_s
        self._forecast.finish(name, shown.taken_s)
        self._view.finish(shown)


class _Bars:
    """A bar a stage, below the bar of the run."""

    def __init__(self, *, whole_run: bool) -> None:
        # A narrow terminal takes from the bar and from the note, never from a figure.
        whole, bar, note = Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True, ratio=2)
        self._bars = Progress(
            TextColumn("{task.description}", table_column=whole),
            BarColumn(bar_width=None, table_column=bar),
            TaskProgressColumn(table_column=whole),
            TimeElapsedColumn(table_column=whole),
            TextColumn("{task.fields[left]}", style="progress.remaining", table_column=whole),
            TextColumn("{task.fields[note]}", style="dim", markup=False, table_column=note),
            console=ERR,
            expand=True,
        )
        self._bars.start()
        self._run = self._bars.add_task("all", total=1.0, left="", note="") if whole_run else None
        self._stage = TaskID(0)

    def begin(self, shown: _Shown) -> None:
        total = None if shown.share is None else 1.0
        self._stage = self._bars.add_task(shown.name, total=total, left="", note="")

    def show(self, shown: _Shown) -> None:
        self._bars.update(self._stage, completed=shown.share or 0.0, left=_left(shown.left_s), note=shown.note)
        if self._run is not None:
            left = _left(shown.run_left_s)
            self._bars.update(self._run, completed=shown.run_share, left=left, note=shown.position)

    def finish(self, shown: _Shown) -> None:
        # Early stopping ends before the last step; the bar is shown as complete.
        self._bars.update(self._stage, total=1.0, completed=1.0, left="", note=shown.note)

    def close(self, *, complete: bool) -> None:
        if complete and self._run is not None:
            self._bars.update(self._run, completed=1.0, left="", note="")
        self._bars.stop()


class _Lines:
    """A line when a stage begins and ends, and every ten seconds: what it is, how far, how long."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._said_s = 0.0

    def begin(self, shown: _Shown) -> None:
        self._say(shown, "begins")

    def show(self, shown: _Shown) -> None:
        if self._clock_s() - self._said_s < _LINE_EVERY_S:
            return
        parts = [f"running for {_duration(shown.taken_s)}"]
        if shown.share is not None:
            parts = [f"{shown.share:.0%} after {_duration(shown.taken_s)}"]
        if shown.run_left_s is not None:
            parts.append(f"all {shown.run_share:.0%}, {_left(shown.run_left_s)}")
        elif shown.left_s is not None:
            parts.append(_left(shown.left_s))
        self._say(shown, *parts, shown.note)

    def finish(self, shown: _Shown) -> None:
        self._say(shown, f"done in {_duration(shown.taken_s)}", shown.note)

    def close(self, *, complete: bool) -> None:
        del complete

    def _say(self, shown: _Shown, *parts: str) -> None:
        self._said_s = self._clock_s()
        told = "; ".join(part for part in parts if part)
        print_line(" ".join(part for part in (shown.position, f"{shown.name}: {told}") if part), console=ERR)


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"about {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < _MINUTE_S:
        return f"{whole} s"
    minutes, rest = divmod(whole, _MINUTE_S)
    return f"{minutes} min {rest} s" if minutes < _MINUTE_S else f"{minutes // _MINUTE_S} h {minutes % _MINUTE_S} min"


@contextmanager
def stage(name: str, steps: int) -> Iterator[Stage]:
    """Show a command's only stage; as `Stages` does."""
    with Stages() as stages, stages(name, steps) as show:
        yield show


@contextmanager
def prepare_progress() -> Iterator["PrepareProgress"]:
    """Show the two stages of `training.data.prepare.prepare`."""
    names = {"reading": "reading the log", "sessions": "making sessions"}
    shown: dict[str, Callable[..., None]] = {}
    with Stages() as stages, ExitStack() as running:

        def show(stage: Literal["reading", "sessions"], done: int, total: int) -> None:
            if stage not in shown:
                running.close()
                shown[stage] = running.enter_context(stages(names[stage], total))
            shown[stage](done)

        yield show
