"""Plants each bug of the list in a copy of the repository and runs its tests: `make mutants`."""

import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Annotated

import pytest
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from mutants.catalogue import Mutant, read_catalogue
from mutants.trial import TIMED_OUT, copied, last_output, run, run_with

_CONSOLE = Console()
_CAUGHT = {pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of the tests for one planted bug.

    Attributes:
        mutant: the bug.
        code: pytest's exit code, or `TIMED_OUT`.
        taken_s: seconds.
    """

    mutant: Mutant
    code: int
    taken_s: float

    @property
    def is_caught(self) -> bool:
        """Whether a test failed, or none ended in time."""
        return self.code in _CAUGHT or self.code == TIMED_OUT

    @property
    def word(self) -> str:
        """The verdict in words."""
        if self.code == TIMED_OUT:
            return "caught: timeout"
        if self.is_caught:
            return "caught"
        if self.code != pytest.ExitCode.OK:
            return f"tests not run: exit code {self.code}"
        return "equivalent" if self.mutant.equivalent else "SURVIVED"


def main(
    areas: Annotated[list[str] | None, typer.Argument(help="Names of lists; all without one.")] = None,
    only: Annotated[str, typer.Option(help="Only bugs whose path or description this pattern matches.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Copies in which bugs are tried at the same time.")] = 2,
    timeout_s: Annotated[float, typer.Option(help="A bug whose tests take longer is caught.")] = 120.0,
    required: Annotated[float, typer.Option(help="Least share of caught bugs.")] = 0.95,
    baseline: Annotated[bool, typer.Option(help="First run all tests of the list without a bug.")] = True,
) -> None:
    """Print which planted bugs the tests catch; exit code 1 if a smaller share than required."""
    chosen = [mutant for mutant in read_catalogue() if not areas or mutant.area in areas]
    chosen = [mutant for mutant in chosen if re.search(only, f"{mutant.path} {mutant.breaks}")]
    for mutant in chosen:
        mutant.applied()
    with TemporaryDirectory(prefix="willbuy-mutants-") as directory:
        copies = [copied(Path(directory) / str(number)) for number in range(jobs)]
        if baseline and not _passes(copies, chosen, timeout_s):
            for copy in copies:
                _CONSOLE.print(last_output(copy), markup=False, highlight=False)
            _CONSOLE.print("the tests fail without a planted bug", style="bold red")
            sys.exit(2)
        verdicts = _tried(copies, chosen, timeout_s)
    share = _shown(verdicts)
    sys.exit(share < required or any(verdict.word.startswith("tests not run") for verdict in verdicts))


def _passes(copies: Sequence[Path], chosen: Sequence[Mutant], timeout_s: float) -> bool:
    """Return whether the tests pass as the code is; else a bug that is caught would say nothing."""
    tests = sorted({test for mutant in chosen for test in mutant.tests})
    parts = [part for number in range(len(copies)) if (part := tests[number :: len(copies)])]
    with ThreadPoolExecutor(len(copies)) as pool, _CONSOLE.status(f"{len(tests)} files or tests without a bug"):
        codes = list(pool.map(lambda copy, part: run(copy, part, 20 * timeout_s), copies, parts))
    return all(code == pytest.ExitCode.OK for code in codes)


def _tried(copies: Sequence[Path], chosen: Sequence[Mutant], timeout_s: float) -> list[Verdict]:
    """Try each bug in a copy that is free."""
    free: SimpleQueue[Path] = SimpleQueue()
    for copy in copies:
        free.put(copy)

    def verdict_on(mutant: Mutant) -> Verdict:
        copy = free.get()
        started = time.monotonic()
        try:
            code = run_with(mutant, copy, timeout_s)
        finally:
            free.put(copy)
        return Verdict(mutant, code, time.monotonic() - started)

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[survived]} survived"))
    verdicts: list[Verdict] = []
    survived = 0
    with ThreadPoolExecutor(len(copies)) as pool, Progress(*columns, console=_CONSOLE) as progress:
        bar = progress.add_task("", total=len(chosen), survived=0)
        for verdict in pool.map(verdict_on, chosen):
            verdicts.append(verdict)
            survived += not verdict.is_caught
            if not verdict.is_caught:
                progress.console.print(
                    f"{verdict.word}: {verdict.mutant.path}: {verdict.mutant.breaks}", soft_wrap=True
                )
            progress.update(bar, advance=1, survived=survived)
    return verdicts


def _shown(verdicts: Sequence[Verdict]) -> float:
    """Print a table of the areas and one of the survivors; return the share of caught bugs."""
    areas = Table("area", "bugs", "caught", "seconds", title="planted bugs")
    for area, count in Counter(verdict.mutant.area for verdict in verdicts).items():
        some = [verdict for verdict in verdicts if verdict.mutant.area == area]
        caught, taken_s = sum(verdict.is_caught for verdict in some), sum(verdict.taken_s for verdict in some)
        areas.add_row(area, str(count), str(caught), f"{taken_s:.0f}")
    _CONSOLE.print(areas)
    if uncaught := [verdict for verdict in verdicts if not verdict.is_caught]:
        table = Table("verdict", "file", "breaks", "new text", "why")
        for verdict in uncaught:
            mutant = verdict.mutant
            table.add_row(verdict.word, mutant.path, mutant.breaks, mutant.new, mutant.equivalent)
        _CONSOLE.print(table)
    # As usual in mutation testing, what no test can tell does not count.
    counted = [verdict for verdict in verdicts if not verdict.mutant.equivalent]
    share = sum(verdict.is_caught for verdict in counted) / max(1, len(counted))
    _CONSOLE.print(f"caught {share:.1%} of {len(counted)}, and {len(verdicts) - len(counted)} are equivalent")
    return share


if __name__ == "__main__":
    typer.run(main)
