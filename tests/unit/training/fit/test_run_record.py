"""What a run leaves behind: enough to judge it, and to come to the same model again."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from model.artifact import Manifest, load, read_manifest
from training.cli import cli
from training.config_file import read_config
from training.data.prepared import read_prepared
from training.data.provenance import data_fingerprint

QUICK = ("--epochs", "2", "--hidden-size", "8", "--head-size", "8", "--no-lightgbm", "--device", "cpu")
BRIEF = ("--set", "pretraining.epochs=1")


def train(*arguments: object) -> None:
    result = CliRunner().invoke(cli, ["train", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr


@dataclass(frozen=True)
class Run:
    """A run and what it left."""

    data: Path
    artifact: Path

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.artifact)

    @property
    def record(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.artifact.with_name("model.run.json").read_text())
        return document


@pytest.fixture(scope="module")
def run(small_shop, no_page, tmp_path_factory) -> Run:
    artifact = tmp_path_factory.mktemp("run") / "model.pt"
    options = ["--seed", 3, "--set", "fit.bucket_batches=2", "--learning-rate", 0.004, "--dropout", 0.12]
    train(small_shop.path, "--out", artifact, *QUICK, *BRIEF, *options)
    return Run(small_shop.path, artifact)


@pytest.mark.slow
def test_the_settings_that_a_run_leaves_repeat_it_to_the_last_bit(run, tmp_path) -> None:
    # When a run is given nothing but what the first one left
    train(run.data, "--out", tmp_path / "again.pt", "--config", run.artifact.with_name("model.config.toml"))
    # Then the weights are the same bits, and so is the fingerprint
    again, manifest = load(tmp_path / "again.pt")
    first, _ = load(run.artifact)
    assert manifest.fingerprint == run.manifest.fingerprint
    weights = again.state_dict()
    assert weights.keys() == first.state_dict().keys()
    for name, weight in first.state_dict().items():
        assert torch.equal(weights[name], weight), name
    # And so is what it was found to be worth
    assert manifest.metrics == run.manifest.metrics
    # And what it leaves repeats it once more
    assert (tmp_path / "again.config.toml").read_text() == run.artifact.with_name("model.config.toml").read_text()


def test_another_seed_is_another_model(run, tmp_path) -> None:
    config = run.artifact.with_name("model.config.toml")
    train(run.data, "--out", tmp_path / "other.pt", "--config", config, "--seed", 4)
    assert read_manifest(tmp_path / "other.pt").fingerprint != run.manifest.fingerprint


def test_the_record_tells_settings_data_versions_and_what_came_of_it(run) -> None:
    record, manifest = run.record, run.manifest
    # The settings are those of the file beside it
    config = read_config(run.artifact.with_name("model.config.toml"))
    assert record["config"] == config.to_dict()
    assert record["seed"] == config.train.fit.seed == 3
    assert (config.train.fit.bucket_batches, config.train.sizes.dropout) == (2, 0.12)
    # The artifact is the one beside it
    assert record["artifact"] == {
        "file": "model.pt",
        "fingerprint": manifest.fingerprint,
        "sha256": hashlib.sha256(run.artifact.read_bytes()).hexdigest(),
    }
    # The data is what the manifest says too
    fingerprint = data_fingerprint(read_prepared(run.data))
    assert record["data"]["fingerprint"] == manifest.data["fingerprint"] == fingerprint
    assert record["data"]["sessions"] == manifest.data["sessions"]
    assert sum(record["data"]["sessions"].values()) == record["data"]["counts"]["sessions"]
    # What came of it
    assert record["metrics"] == manifest.metrics
    assert record["calibration"] == manifest.calibration
    assert [epoch["number"] for epoch in record["epochs"]] == [1, 2]
    assert record["best_epoch"] in {1, 2}
    # With what, and how long each stage took
    assert record["versions"]["torch"] == torch.__version__
    assert {"python", "willbuy", "numpy", "polars"} <= record["versions"].keys()
    assert {"all", "encoding sessions", "fit"} <= record["seconds"].keys()
    assert all(seconds >= 0 for seconds in record["seconds"].values())


def test_the_record_tells_the_command(run, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/app/__main__.py", "train", "my data", "--out", "model.pt"])
    config = run.artifact.with_name("model.config.toml")
    train(run.data, "--out", tmp_path / "model.pt", "--config", config, "--epochs", 1)
    assert Run(run.data, tmp_path / "model.pt").record["command"] == "willbuy train 'my data' --out model.pt"
