"""No file that is read runs code, but for the artifact, which is code and is loaded from configured paths alone."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted(path for package in ("app", "model", "training") for path in (ROOT / package).rglob("*.py"))
# Modules whose readers run what a file says.
RUNNING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def calls(tree, name):
    """Calls of a function by its whole name, such as `torch.load`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
            yield {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def test_nothing_is_read_by_what_runs_it() -> None:
    assert len(SOURCES) > 150
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        assert not RUNNING & set(imported(tree)), path
        assert all(given.get("weights_only") == "True" for given in calls(tree, "torch.load")), path
        assert all(given.get("allow_pickle", "False") == "False" for given in calls(tree, "np.load")), path
        assert not [*calls(tree, "eval"), *calls(tree, "exec")], path


def test_what_is_looked_for_would_be_found() -> None:
    tree = ast.parse("import pickle\nfrom joblib import load\ntorch.load(path, weights_only=False)\nexec(code)")
    assert RUNNING & set(imported(tree)) == {"pickle", "joblib"}
    assert list(calls(tree, "torch.load")) == [{"weights_only": "False"}]
    assert list(calls(tree, "exec")) == [{}]


def test_torchscript_is_loaded_in_one_place() -> None:
    loading = [path for path in SOURCES if list(calls(ast.parse(path.read_text()), "torch.jit.load"))]
    assert loading == [ROOT / "model" / "artifact.py"]
