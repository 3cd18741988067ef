# ruff: noqa: INP001  # a script that the Dockerfile copies separately, not a package
"""Print the requirements in pyproject.toml, one a line, for image layers that do not depend on the source.

The Dockerfile runs it before it copies the source: `python3 requirements.py pyproject.toml [--extra NAME]`.
"""

import argparse
import sys
import tomllib
from pathlib import Path


def requirements(pyproject: Path, extras: list[str]) -> list[str]:
    """Return the dependencies of the project and of the extras, in pip's syntax."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    optional = project.get("optional-dependencies", {})
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


def main() -> None:
    """Print the requirements to standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pyproject", type=Path)
    parser.add_argument("--extra", action="append", default=[], dest="extras")
    arguments = parser.parse_args()
    sys.stdout.write("\n".join(requirements(arguments.pyproject, arguments.extras)) + "\n")


if __name__ == "__main__":
    main()
