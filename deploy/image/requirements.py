# ruff: noqa: INP001  # a script that the Dockerfile copies by itself, not a package
"""Print what pyproject.toml requires, a line each, for layers that do not change with the source.

Run by the Dockerfile before the source is there: `python3 requirements.py pyproject.toml [--extra NAME]`.
"""

import argparse
import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """Return the project's dependencies and those of the extras, as pip reads them."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


def main() -> None:
    """Print them to standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pyproject", type=Path)
    parser.add_argument("--extra", action="append", default=[], dest="extras")
    arguments = parser.parse_args()
    sys.stdout.write("\n".join(requirements(arguments.pyproject, arguments.extras)) + "\n")


if __name__ == "__main__":
    main()
