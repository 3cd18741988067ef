"""Every cell of the documentation's notebooks, run in this process as its reader would run it."""

import ast
import json
import sys
import tempfile
from pathlib import Path

import pytest
from support.paths import ROOT

NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given folders that end with the test
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    shown: list[object] = []
    monkeypatch.setattr(sys, "displayhook", shown.append)
    # When its cells are run in order
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        if cell["cell_type"] == "code":
            for statement in ast.parse("".join(cell["source"])).body:
                program = compile(ast.Interactive([statement]), f"{path.name}, cell {number}", "single")
                exec(program, names)
    # Then they have values to show, and each can be shown
    values = [value for value in shown if value is not None]
    assert values
    for value in values:
        assert repr(value)
        if hasattr(value, "_repr_html_"):
            assert value._repr_html_()
