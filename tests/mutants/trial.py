"""Runs tests in copies of the repository, each run in a fork of a process that has the large libraries imported."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from mutants.catalogue import ROOT, Mutant

TIMED_OUT: Final = -1
_LOG: Final = "pytest.log"
_CONTEXT: Final = multiprocessing.get_context("forkserver")
# Their import takes two of the three seconds of a short run.
_CONTEXT.set_forkserver_preload(
    ["pytest", "numpy", "torch", "polars", "redis.asyncio", "fastapi", "hypothesis.strategies", "mutants.trial"]
)


def copied(copy: Path) -> Path:
    """Copy what git tracks or would track, and return the folder."""
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


def run_with(mutant: Mutant, copy: Path, timeout_s: float) -> int:
    """Return the exit code of the bug's tests with the bug in the copy."""
    path = copy / mutant.path
    original = path.read_text()
    try:
        path.write_text(mutant.applied(copy))
        return run(copy, mutant.tests, timeout_s)
    finally:
        path.write_text(original)


def run(copy: Path, tests: Sequence[str], timeout_s: float) -> int:
    """Run tests in a process of their own, from the copy, and return pytest's exit code."""
    process = _CONTEXT.Process(target=_pytest, args=(copy, list(tests)))
    process.start()
    process.join(timeout_s)
    code = TIMED_OUT if process.exitcode is None else process.exitcode
    # The servers that the tests started, too.
    with suppress(ProcessLookupError):
        os.killpg(process.pid or 0, signal.SIGKILL)
    process.join()
    return code


def last_output(copy: Path) -> str:
    """Return the end of what the last run in the copy printed."""
    log = copy / _LOG
    return log.read_text(errors="replace")[-3000:] if log.exists() else ""


def _pytest(copy: Path, tests: list[str]) -> None:
    """Run tests as the main program of this process and of a process group."""
    os.setsid()
    os.chdir(copy)
    # Else the next bug in a file of the same size and second would be read from this one's byte code.
    sys.dont_write_bytecode = True
    sys.path[:] = [
        str(copy),
        *(entry for entry in sys.path if not Path(entry).resolve().is_relative_to(ROOT) or "site-packages" in entry),
    ]
    os.environ |= {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    log = os.open(copy / _LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # Plugins are imported already, so their asserts stay as they are.
    imported = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    sys.exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *imported, *tests]))
