"""docs/training.md: its commands run, in order, and its tables are those of the code."""

import re
import shlex
from pathlib import Path

import pytest
from support import paths
from typer.testing import CliRunner

from training.cli import cli
from training.fit.search import CHOICES, RANGES

TEXT = (paths.DOCS / "training.md").read_text("utf-8")
# What the page does on a scale that takes a while.
SMALLER = {
    "--sessions 20000": "--sessions 700",
    "--sessions 4000": "--sessions 500",
    "--search 20": "--search 2",
    "willbuy compare": "willbuy compare --bootstrap 100",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def smaller(text: str) -> str:
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    return text


@pytest.mark.slow
def test_every_command_of_the_page_runs(no_page, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    [config] = blocks("toml")
    # Of each step there is enough to run through it.
    small = "hidden_size = 8\nhead_size = 8\n[pretraining]\nepochs = 1\n"
    assert config.count("[sizes]\n") == 1
    tables = config.replace("epochs = 12", "epochs = 2").partition("[sizes]\n")
    Path("run.toml").write_text("".join(tables) + small)
    # Runs without a file would take the default number of epochs
    Path("quick.toml").write_text(f"lightgbm = false\n[fit]\nepochs = 2\n[compute]\ndevice = 'cpu'\n[sizes]\n{small}")
    done = 0
    for line in "".join(blocks("sh")).splitlines():
        arguments = shlex.split(smaller(line))
        assert arguments.pop(0) == "willbuy", line
        if arguments[0] == "train" and "--config" not in arguments and "--print-config" not in arguments:
            arguments += ["--config", "quick.toml"]
        result = CliRunner().invoke(cli, arguments)
        allowed = {0, 3} if "--gate" in arguments else {0}
        assert result.exit_code in allowed, f"{line}\n{result.output}\n{result.exception!r}"
        done += 1
    assert done > 10
    # And what the page says is left is left
    for name in ("january.config.toml", "january.run.json", "january.report.json", "best.trials.csv"):
        assert Path(name).is_file()
    assert not Path("best.best.toml").exists()


@pytest.mark.parametrize("key", [*RANGES, *CHOICES])
def test_the_table_of_the_search_space_is_the_search_space(key) -> None:
    [row] = re.findall(rf"^\| `{re.escape(key)}` \| (.*) \|$", TEXT, re.MULTILINE)
    if key in CHOICES:
        assert row == ", ".join(map(str, CHOICES[key]))
    else:
        low, high, logarithmic = RANGES[key]
        assert row == f"{low:g} to {high:g}" + ", by its logarithm" * logarithmic
