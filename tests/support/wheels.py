"""Wheels that tests build."""

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from conftest import missing


def build_wheel(source: Path, out: Path) -> Path:
    """Build the wheel of a project offline, with the build backend that is installed."""
    try:
        distribution("hatchling")
    except ModuleNotFoundError:
        raise missing("hatchling") from None  # type: ignore[no-untyped-call]  # conftest.py has no types
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = out.iterdir()
    return path
