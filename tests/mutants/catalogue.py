"""The list of planted bugs: one TOML file an area, in this folder.

    [[file]]
    path = "model/base_rate.py"
    tests = ["tests/unit/model/test_base_rate.py"]      # paths or node ids, those that fail soonest first

    mutants = [
        { old = "bisect_left", new = "bisect_right", breaks = "a full batch is padded to the next size" },
    ]

`old` occurs once in the file. `tests` of a mutant replace the file's. `equivalent` says why no test can tell.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
# Which test caught a bug when it was last tried, by `Mutant.key`; `make mutants` writes it.
CATCHES = FOLDER / "catches.json"


class CatalogueError(ValueError):
    """The list of planted bugs does not fit the code."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One planted bug.

    Attributes:
        area: name of the list it is in.
        path: the file, relative to the repository.
        old, new: the text that is replaced, which occurs once, and its replacement.
        breaks: what goes wrong.
        tests: paths or node ids of the tests that are to fail.
        equivalent: why no test can fail; empty if one must.
    """

    area: str
    path: str
    old: str
    new: str
    breaks: str
    tests: tuple[str, ...]
    equivalent: str = ""

    @property
    def key(self) -> str:
        """What is the same as long as the bug is."""
        digest = hashlib.sha256(f"{self.old} -> {self.new}".encode()).hexdigest()
        return f"{self.path} {digest[:12]}"

    def applied(self, root: Path = ROOT) -> str:
        """Return the text of the file in `root` with the bug in it.

        Raises:
            CatalogueError: the old text does not occur exactly once, or the new one is the same.
        """
        text = (root / self.path).read_text()
        if (count := text.count(self.old)) != 1 or self.old == self.new:
            raise CatalogueError(f"{self.area}: {self.path} has {count} times, not once: {self.old!r}")
        return text.replace(self.old, self.new)


def read_catalogue(areas: list[Path] | None = None) -> list[Mutant]:
    """Return all planted bugs, by area and file."""
    return [mutant for area in areas or sorted(FOLDER.glob("*.toml")) for mutant in _read(area)]


def read_catches() -> dict[str, str]:
    """Return the node id of the test that caught a bug, by `Mutant.key`."""
    return json.loads(CATCHES.read_text()) if CATCHES.exists() else {}


def _read(area: Path) -> Iterator[Mutant]:
    for file in tomllib.loads(area.read_text())["file"]:
        for mutant in file["mutants"]:
            fields = {"tests": file["tests"], **mutant}
            yield Mutant(area.stem, file["path"], **{**fields, "tests": tuple(fields["tests"])})
