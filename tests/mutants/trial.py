"""Runs tests in copies of the repository, each run in a fork of a process that has imported all but our own modules."""

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from mutants.catalogue import ROOT, Mutant

TIMED_OUT: Final = -1
_LOG: Final = "pytest.log"
_RESULT: Final = "result.json"
_COLLECTED: Final = """
import json, sys
from pathlib import Path
import pytest

class Names:
    found = []
    def pytest_collection_finish(self, session):
        self.found = [item.nodeid for item in session.items]

names = Names()
code = pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[names])
specs = {name: getattr(module, "__spec__", None) for name, module in list(sys.modules.items())}
origins = {name: spec.origin for name, spec in specs.items() if spec is not None and isinstance(spec.origin, str)}
Path("result.json").write_text(json.dumps([int(code), names.found, origins]))
"""


@dataclass(frozen=True, slots=True)
class Result:
    """How a run of tests ended.

    Attributes:
        code: pytest's exit code, or `TIMED_OUT`.
        failed: node id of the test that failed, or the path of the file that could not be imported.
        taken_s, cpu_s: seconds, and those of processors in pytest and in what it waited for.
    """

    code: int
    failed: str = ""
    taken_s: float = 0.0
    cpu_s: float = 0.0

    @property
    def is_caught(self) -> bool:
        """Whether a test failed, or none ended in time."""
        return self.code in {pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED, TIMED_OUT}

    def __add__(self, later: "Result") -> "Result":
        """Return the later result with the time of both."""
        return replace(later, taken_s=self.taken_s + later.taken_s, cpu_s=self.cpu_s + later.cpu_s)


class Copies:
    """Copies of the repository that are alike, with byte code.

    Runs fork from a process that has imported what the tests import from elsewhere: else each would take seconds more.

    Attributes:
        folders: the copies.
        tests: node ids of all tests in the files.
    """

    def __init__(self, folder: Path, number: int, tests: Sequence[str]) -> None:
        """Copy what git tracks or would track.

        Args:
            folder: for the copies.
            number: of copies.
            tests: files whose imports count.

        Raises:
            RuntimeError: the tests cannot be collected.
        """
        first = _copied(folder / "0")
        # Writes byte code, too.
        collected = subprocess.run(
            [sys.executable, "-c", _COLLECTED, *tests],
            cwd=first,
            env=os.environ | {"PYTHONPATH": str(first)},
            check=False,
            capture_output=True,
            text=True,
        )
        code, names, origins = json.loads((first / _RESULT).read_text()) if (first / _RESULT).exists() else (1, [], {})
        if code != pytest.ExitCode.OK:
            raise RuntimeError(collected.stdout[-3000:] + collected.stderr[-3000:])
        self.tests = frozenset(names)
        self.folders = [first, *(Path(shutil.copytree(first, folder / str(copy))) for copy in range(1, number))]
        self._context = multiprocessing.get_context("forkserver")
        theirs = [name for name, origin in origins.items() if name != "__main__" and str(first) not in origin]
        self._context.set_forkserver_preload([*theirs, "mutants.trial"])

    def run_with(self, mutant: Mutant, copy: Path, tests: Sequence[str], timeout_s: float) -> Result:
        """Run tests with the bug in the copy."""
        path = copy / mutant.path
        original, status = path.read_text(), path.stat()
        try:
            path.write_text(mutant.applied(copy))
            return self.run(copy, tests, timeout_s)
        finally:
            path.write_text(original)
            # So that the byte code is valid again
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def run(self, copy: Path, tests: Sequence[str], timeout_s: float) -> Result:
        """Run tests in a process of their own, from the copy."""
        (copy / _RESULT).unlink(missing_ok=True)
        started = time.monotonic()
        process = self._context.Process(target=_pytest, args=(copy, list(tests)))
        process.start()
        process.join(timeout_s)
        code = TIMED_OUT if process.exitcode is None else process.exitcode
        # The servers that the tests started, too.
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
        said = json.loads((copy / _RESULT).read_text()) if (copy / _RESULT).exists() else {}
        return Result(code, **said, taken_s=time.monotonic() - started)


def last_output(copy: Path) -> str:
    """Return the end of what the last run in the copy printed."""
    log = copy / _LOG
    return log.read_text(errors="replace")[-3000:] if log.exists() else ""


def _copied(copy: Path) -> Path:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


class _FirstFailure:
    """Plugin of pytest that keeps which test failed first."""

    failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed = self.failed or report.nodeid * report.failed

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self.failed = self.failed or report.nodeid * report.failed


def _pytest(copy: Path, tests: list[str]) -> None:
    """Run tests as the main program of this process and of a process group."""
    os.setsid()
    os.chdir(copy)
    # Byte code of a planted bug would be taken for that of the next one in a file of the same size and second.
    sys.dont_write_bytecode = True
    sys.path[:] = [
        str(copy),
        *(entry for entry in sys.path if not Path(entry).resolve().is_relative_to(ROOT) or "site-packages" in entry),
    ]
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    log = os.open(copy / _LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    first = _FirstFailure()
    # Plugins are imported already, so their asserts stay as they are.
    imported = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutants"]
    code = pytest.main([*options, *imported, *tests], plugins=[first])
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu_s = sum(one.ru_utime + one.ru_stime for one in used)
    (copy / _RESULT).write_text(json.dumps({"failed": first.failed, "cpu_s": cpu_s}))
    sys.exit(code)
