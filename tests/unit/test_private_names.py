"""Tests that import or patch a private name say why on its line; ruff asks the same of private attributes (SLF001)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SAID = "# private: "


def unexplained(text: str) -> Iterator[str]:
    """The lines that import a name with an underscore, or patch one, without a reason."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.ImportFrom(names=imported):
                names = [alias.name for alias in imported]
            case ast.Call(func=ast.Attribute(attr="setattr" | "delattr"), args=arguments):
                given = [argument.value for argument in arguments[:2] if isinstance(argument, ast.Constant)]
                names = [str(value).rpartition(".")[2] for value in given]
            case _:
                continue
        statement = "\n".join(lines[node.lineno - 1 : node.end_lineno])
        if any(name.startswith("_") and not name.startswith("__") for name in names) and SAID not in statement:
            yield lines[node.lineno - 1].strip()


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_private_names_have_a_reason(path: Path) -> None:
    assert list(unexplained(path.read_text())) == []


@pytest.mark.parametrize(
    "line",
    [
        "from app.main import _part",
        "monkeypatch.setattr('app.main._PART', 1)",
        "monkeypatch.setattr(main, '_part', 1)",
        "patch.delattr(main, '_part')",
    ],
)
def test_private_names_are_found(line: str) -> None:
    assert list(unexplained(line)) == [line]
    assert list(unexplained(f"{line}  {SAID}no other way")) == []
    assert list(unexplained(line.replace("_", ""))) == []
