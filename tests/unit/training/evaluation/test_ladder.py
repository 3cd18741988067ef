"""The ladder: the same training for every rung, and what comes of it side by side."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.ladder import RUNGS, main, name_of, run_ladder, rungs_of
from model.artifact import load, read_manifest
from training.cli import cli
from training.config import RunConfig
from training.config_file import ConfigError
from training.evaluation.ladder import Rung
from training.synthetic import PRESETS, generate, write

BRIEF = ("--set", "pretraining.epochs=1")
BLIND, REMEMBERING = Rung("feed-forward", False), Rung("lstm", False)


@pytest.fixture(scope="module")
def config(settings) -> RunConfig:
    return RunConfig(replace(settings, fit=replace(settings.fit, epochs=4), lightgbm=False))


@pytest.fixture(scope="module")
def climbed(shop, config, tmp_path_factory) -> Path:
    """The ladder's lowest rung, and an LSTM without aggregates, on 3,000 sessions of the synthetic shop."""
    folder = tmp_path_factory.mktemp("ladder")
    run_ladder(shop.dataset.path, folder, config, rungs=(BLIND, REMEMBERING), report=False)
    return folder


def test_the_ladder_has_four_cells_each_without_and_with_aggregates() -> None:
    assert [name_of(rung) for rung in RUNGS] == [
        *("feed-forward-no-aggregates", "rnn-no-aggregates", "gru-no-aggregates", "lstm-no-aggregates"),
        *("feed-forward", "rnn", "gru", "lstm"),
    ]


@pytest.mark.slow
def test_rungs_differ_in_nothing_but_cell_and_aggregates(climbed) -> None:
    blind, remembering = (read_manifest(climbed / f"{name_of(rung)}.pt") for rung in (BLIND, REMEMBERING))
    assert (blind.sizes["cell"], blind.sizes["aggregates"]) == ("feed-forward", False)
    assert (remembering.sizes["cell"], remembering.sizes["aggregates"]) == ("lstm", False)
    assert blind.sizes | {"cell": "lstm"} == remembering.sizes
    ran = ("seconds", "best_epoch", "epochs_run")
    alike = [{name: told for name, told in each.training.items() if name not in ran} for each in (blind, remembering)]
    alike[0]["sizes"] = alike[1]["sizes"]
    assert alike[0] == alike[1]
    # The base rate that probabilities have follows from each model's own calibration.
    assert {**blind.data, "base_rate": None} == {**remembering.data, "base_rate": None}


@pytest.mark.slow
def test_memory_buys_nothing_at_the_first_event_and_much_later_on(climbed) -> None:
    summary = json.loads((climbed / "ladder.json").read_text("utf-8"))
    blind, remembering = (summary[name_of(rung)]["scores"] for rung in (BLIND, REMEMBERING))
    assert list(blind) == ["1", "2", "3", "5", "8", "10", "15", "20", "all"]
    assert remembering["1"]["log_loss"] == pytest.approx(blind["1"]["log_loss"], abs=0.01)
    assert remembering["8"]["auc"] > blind["8"]["auc"] + 0.02
    assert remembering["all"]["log_loss"] < blind["all"]["log_loss"] - 0.01


@pytest.mark.slow
def test_resuming_keeps_what_is_there(shop, config, climbed, capsys) -> None:
    before = (climbed / f"{name_of(BLIND)}.pt").stat().st_mtime_ns
    # When the ladder is asked for again
    manifests = run_ladder(shop.dataset.path, climbed, config, resume=True, rungs=(BLIND, REMEMBERING), report=False)
    # Then nothing was trained anew
    assert (climbed / f"{name_of(BLIND)}.pt").stat().st_mtime_ns == before
    assert list(manifests) == [name_of(BLIND), name_of(REMEMBERING)]
    said = capsys.readouterr().out
    assert said.count("kept") == 2
    assert "log loss by number of events" in said
    assert "AUC by number of events" in said


@pytest.mark.slow
def test_a_rung_of_other_settings_is_not_taken_for_one_of_these(shop, config, climbed) -> None:
    other = replace(config, train=replace(config.train, quantile_bins=3))
    with pytest.raises(ConfigError, match=r"feed-forward-no-aggregates\.pt: was trained with other .*quantile_bins"):
        run_ladder(shop.dataset.path, climbed, other, resume=True, rungs=(BLIND,))


def test_rungs_are_chosen_by_name_and_climbed_from_the_lowest_up() -> None:
    assert rungs_of([]) == RUNGS
    assert rungs_of(["lstm", "rnn-no-aggregates"]) == (Rung("rnn", False), Rung("lstm", True))
    with pytest.raises(ConfigError, match=r"--only: expected one of feed-forward-no-aggregates, .*not 'transformer'"):
        rungs_of(["lstm", "transformer"])


# --- as commands


def command(*arguments: object, of: typer.Typer = cli) -> str:
    result = CliRunner().invoke(of, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("log") / "shop.parquet"
    write(generate(PRESETS["default"], 400, seed=4), path)
    return path


@pytest.mark.slow
def test_train_takes_the_cell_and_leaves_out_the_aggregates(log, no_page, tmp_path) -> None:
    options = ("--cell", "gru", "--no-aggregates", "--hidden-size", 8, "--epochs", 1, "--no-lightgbm")
    command("train", log, "--out", tmp_path / "model.pt", *options, *BRIEF)
    module, manifest = load(tmp_path / "model.pt")
    assert (manifest.sizes["cell"], manifest.sizes["aggregates"]) == ("gru", False)
    assert manifest.training["sizes"]["cell"] == "gru"
    assert manifest.state["hidden"] == 8
    # Three gates of eight units over what the event says by itself
    assert module.state_dict()["lstm.weights.0"].shape[0] == 3 * 8
    assert len(module.state_dict()["feature_mean"]) < len(manifest.features) / 2


def test_an_unknown_cell_is_refused_with_those_there_are(log, tmp_path) -> None:
    result = CliRunner().invoke(cli, ["train", str(log), "--out", str(tmp_path / "m.pt"), "--cell", "transformer"])
    assert result.exit_code != 0
    assert "feed-forward" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_ladder_command_trains_what_was_asked_for_and_says_what_to_do_next(log, no_page, tmp_path) -> None:
    folder = tmp_path / "rungs"
    chosen = ("--only", "lstm", "--only", "feed-forward", "--set", "fit.epochs=1", "--seed", 3)
    ladder = typer.Typer()
    ladder.command()(main)
    said = command(log, "--out", folder, *chosen, *BRIEF, "--set", "sizes.hidden_size=8", of=ladder)
    assert {path.stem for path in folder.glob("*.pt")} == {"lstm", "feed-forward"}
    assert set(json.loads((folder / "ladder.json").read_text("utf-8"))) == {"lstm", "feed-forward"}
    assert read_manifest(folder / "lstm.pt").training["fit"]["seed"] == 3
    assert "log loss by number of events" in said
    # And the report says what memory bought
    steps = json.loads((folder / "ladder.report.json").read_text("utf-8"))["ladder"]
    assert [(step["buys"], step["having"], step["lacking"]) for step in steps] == [("memory", "lstm", "feed-forward")]
    assert (folder / "ladder.report.html").is_file()
