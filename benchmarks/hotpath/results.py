"""Where figures go: a JSON file with a section a measurement, and Markdown between two marks of a document."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.hotpath.processes import BenchmarkError
from benchmarks.hotpath.servers import ROOT

JSON_FILE: Final = ROOT / "benchmarks" / "results" / "hotpath.json"
DOCUMENT: Final = ROOT / "docs" / "reference" / "hot-path.md"


def read_section(name: str, file: Path = JSON_FILE) -> dict[str, Any]:
    """Return what a measurement left; raise `BenchmarkError` where it has not been made."""
    sections = _read(file)
    if name not in sections:
        raise BenchmarkError(f"{file} has no section {name!r}: run `python -m benchmarks.hotpath {name}` first.")
    found: dict[str, Any] = sections[name]
    return found


def write_section(name: str, machine: Mapping[str, str], figures: Mapping[str, Any], file: Path = JSON_FILE) -> None:
    """Put a measurement's figures into the file, beside those of others."""
    sections = _read(file) | {name: {"machine": dict(machine), **figures}}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(sections, indent=1) + "\n", encoding="utf-8")


def write_markdown(name: str, lines: Sequence[str], document: Path = DOCUMENT) -> None:
    """Put lines between `[//]: # (hotpath:NAME begin)` and `[//]: # (hotpath:NAME end)`, Markdown's invisible lines.

    Raises:
        BenchmarkError: the document has no such marks.
    """
    begin, end = (f"[//]: # (hotpath:{name} {mark})" for mark in ("begin", "end"))
    before, opened, rest = document.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):
        raise BenchmarkError(f"{document} lacks the lines {begin} and {end}, between which the table goes.")
    # Blank lines around: else a mark would be part of the table before it.
    document.write_text("\n".join([f"{before}{begin}", "", *lines, "", f"{end}{after}"]), encoding="utf-8")


def machine_line(machine: Mapping[str, str]) -> str:
    """Return date, processor, memory, who ran on which core and what ran willbuy's step; the JSON file has versions."""
    told = f"Measured on {machine['date']}: {machine['processor']}, {machine['memory']}. Cores: {machine['cores']}."
    told += f" Step of willbuy: {machine['step']}." if "step" in machine else ""
    return told + (f" Before: {machine['before']}." if "before" in machine else "")


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table, first column to the left and the others to the right."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Return the median, and from where to where the values go; of none, that all rounds were void."""
    if not values:
        return "void"
    if len(values) == 1:
        return format(values[0], form)
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
