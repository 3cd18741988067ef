"""The search for settings: seeded, honest, encoded once, and not lost when it is broken off."""

import csv
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path

import pytest
from support import paths
from typer.testing import CliRunner

from model.artifact import read_manifest
from model.sizes import NetworkSizes
from training.cli import cli
from training.config import FitSettings, PretrainingSettings, TrainSettings
from training.config_file import read_config
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.data.training_set import TrainingError
from training.fit.result import TrainResult
from training.fit.search import CHOICES, RANGES, Search, Trial, with_values
from training.fit.train import train
from training.runtime.progress import Stage
from training.synthetic import PRESETS, generate, write

pytestmark = pytest.mark.slow

ROOT = paths.ROOT
BASE = TrainSettings(
    fit=FitSettings(epochs=3, patience=3, batch_sessions=64, learning_rate=4e-3, weight_decay=0.05, seed=1),
    sizes=NetworkSizes(hidden_size=8, head_size=8, dropout=0.1, input_dropout=0.0),
    quantile_bins=5,
    # A trial takes as long as its pre-training, which has tests of its own.
    pretraining=PretrainingSettings(epochs=1),
    lightgbm=False,
)


@dataclass
class Stages:
    """Notes which stages there were, and what was said last in each."""

    names: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str, steps: int) -> Iterator[Stage]:
        self.names.append(name)

        def show(done: int, note: str = "") -> None:
            assert 0 <= done <= steps
            self.notes[name] = note

        yield show


@dataclass
class Searched:
    """A search and the training with what it found."""

    search: Search
    result: TrainResult
    stages: Stages


def best_of(search: Search) -> Trial:
    best = search.best
    assert best is not None
    return best


def loss_of(trial: Trial) -> float:
    assert trial.validation_loss is not None
    return trial.validation_loss


def searched(data: PreparedDataset, base: TrainSettings, trials: int, table: Path | None = None) -> Searched:
    stages = Stages()
    search = Search(base, trials, table, stages=stages)
    return Searched(search, train(data, base, stages=stages, tune=search), stages)


@pytest.fixture(scope="module")
def small_shop(tmp_path_factory) -> PreparedDataset:
    """Fewer sessions than in other tests, since there are many trials."""
    folder = tmp_path_factory.mktemp("smaller-shop")
    write(generate(PRESETS["default"], 400, seed=3), folder / "shop.parquet")
    return prepare(folder / "shop.parquet", folder / "prepared")


@pytest.fixture(scope="module")
def six(small_shop, tmp_path_factory) -> Searched:
    return searched(small_shop, BASE, 6, tmp_path_factory.mktemp("search") / "trials.csv")


def test_the_first_trial_is_the_settings_as_given(six) -> None:
    first = six.search.trials[0]
    assert with_values(BASE, first.settings) == BASE
    assert first.settings.keys() == {*RANGES, *CHOICES}
    assert first.state == "complete"


def test_the_space_covers_all_steps_of_the_recipe_and_reaches_the_defaults() -> None:
    assert {key.partition(".")[0] for key in (*RANGES, *CHOICES)} == {"fit", "pretraining", "sizes", "quantile_bins"}
    defaults = TrainSettings()
    for key, (low, high, _) in RANGES.items():
        assert low <= attrgetter(key)(defaults) <= high
    for key, choices in CHOICES.items():
        assert attrgetter(key)(defaults) in choices
    changed = with_values(defaults, {"pretraining.steps": 150, "fit.teacher_weight": 0.5, "quantile_bins": 6})
    assert (changed.pretraining.steps, changed.fit.teacher_weight, changed.quantile_bins) == (150, 0.5, 6)


def test_the_best_trial_is_trained_with_as_it_was_tried(six) -> None:
    best = best_of(six.search)
    complete = [trial for trial in six.search.trials if trial.state == "complete"]
    assert best.validation_loss == min(map(loss_of, complete))
    assert six.search.settings == with_values(BASE, best.settings)
    assert six.result.model.sizes == six.search.settings.sizes
    # The same settings and the same seed: the same loss on the validation sessions, to the last bit.
    assert six.result.fit.best_loss == best.validation_loss


def test_trials_differ_and_stay_inside_the_space(six) -> None:
    assert len({tuple(trial.settings.values()) for trial in six.search.trials}) == 6
    for trial in six.search.trials:
        for key, (low, high, _) in RANGES.items():
            assert low <= trial.settings[key] <= high
        for key, choices in CHOICES.items():
            assert trial.settings[key] in {*choices, six.search.trials[0].settings[key]}


def test_sessions_are_encoded_once_for_all_trials_and_the_training(six) -> None:
    assert six.stages.names.count("encoding sessions") == 1
    assert six.stages.names.count("searching settings") == 1
    assert "6 of 6 trials, best " in six.stages.notes["searching settings"]


def test_the_same_seed_is_the_same_search_and_another_seed_is_not(six, small_shop) -> None:
    again = searched(small_shop, BASE, 3).search
    for trial, same in zip(six.search.trials, again.trials, strict=False):
        assert replace(trial, seconds=0.0) == replace(same, seconds=0.0)
    other = Search(replace(BASE, fit=replace(BASE.fit, seed=2)), 2)
    train(small_shop, BASE, tune=other)
    assert other.trials[1].settings != again.trials[1].settings


def test_the_table_has_every_trial(six) -> None:
    with six.search.table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["number"]) for row in rows] == list(range(6))
    for row, trial in zip(rows, six.search.trials, strict=True):
        assert float(row["validation_loss"]) == trial.validation_loss
        assert row["state"] == trial.state
        assert {key: float(row[key]) for key in trial.settings} == trial.settings


def test_a_trial_that_is_worse_than_the_median_is_stopped_early(small_shop) -> None:
    # Given settings of which the first are good, and a space widened so far down that most draws learn nothing
    base = replace(BASE, fit=replace(BASE.fit, epochs=6, patience=6, learning_rate=1e-7))
    search = searched(small_shop, base, 9).search
    pruned = [trial for trial in search.trials if trial.state == "pruned"]
    assert pruned
    for trial in pruned:
        # Then it stops before the last epoch, and never is the best
        assert trial.epochs < 6
        assert loss_of(trial) > loss_of(best_of(search))


def test_without_any_number_as_a_loss_the_search_fails_in_words(small_shop) -> None:
    base = replace(BASE, fit=replace(BASE.fit, learning_rate=1e30))
    with pytest.raises(TrainingError, match="never a number in any trial"):
        searched(small_shop, base, 1)


def test_a_weight_decay_of_zero_starts_at_the_lower_end(small_shop) -> None:
    # A logarithm has no zero; the search must not fail for it.
    search = searched(small_shop, replace(BASE, fit=replace(BASE.fit, weight_decay=0.0, epochs=1)), 1).search
    assert search.trials[0].settings["fit.weight_decay"] == RANGES["fit.weight_decay"][0]


# --- the command

QUICK = (
    "--no-lightgbm", "--device", "cpu", "--hidden-size", "8", "--head-size", "8", "--epochs", "2",
    "--set", "pretraining.epochs=1",
)  # fmt: skip


def test_the_command_trains_with_the_best_settings_and_leaves_them(small_shop, no_page, tmp_path) -> None:
    out = tmp_path / "model.pt"
    result = CliRunner().invoke(cli, ["train", str(small_shop.path), "--out", str(out), "--search", "3", *QUICK])
    assert result.exit_code == 0, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"model.{end}" for end in ("config.toml", "pt", "report.html", "report.json", "run.json", "trials.csv")
    ]
    # The record tells of the search, and the artifact's sizes are the best trial's
    told = json.loads((tmp_path / "model.run.json").read_text())["search"]
    assert told["trials"] == 3
    assert told["validation_loss"] <= told["first_validation_loss"]
    manifest = read_manifest(out)
    assert manifest.sizes["hidden_size"] == told["settings"]["sizes.hidden_size"]
    assert manifest.training["search"] == told
    # The settings that are left repeat the model without a search
    again = tmp_path / "again.pt"
    config = tmp_path / "model.config.toml"
    result = CliRunner().invoke(cli, ["train", str(small_shop.path), "--out", str(again), "--config", str(config)])
    assert result.exit_code == 0, result.stderr
    assert read_manifest(again).fingerprint == manifest.fingerprint


def test_ctrl_c_ends_the_search_and_leaves_the_best_settings_so_far(small_shop, warm_commands, tmp_path) -> None:
    # Given a search that would go on for long, broken off after a trial
    command = [warm_commands / "willbuy", "train", str(small_shop.path), "--out", str(tmp_path / "model.pt")]
    started = subprocess.Popen(
        [*command, "--search", "10000", *QUICK],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # touches no lock
    )
    best = tmp_path / "model.best.toml"
    deadline = time.monotonic() + 120
    while not best.exists():
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=120)
    # Then it says where they are, and nothing else is left
    assert started.returncode == 130, err
    assert "Traceback" not in err
    assert f"--config {best}" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.best.toml", "model.trials.csv"]
    assert read_config(best).train.lightgbm is False


def test_a_search_from_an_earlier_model_is_refused(small_shop, tmp_path) -> None:
    arguments = ["train", str(small_shop.path), "--out", str(tmp_path / "m.pt"), "--search", "3", "--from", "old.pt"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1
    assert "--search with --from" in result.stderr
