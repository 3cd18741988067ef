"""The configuration: what wins over what, what is refused and how, and that what is written is read back."""

from dataclasses import replace
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from training.cli import cli
from training.config import ComputeSettings, FitSettings, LogSettings, PretrainingSettings, RunConfig, TrainSettings
from training.config_file import ConfigError, read_config, to_toml


def printed(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["train", "--print-config", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["train", "--print-config", *map(str, arguments)])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    return result.stderr.strip()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that sets three keys, one of them in each kind of table."""
    path = tmp_path / "run.toml"
    path.write_text('quantile_bins = 7\n[fit]\nepochs = 3\n[log]\nformat = "rees46"\n')
    return path


def test_without_a_file_everything_has_its_default() -> None:
    assert read_config(None) == RunConfig(TrainSettings(), LogSettings(), ComputeSettings())


def test_the_parts_of_a_large_log_are_chosen_for_it_unless_file_or_flags_chose_them() -> None:
    untouched = read_config(None, {"fit.seed": 3})
    assert untouched.for_sessions(1_000) == untouched
    large = untouched.for_sessions(50_000)
    assert large.train.fractions == pytest.approx((0.75, 0.05, 0.05, 0.15))
    assert replace(large.train, fractions=untouched.train.fractions) == untouched.train
    for chosen in ([0.65, 0.1, 0.1, 0.15], [0.5, 0.2, 0.2, 0.1]):
        asked = read_config(None, {"fractions": chosen})
        assert asked.for_sessions(50_000) == asked


@pytest.mark.parametrize(
    ("sessions", "passes", "patience"), [(1, 60, 20), (885, 60, 20), (12_800, 5, 3), (250_000, 3, 3), (8_500_000, 1, 3)]
)
def test_a_budget_of_steps_is_more_passes_over_a_small_log_and_fewer_over_a_large_one(
    sessions: int, passes: int, patience: int
) -> None:
    assert FitSettings().passes(sessions) == passes
    assert FitSettings().patience_of(passes) == patience
    assert FitSettings(epochs=7, patience=2).passes(sessions) == 7
    assert FitSettings(epochs=7, patience=2).patience_of(7) == 2
    assert PretrainingSettings(epochs=0).passes(sessions, 128) == 0
    assert PretrainingSettings().passes(885, 128) == 20
    assert PretrainingSettings(steps=200).passes(12_800, 64) == 3


def test_quick_leaves_out_the_dear_steps_and_gives_way_to_what_the_user_says(file) -> None:
    quick = printed("--quick")
    for line in ("epochs = 4", "folds = 0", "lightgbm = false"):
        assert line in quick
    assert "[pretraining]\nsteps = 600\nepochs = 0" in quick
    changed = printed("--quick", "--epochs", 9, "--set", "teacher.folds=3", "--config", file)
    for line in ("epochs = 9", "folds = 3", "quantile_bins = 7"):
        assert line in changed


def test_flags_win_over_the_file_and_the_file_over_the_defaults(file) -> None:
    # Given a file with 3 epochs and 7 bins, when a flag says 9 epochs
    config = read_config(file, {"fit.epochs": 9})
    # Then each key is of the first of flag, file and default that has it
    assert config.train.fit == replace(FitSettings(), epochs=9)
    assert config.train.quantile_bins == 7
    assert config.log.format == "rees46"
    assert config.train.sizes == TrainSettings().sizes
    assert config.chosen == {"fit.epochs", "quantile_bins", "log.format"}


def test_flags_win_over_assignments_and_those_over_the_file(file) -> None:
    config = read_config(file, {"fit.epochs": 9}, ["fit.epochs=5", "quantile_bins = 3", "log.format=canonical"])
    assert (config.train.fit.epochs, config.train.quantile_bins, config.log.format) == (9, 3, "canonical")


def test_a_flag_can_ask_for_the_default_again(tmp_path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('properties = ["device"]\n')
    assert read_config(path).train.properties == ("device",)
    assert read_config(path, {"properties": None}).train.properties is None


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"properties": [], "fractions": [0.5, 0.2, 0.2, 0.1], "fit.learning_rate": 3e-3, "lightgbm": False},
        {"properties": ["device", "visits"], "log.mapping": "m.toml", "compute.device": "cuda", "compute.threads": 4},
    ],
)
def test_what_is_written_is_read_back(flags, tmp_path) -> None:
    config = read_config(None, flags)
    path = tmp_path / "written.toml"
    path.write_text(to_toml(config))
    # What is chosen differs: a written file chooses everything.
    assert replace(read_config(path), chosen=config.chosen) == config


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("fit.epoch=1", "fit.epoch: unknown; did you mean fit.epochs?"),
        ("fitt.epochs=1", "fitt: unknown; did you mean fit?"),
        ("sizes.zzz=1", "sizes.zzz: unknown; expected one of hidden_size"),
        ("compute.thread=1", "compute.thread: unknown; did you mean compute.threads?"),
        ("fit.epochs=many", "fit.epochs: expected a whole number, not 'many'"),
        ("fit.epochs=1.5", "fit.epochs: expected a whole number, not 1.5"),
        ("fit.epochs=true", "fit.epochs: expected a whole number, not True"),
        ("fit.epochs=0", "fit.epochs: expected a whole number from 1 up, not 0"),
        ("fit.learning_rate='1'", "fit.learning_rate: expected a number, not '1'"),
        ("fit.learning_rate=nan", "fit.learning_rate: expected a number above 0, not nan"),
        ("fit=3", "fit: expected a table, not 3"),
        ("lightgbm=1", "lightgbm: expected true or false, not 1"),
        ("properties=3", "properties: expected a list, not 3"),
        ("properties=[3]", "properties.0: expected a text, not 3"),
        ("compute.device=tpu", "compute.device: expected 'auto', 'cpu' or 'cuda', not 'tpu'"),
        ("compute.threads=0", "compute.threads: expected a whole number from 1 up, not 0"),
        ("log.idle_timeout_s=soon", "log.idle_timeout_s: expected a number, not 'soon'"),
        ("quantile_bins=0", "quantile_bins: expected a whole number from 1 up, not 0"),
        ("fit.epochs", "--set fit.epochs: expected KEY=VALUE"),
        (" =3", "--set  =3: expected KEY=VALUE"),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(assignment, said) -> None:
    with pytest.raises(ConfigError) as refusal:
        read_config(None, None, [assignment])
    assert said in str(refusal.value)


def test_a_mistake_in_the_file_is_told_with_the_file(tmp_path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[fit]\nepochs = 'x'\n")
    assert refused("--config", path, "--epochs", 3) == f"error: {path}: fit.epochs: expected a whole number, not 'x'"


@pytest.mark.parametrize("content", [None, "fit = [", b"\xff"])
def test_a_file_that_is_none(content, tmp_path) -> None:
    path = tmp_path / "run.toml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert str(path) in refused("--config", path)


def test_print_config_needs_no_data_and_prints_what_would_be_used(file, tmp_path) -> None:
    text = printed("--config", file, "--dropout", 0.15, "--properties", "none", "--set", "fit.bucket_batches=8")
    path = tmp_path / "printed.toml"
    path.write_text(text)
    config = read_config(path)
    assert config.train.fit == replace(FitSettings(), epochs=3, bucket_batches=8)
    assert (config.train.sizes.dropout, config.train.sizes.input_dropout) == (0.15, 0.075)
    assert config.train.properties == ()


def test_what_help_shows_as_defaults_are_the_defaults() -> None:
    # Given every option of `train` with the value that its help shows as default
    command = typer.main.get_command(cli).commands["train"]  # type: ignore[attr-defined]  # a group has commands
    arguments: list[str] = []
    for option in command.params:
        if option.default is None:
            continue
        on, off = option.opts[0], option.secondary_opts
        if isinstance(option.default, bool):
            arguments += [on] if option.default else off[:1]
        else:
            arguments += [on, str(getattr(option.default, "value", option.default))]
    # Then the configuration is that of no option at all
    assert len(arguments) > 20
    assert printed(*arguments) == to_toml(RunConfig())


@pytest.mark.parametrize("missing", [["--out", "m.pt"], ["data"]])
def test_data_and_out_are_needed_to_train(missing) -> None:
    result = CliRunner().invoke(cli, ["train", *missing])
    assert result.exit_code == 2
    assert "is needed" in result.stderr
