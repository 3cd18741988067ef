"""The command line: what it prints, what it refuses in one line, and how it stops."""

import ast
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from support import paths
from support.threads import one_thread
from typer.testing import CliRunner

from model.artifact import read_manifest
from training.cli import cli
from training.data.prepared import read_prepared

ROOT = paths.ROOT
FAST = ["--epochs", "2", "--hidden-size", "8", "--head-size", "8", "--learning-rate", "0.01", "--device", "cpu"]
FAST += ["--set", "pretraining.epochs=1"]
pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture(scope="module", autouse=True)
def in_one_thread() -> Iterator[None]:
    with one_thread():
        yield


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Outcome:
    """Run a training command in this process."""
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    # Anything but an exit is what the user would have seen as a traceback.
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return Outcome(result.exit_code, result.stdout, result.stderr)


def allow_ctrl_c() -> None:
    """Undo what a shell does to its background jobs: they, and so their children, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def process(*arguments: object, module: str = "app") -> "subprocess.Popen[str]":
    """Start `willbuy` as a process of its own."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=allow_ctrl_c,  # noqa: PLW1509  # sets a signal and touches no lock
    )


def finished(started: "subprocess.Popen[str]") -> Outcome:
    out, err = started.communicate(timeout=110)
    assert "Traceback" not in err, err
    return Outcome(started.returncode, out, err)


def words(text: str) -> str:
    """Return the text without line breaks, colours and frames, which depend on the terminal."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic log of 700 sessions, its posterior beside it."""
    log = tmp_path_factory.mktemp("shop") / "shop.parquet"
    assert run("synthesize", "--out", log, "--sessions", 700, "--seed", 3).code == 0
    return log


# --- help and version


@pytest.fixture(scope="module")
def help_text() -> str:
    shown = finished(process("--help"))
    assert shown.code == 0
    assert shown.err == ""
    return shown.out


@pytest.mark.parametrize(
    ("panel", "commands"),
    [("Training", ["prepare", "train", "synthesize"]), ("Serving", ["serve", "replay", "demo"])],
)
def test_help_lists_each_command_once_in_its_panel(help_text, panel, commands) -> None:
    # Panels are framed: from the heading to the frame's end.
    framed = re.search(rf"─ {panel} ─(.*?)╰", help_text, re.DOTALL)
    assert framed is not None, help_text
    for command in commands:
        assert re.search(rf"│ {command} +\w", framed[1]), f"{command} is not under {panel}"
        assert len(re.findall(rf"│ {command} ", help_text)) == 1


def test_version_is_that_of_the_distribution() -> None:
    shown = finished(process("--version"))
    assert (shown.code, shown.err) == (0, "")
    assert re.fullmatch(r"willbuy \d+\.\d+\.\d+\n", shown.out)


def test_the_training_package_has_the_same_commands() -> None:
    shown = finished(process("--help", module="training"))
    assert shown.code == 0
    for command in ("prepare", "train", "synthesize", "replay", "demo"):
        assert re.search(rf"│ {command} ", shown.out)


@pytest.mark.parametrize("command", ["prepare", "train", "synthesize", "replay", "demo"])
def test_every_command_explains_itself(command) -> None:
    shown = run(command, "--help")
    assert shown.code == 0
    assert "Usage" in shown.out


# --- end to end


@pytest.mark.slow
def test_from_a_log_to_prepared_sessions_to_an_artifact(shop: Path, tmp_path: Path) -> None:
    # When a log is prepared
    prepared = run("prepare", shop, "--out", tmp_path / "prepared")
    assert prepared.code == 0, prepared.err
    dataset = read_prepared(tmp_path / "prepared")
    assert f"{dataset.counts.sessions.sessions:,}" in prepared.out
    assert "properties: device (category, session)" in words(prepared.out)
    # And trained on
    artifact = tmp_path / "deep" / "model.pt"
    posterior = shop.with_name("shop.posterior.parquet")
    trained = run("train", tmp_path / "prepared", "--out", artifact, "--posterior", posterior, *FAST)
    assert trained.code == 0, trained.err
    # Then the artifact is there, the table shows all four, and what to do next is said
    fingerprint = read_manifest(artifact).fingerprint
    assert fingerprint in words(trained.out)
    for model in ("willbuy", "LightGBM", "base rate", "optimum"):
        assert model in trained.out
    assert "willbuy serve --artifact" in words(trained.out)
    assert sorted(path.name for path in artifact.parent.iterdir()) == [
        "model.config.toml",
        "model.pt",
        "model.report.html",
        "model.report.json",
        "model.run.json",
    ]


@pytest.mark.slow
def test_a_log_is_prepared_on_the_fly(shop: Path, tmp_path: Path) -> None:
    trained = run(
        "train", shop, "--out", tmp_path / "m.pt", "--quick", "--properties", "none", "--epochs", 1, *FAST[2:]
    )
    assert trained.code == 0, trained.err
    manifest = read_manifest(tmp_path / "m.pt")
    # A quick training says what it left out, where people read the scores
    (doubt,) = [warning for warning in manifest.metrics["warnings"] if "quick" in warning]
    assert "pre-training, distillation" in doubt
    assert doubt in " ".join((trained.out + trained.err).split())
    assert "LightGBM" not in manifest.metrics["models"]
    assert manifest.properties == []
    assert manifest.data["source_format"] == "canonical"


def test_only_the_properties_asked_for_are_used(shop: Path, tmp_path: Path) -> None:
    options = ["--no-lightgbm", "--properties", "visits, device", "--epochs", 1, *FAST[2:]]
    assert run("train", shop, "--out", tmp_path / "m.pt", *options).code == 0
    assert [spec.name for spec in read_manifest(tmp_path / "m.pt").properties] == ["visits", "device"]


def test_a_log_by_column_mapping(tmp_path: Path) -> None:
    log = tmp_path / "own.csv"
    log.write_text("sid,at,what,dev\ns1,0,page,phone\ns1,5,bought,phone\ns2,0,page,desk\n")
    prepared = run(
        *("prepare", log, "--out", tmp_path / "out", "--column", "session_id=sid", "--column", "timestamp=at"),
        *("--column", "event_name=what", "--event", "bought=purchase", "--property", "device=dev"),
        *("--time-format", "elapsed_s"),
    )
    assert prepared.code == 0, prepared.err
    dataset = read_prepared(tmp_path / "out")
    assert (dataset.counts.sessions.sessions, dataset.counts.sessions.buyers) == (2, 1)


def test_a_synthetic_log_is_the_same_with_the_same_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        made = run("synthesize", "--out", tmp_path / f"{name}.parquet", "--sessions", 50, "--seed", seed)
        assert made.code == 0
        assert "50 sessions" in made.out
    a, b, c = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in "abc")
    assert a.equals(b)
    assert a["price"].to_list() != c["price"].to_list()


# --- malformed rows


@pytest.fixture
def malformed(tmp_path: Path) -> Path:
    """A log in the shop's own CSV, with a bad time in line 4 and a negative price in line 6."""
    rows = ["session_id,timestamp,event_name,price"]
    for number in range(300):
        day, hour = divmod(number, 24)
        start = f"2026-01-{day + 1:02d}T{hour:02d}:"
        rows += [f"s{number},{start}00:00Z,page_view,1.5", f"s{number},{start}01:00Z,view_item,2"]
        rows += [f"s{number},{start}02:00Z,purchase,"] * (number % 3 == 0)
    rows[3] = rows[3].replace("2026-01-01T00:02", "yesterday")
    rows[5] = rows[5].rsplit(",", 1)[0] + ",-2"
    log = tmp_path / "own.csv"
    log.write_text("\n".join(rows) + "\n")
    return log


def test_malformed_rows_are_told_with_their_lines_and_kept(malformed: Path, tmp_path: Path) -> None:
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(
        '[columns]\nsession_id = "session_id"\ntimestamp = "timestamp"\nevent_name = "event_name"\nprice = "price"\n'
    )
    trained = run(
        *("train", malformed, "--mapping", mapping, "--out", tmp_path / "m.pt", "--no-lightgbm", "--epochs", 1),
        *FAST[2:],
    )
    assert trained.code == 0, trained.err
    told = words(trained.err)
    assert "rejected rows:" in told
    assert "timestamp: not a time 1 own.csv:4" in words(trained.out)
    assert "1 optional values could not be read and count as missing: price" in told
    # The prepared sessions were in a temporary folder; the list is kept beside the artifact.
    kept = pl.read_csv(tmp_path / "m.rejected.csv")
    assert kept["line"].to_list() == [4]
    assert kept["field"].to_list() == ["timestamp"]


def test_prepare_names_the_file_that_lists_the_malformed_rows(malformed: Path, tmp_path: Path) -> None:
    columns = [f"{name}={name}" for name in ("session_id", "timestamp", "event_name", "price")]
    options = [part for column in columns for part in ("--column", column)]
    prepared = run("prepare", malformed, "--out", tmp_path / "out", *options)
    assert prepared.code == 0, prepared.err
    assert "rejected.csv" in words(prepared.err)
    assert pl.read_csv(tmp_path / "out" / "rejected.csv")["line"].to_list() == [4]
    assert pl.read_csv(tmp_path / "out" / "nulled.csv")["line"].to_list() == [6]


# --- what is refused


def refused(*arguments: object) -> str:
    """Run a command that fails as users' commands do: status 1, one line, no traceback; return the line."""
    outcome = run(*arguments)
    assert outcome.code == 1
    lines = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, outcome.err
    assert "Traceback" not in outcome.err
    return lines[0]


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_a_log_that_is_not_there(command, tmp_path) -> None:
    assert "nothing.csv" in refused(command, tmp_path / "nothing.csv", "--out", tmp_path / "out")


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_an_unknown_format_is_answered_with_the_known_ones(command, shop, tmp_path) -> None:
    said = refused(command, shop, "--out", tmp_path / "out", "--format", "nosuch")
    assert "nosuch" in said
    assert "rees46" in said
    assert "retailrocket" in said


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_a_log_in_no_known_format_is_answered_with_what_to_do(command, tmp_path) -> None:
    log = tmp_path / "own.csv"
    log.write_text("who,when,what\na,1,b\n")
    said = refused(command, log, "--out", tmp_path / "out")
    assert "own.csv" in said
    assert "mapping" in said


def test_mapping_together_with_columns(shop, tmp_path) -> None:
    mapping = tmp_path / "m.toml"
    mapping.write_text("")
    said = refused("prepare", shop, "--out", tmp_path / "out", "--mapping", mapping, "--column", "session_id=x")
    assert "either --mapping" in said
    assert "--column" in said


@pytest.mark.parametrize("option", [("--property", "a=b"), ("--time-format", "iso")])
def test_options_of_a_mapping_without_columns(option, shop, tmp_path) -> None:
    assert "go with --column" in refused("prepare", shop, "--out", tmp_path / "out", *option)


@pytest.mark.parametrize("content", [None, "columns = [", '[columns]\nnosuch = "a"\n'])
def test_a_mapping_that_is_none(content, shop, tmp_path) -> None:
    mapping = tmp_path / "m.toml"
    if content is not None:
        mapping.write_text(content)
    refused("prepare", shop, "--out", tmp_path / "out", "--mapping", mapping)


def test_an_unknown_shape_is_answered_with_the_known_ones(tmp_path) -> None:
    said = refused("synthesize", "--out", tmp_path / "log.parquet", "--shape", "round")
    assert "'round'" in said
    assert "long-tail" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", ["colour", "device,colour", "", "device,device"])
def test_properties_that_the_log_lacks_or_that_come_twice(names, shop, tmp_path) -> None:
    said = refused("train", shop, "--out", tmp_path / "m.pt", "--properties", names, *FAST)
    assert "property" in said


def test_prepared_sessions_are_not_written_over_other_files(shop, tmp_path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert "left alone" in refused("prepare", shop, "--out", tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("command", ["prepare", "train", "synthesize"])
def test_an_output_that_cannot_be_written(command, shop, tmp_path) -> None:
    # Given a file where the output's folder should be
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    said = refused(command, *([] if command == "synthesize" else [shop]), "--out", out)
    assert str(tmp_path / "file") in said


def test_an_output_that_is_a_folder_is_refused_before_training(shop, tmp_path) -> None:
    (tmp_path / "m.pt").mkdir()
    refused("train", shop, "--out", tmp_path / "m.pt", "--no-lightgbm", *FAST)
    # Not after an epoch, let alone after all of them.
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_a_posterior_that_is_not_there_is_refused_before_training(shop, tmp_path) -> None:
    posterior = tmp_path / "nothing.parquet"
    said = refused("train", shop, "--out", tmp_path / "m.pt", "--no-lightgbm", *FAST, "--posterior", posterior)
    assert "nothing.parquet" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [("--learning-rate", "0"), ("--learning-rate", "nan"), ("--weight-decay", "-1"), ("--idle-timeout-s", "-1")],
)
def test_settings_that_make_no_sense(options, shop, tmp_path) -> None:
    said = refused("train", shop, "--out", tmp_path / "m.pt", *options)
    assert options[0].removeprefix("--").replace("-", "_") in said


def test_a_damaged_checkpoint(shop, tmp_path) -> None:
    (tmp_path / "m.checkpoint").write_bytes(b"damaged")
    said = refused("train", shop, "--out", tmp_path / "m.pt", "--resume", "--no-lightgbm", *FAST)
    assert "m.checkpoint" in said
    assert "leave out --resume" in said


def test_serving_an_artifact_that_is_not_there(tmp_path) -> None:
    shown = finished(process("serve", "--artifact", tmp_path / "nothing.pt"))
    assert shown.code == 1
    assert '"start_failed"' in shown.err
    assert "nothing.pt" in shown.err


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "127.0.0.1:9", "ftp://127.0.0.1", "http://127.0.0.1:no"])
def test_replaying_at_no_service(url, shop, tmp_path) -> None:
    assert url in refused("replay", shop, "--artifact", tmp_path / "m.pt", "--url", url)


# --- Ctrl-C


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_going_on_ends_at_the_same_model(shop: Path, tmp_path: Path) -> None:
    options = ["--no-lightgbm", "--batch-sessions", 32, "--epochs", 12, "--patience", 12, *FAST[2:]]
    artifact = tmp_path / "model.pt"
    # Given a run that was interrupted after its first epoch
    started = process("train", shop, "--out", artifact, *options)
    deadline = time.monotonic() + 110
    while not (tmp_path / "model.checkpoint").exists():
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    stopped = finished(started)
    assert stopped.code == 130
    assert "--resume" in stopped.err
    assert "model.checkpoint" in stopped.err
    assert {path.name for path in tmp_path.iterdir()} == {"model.checkpoint", "model.checkpoint.pretraining"}
    # When the same command goes on with --resume
    resumed = run("train", shop, "--out", artifact, *options, "--resume")
    assert resumed.code == 0, resumed.err
    # Then the model is that of a run without a break
    whole = run("train", shop, "--out", tmp_path / "whole.pt", *options)
    assert whole.code == 0, whole.err
    assert read_manifest(artifact).fingerprint == read_manifest(tmp_path / "whole.pt").fingerprint
    assert not list(tmp_path.glob("model.checkpoint*"))


def test_options_come_from_the_dataclasses() -> None:
    tree = ast.parse((ROOT / "training" / "cli.py").read_text("utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "typer.Option"]
    assert {ast.literal_eval(call.args[0]) for call in calls} == {"--out", "--artifact"}
