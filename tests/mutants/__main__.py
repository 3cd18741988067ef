"""Plants each bug of the list in a copy of the repository and runs its tests: `make mutants`."""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
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

from mutants.catalogue import CATCHES, Mutant, read_catalogue, read_catches
from mutants.trial import TIMED_OUT, Copies, Result, last_output

_CONSOLE = Console()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Result of the tests for one planted bug."""

    mutant: Mutant
    result: Result

    @property
    def word(self) -> str:
        """The verdict in words."""
        if self.result.code == TIMED_OUT:
            return "caught: timeout"
        if self.result.is_caught:
            return "caught: marked as equivalent" if self.mutant.equivalent else "caught"
        if self.result.code != pytest.ExitCode.OK:
            return f"tests not run: exit code {self.result.code}"
        return "equivalent" if self.mutant.equivalent else "SURVIVED"


def main(
    areas: Annotated[list[str] | None, typer.Argument(help="Names of lists; all without one.")] = None,
    only: Annotated[str, typer.Option(help="Only bugs whose path or description this pattern matches.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Copies in which bugs are tried at the same time.")] = 2,
    timeout_s: Annotated[float, typer.Option(help="A bug whose tests take longer is caught.")] = 120.0,
    required: Annotated[float, typer.Option(help="Least share of caught bugs.")] = 0.95,
    baseline: Annotated[bool, typer.Option(help="Run the tests that catch a bug without one, too.")] = True,
) -> None:
    """Print which planted bugs the tests catch; exit code 1 if a smaller share than required.

    The test that caught a bug is kept in catches.json and runs first the next time.
    """
    # Each copy has one processor.
    os.environ["OMP_NUM_THREADS"] = "1"
    chosen = [mutant for mutant in read_catalogue() if not areas or mutant.area in areas]
    chosen = [mutant for mutant in chosen if re.search(only, f"{mutant.path} {mutant.breaks}")]
    for mutant in chosen:
        mutant.applied()
    files = sorted({test.partition("::")[0] for mutant in chosen for test in mutant.tests})
    with TemporaryDirectory(prefix="willbuy-mutants-") as directory:
        copies = Copies(Path(directory), jobs, files)
        caught = {key: test for key, test in read_catches().items() if test in copies.tests}
        known = {caught[mutant.key] for mutant in chosen if mutant.key in caught}
        if baseline:
            _check_without_a_bug(copies, known, timeout_s)
        verdicts = _tried(copies, chosen, caught, timeout_s)
        if baseline:
            failed = {verdict.result.failed for verdict in verdicts}
            _check_without_a_bug(copies, failed & copies.tests - known, timeout_s)
    _keep_catches(verdicts)
    share = _shown(verdicts)
    sys.exit(share < required or any(verdict.word.startswith("tests not run") for verdict in verdicts))


def _check_without_a_bug(copies: Copies, tests: set[str], timeout_s: float) -> None:
    """Exit with code 2 if one of the tests fails without a planted bug: its failure with one says nothing."""
    number = len(copies.folders)
    ordered = sorted(tests)
    # Neighbours share their fixtures.
    size = -(-len(ordered) // number) or 1
    parts = [ordered[first : first + size] for first in range(0, len(ordered), size)]
    with ThreadPoolExecutor(number) as pool, _CONSOLE.status(f"{len(tests)} tests without a bug"):
        results = list(pool.map(lambda copy, part: copies.run(copy, part, 20 * timeout_s), copies.folders, parts))
    if any(result.code != pytest.ExitCode.OK for result in results):
        for copy in copies.folders:
            _CONSOLE.print(last_output(copy), markup=False, highlight=False)
        _CONSOLE.print("tests fail without a planted bug", style="bold red")
        sys.exit(2)


def _tried(copies: Copies, chosen: Sequence[Mutant], caught: Mapping[str, str], timeout_s: float) -> list[Verdict]:
    """Try each bug in a copy that is free: first the test that caught it before, then all of its tests."""
    free: SimpleQueue[Path] = SimpleQueue()
    for copy in copies.folders:
        free.put(copy)

    def verdict_on(mutant: Mutant) -> Verdict:
        copy = free.get()
        try:
            result = Result(pytest.ExitCode.OK)
            if mutant.key in caught:
                result = copies.run_with(mutant, copy, [caught[mutant.key]], timeout_s)
            if not result.is_caught:
                result += copies.run_with(mutant, copy, mutant.tests, timeout_s)
        finally:
            free.put(copy)
        return Verdict(mutant, result)

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[survived]} survived"))
    verdicts: list[Verdict] = []
    survived = 0
    with ThreadPoolExecutor(len(copies.folders)) as pool, Progress(*columns, console=_CONSOLE) as progress:
        bar = progress.add_task("", total=len(chosen), survived=0)
        for verdict in pool.map(verdict_on, chosen):
            verdicts.append(verdict)
            survived += not verdict.result.is_caught
            # All of them where no bar shows how far it is.
            if verdict.word != "caught" or not _CONSOLE.is_terminal:
                taken = f"{verdict.word}, {verdict.result.taken_s:.0f} s"
                progress.console.print(f"{taken}: {verdict.mutant.path}: {verdict.mutant.breaks}", soft_wrap=True)
            progress.update(bar, advance=1, survived=survived)
    return verdicts


def _keep_catches(verdicts: Sequence[Verdict]) -> None:
    """Store which test caught which bug of the present list."""
    catches = read_catches() | {each.mutant.key: each.result.failed for each in verdicts if each.result.failed}
    known = {mutant.key for mutant in read_catalogue()}
    kept = {key: catches[key] for key in sorted(catches) if key in known}
    CATCHES.write_text(json.dumps(kept, indent=0, ensure_ascii=False) + "\n")


def _shown(verdicts: Sequence[Verdict]) -> float:
    """Print a table of the areas and one of the survivors; return the share of caught bugs."""
    table = Table("area", "bugs", "caught", "equivalent", "survived", "seconds", "processor s", title="planted bugs")
    for area in [*dict.fromkeys(verdict.mutant.area for verdict in verdicts), ""]:
        some = [verdict for verdict in verdicts if area in {verdict.mutant.area, ""}]
        words = Counter(verdict.word.partition(":")[0] for verdict in some)
        taken_s, cpu_s = (sum(getattr(verdict.result, name) for verdict in some) for name in ("taken_s", "cpu_s"))
        counts = (len(some), words["caught"], words["equivalent"], words["SURVIVED"])
        table.add_row(area or "all", *map(str, counts), f"{taken_s:.0f}", f"{cpu_s:.0f}")
    _CONSOLE.print(table)
    if others := [verdict for verdict in verdicts if verdict.word != "caught"]:
        table = Table("verdict", "file", "breaks", "new text", "why")
        for verdict in others:
            mutant = verdict.mutant
            table.add_row(verdict.word, mutant.path, mutant.breaks, mutant.new, mutant.equivalent)
        _CONSOLE.print(table)
    # As usual in mutation testing, what no test can tell does not count.
    counted = [verdict for verdict in verdicts if not verdict.mutant.equivalent]
    share = sum(verdict.result.is_caught for verdict in counted) / max(1, len(counted))
    _CONSOLE.print(f"caught {share:.1%} of {len(counted)}, and {len(verdicts) - len(counted)} are equivalent")
    return share


if __name__ == "__main__":
    typer.run(main)
