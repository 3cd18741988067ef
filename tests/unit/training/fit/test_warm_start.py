"""Going on from an earlier model: what stays, what is refused, and that it pays when a shop drifts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from support.artifacts import PROPERTIES, random_model, write_artifact
from typer.testing import CliRunner

from model.artifact import ArtifactCorruptError, load, manifest_of, read_manifest
from model.eager import eager_model
from model.network import SessionModel
from model.properties import PropertySpec
from model.sizes import NetworkSizes
from training.cli import cli
from training.config import FitSettings, PretrainingSettings, RunConfig, TrainSettings
from training.config_file import read_config
from training.data.dataset import read_columns
from training.data.encoded import encode
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.evaluation.metrics import log_losses
from training.fit.loop import logits
from training.fit.train import train
from training.fit.warm_start import (
    LEARNING_RATE_SHARE,
    WarmStartError,
    check_fits,
    read_start,
    warm_config,
)
from training.synthetic import ShopShape, generate, write

QUICK = ("--no-lightgbm", "--device", "cpu", "--epochs", "2", "--set", "pretraining.epochs=1")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["train", *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    return " ".join(result.stderr.split())


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(cli, ["train", *map(str, arguments)])
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


# --- the model that comes back


@pytest.mark.parametrize("aggregates", [True, False])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "feed-forward"])
def test_the_model_comes_back_as_it_was(cell, aggregates, tmp_path) -> None:
    # Given an artifact of calibrated random weights with scaling that is not the identity
    model = random_model(cell=cell, aggregates=aggregates)
    model.temperature.fill_(1.7)
    model.bias.fill_(-0.3)
    model.feature_mean.uniform_(-1, 1)
    path = tmp_path / "model.pt"
    manifest = manifest_of(model)
    write_artifact(path, cell=cell, aggregates=aggregates)
    script, _ = load(path)
    script.load_state_dict(model.state_dict())
    # Then what comes back is the same model: weights, buffers and configuration
    back = eager_model(script, manifest)
    assert manifest_of(back).fingerprint == manifest.fingerprint
    # And its weights can be trained, but for those that never were
    trainable = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert [name for name, weight in back.named_parameters() if weight.requires_grad] == trainable
    # And are its own: the script's do not change with them
    with torch.no_grad():
        back.logit.weight.add_(1.0)
    assert not torch.equal(script.state_dict()["logit.weight"], back.logit.weight)


def test_a_manifest_of_another_model_is_refused(tmp_path) -> None:
    script, _ = load(write_artifact(tmp_path / "model.pt"))
    with pytest.raises(ArtifactCorruptError, match="not of one model"):
        eager_model(script, manifest_of(random_model(hidden_size=16)))


# --- settings


def chosen(*assignments: str) -> RunConfig:
    return read_config(None, None, assignments)


@pytest.fixture
def manifest():
    return manifest_of(random_model(), training={"quantile_bins": 9})


def test_sizes_properties_and_bins_are_the_artifact_s(manifest) -> None:
    config = warm_config(chosen(), manifest)
    assert config.train.sizes == NetworkSizes(**manifest.sizes)
    assert config.train.properties == tuple(spec.name for spec in PROPERTIES)
    assert config.train.quantile_bins == 9


def test_the_learning_rate_is_lower_unless_it_is_chosen(manifest) -> None:
    usual = TrainSettings().fit.learning_rate
    assert 0 < LEARNING_RATE_SHARE < 1
    assert warm_config(chosen(), manifest).train.fit.learning_rate == usual * LEARNING_RATE_SHARE
    assert warm_config(chosen("fit.learning_rate=0.01"), manifest).train.fit.learning_rate == 0.01


def test_what_the_weights_do_not_depend_on_can_be_chosen(manifest) -> None:
    config = warm_config(chosen("sizes.dropout=0.45", "fit.epochs=3", "split_seed=5"), manifest)
    assert config.train.sizes == replace(NetworkSizes(**manifest.sizes), dropout=0.45)
    assert (config.train.fit.epochs, config.train.split_seed) == (3, 5)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("sizes.hidden_size=9", "sizes.hidden_size: the artifact has 8, not 9"),
        ("sizes.layers=2", "sizes.layers: the artifact has 1, not 2"),
        ("sizes.cell=gru", "sizes.cell: the artifact has lstm, not gru"),
        ("properties=['device']", "properties: the artifact has device, campaign, visits, not device"),
        ("quantile_bins=5", "quantile_bins: the artifact has 9, not 5"),
    ],
)
def test_what_would_not_fit_the_weights_is_refused(assignment, said, manifest) -> None:
    with pytest.raises(WarmStartError) as refusal:
        warm_config(chosen(assignment), manifest)
    assert said in str(refusal.value)


def test_what_is_asked_for_and_is_so_anyway_is_no_mistake(manifest) -> None:
    assert warm_config(chosen("sizes.hidden_size=8", "quantile_bins=9"), manifest).train.sizes.hidden_size == 8


# --- data


def log_of(properties: dict[str, Sequence[object]]) -> dict[str, Sequence[object]]:
    return {
        "session_id": ["s1", "s2"],
        "timestamp_ms": [0, 0],
        "event_name": ["page_view", "page_view"],
        **{f"property.{name}": values for name, values in properties.items()},
    }


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        ({"device": ["a", "b"], "campaign": ["a", "b"]}, "property 'visits' of the artifact is not in the data"),
        ({}, "property 'device' of the artifact is not in the data; it has: none"),
        (
            {"device": [1.5, 2.0], "campaign": ["a", "b"], "visits": [1.0, 2.0]},
            "property 'device' is a category in the artifact and a number in the data",
        ),
    ],
)
def test_data_without_what_the_model_looks_at_is_refused(properties, said, prepared, tmp_path) -> None:
    start = read_start(write_artifact(tmp_path / "model.pt"))
    with pytest.raises(WarmStartError) as refusal:
        check_fits(start, prepared(log_of(properties)))
    assert said in str(refusal.value)


def test_data_with_another_clock_is_refused(prepared, tmp_path) -> None:
    start = read_start(write_artifact(tmp_path / "model.pt", properties=(), calendar=True))
    with pytest.raises(WarmStartError, match="trained with the time of day, and the data's clock is 'session'"):
        check_fits(start, prepared(log_of({})))


def test_properties_that_are_new_are_left_out_and_named(prepared, tmp_path) -> None:
    start = read_start(write_artifact(tmp_path / "m.pt", properties=[PropertySpec("device", "category", "session")]))
    data = prepared(log_of({"device": ["a", "b"], "member": ["a", "b"], "age": [1.0, 2.0]}))
    assert check_fits(start, data) == ["properties that the artifact does not use are left out: age, member"]


# --- the command


@dataclass(frozen=True)
class Generations:
    """A model, one that went on from it, and one that went on from that."""

    first: Path
    second: Path
    third: Path
    told: str


@pytest.fixture(scope="module")
def generations(small_shop, no_page, tmp_path_factory) -> Generations:
    folder = tmp_path_factory.mktemp("generations")
    first, second, third = (folder / f"{name}.pt" for name in ("first", "second", "third"))
    # The first knows next to no item by name, so that later frequent ones are new to it.
    limits = ("--set", "vocabulary.items_at_most=1", "--set", "vocabulary.items_at_least=5")
    run(small_shop.path, "--out", first, *QUICK, *limits, "--hidden-size", 8, "--head-size", 8)
    told = run(small_shop.path, "--out", second, *QUICK, "--from", first, "--set", "vocabulary.items_at_least=5")
    run(small_shop.path, "--out", third, *QUICK, "--from", second)
    return Generations(first, second, third, told)


@pytest.mark.slow
def test_vocabularies_scaling_and_sizes_stay_and_weights_do_not(generations) -> None:
    first, second = read_manifest(generations.first), read_manifest(generations.second)
    for name in ("event_names", "items", "item_categories", "properties", "property_values", "sizes", "state"):
        assert getattr(second, name) == getattr(first, name), name
    before, after = (load(path)[0].state_dict() for path in (generations.first, generations.second))
    assert torch.equal(after["feature_mean"], before["feature_mean"])
    assert torch.equal(after["bin_low"], before["bin_low"])
    assert not torch.equal(after["logit.weight"], before["logit.weight"])


def test_new_frequent_words_are_counted(generations) -> None:
    assert "frequent words are new since the artifact was trained and count as other" in generations.told
    assert "item_id: " in generations.told


def test_the_manifest_records_the_line_of_its_ancestors(generations) -> None:
    first, second, third = (read_manifest(path) for path in (generations.first, generations.second, generations.third))
    assert "lineage" not in first.training
    assert [step["fingerprint"] for step in second.training["lineage"]] == [first.fingerprint]
    assert [step["fingerprint"] for step in third.training["lineage"]] == [second.fingerprint, first.fingerprint]
    assert third.training["lineage"][0]["data"]["fingerprint"] == second.data["fingerprint"]


def test_the_same_seed_goes_on_to_the_same_model(generations, small_shop, tmp_path) -> None:
    config = generations.third.with_name("third.config.toml")
    run(small_shop.path, "--out", tmp_path / "again.pt", "--from", generations.second, "--config", config)
    assert read_manifest(tmp_path / "again.pt").fingerprint == read_manifest(generations.third).fingerprint


def test_weights_stay_where_no_epoch_is_better(generations, small_shop, tmp_path) -> None:
    # Given a learning rate that only does harm
    out = tmp_path / "m.pt"
    told = run(small_shop.path, "--out", out, *QUICK, "--from", generations.third, "--learning-rate", 30)
    assert "no epoch was better" in told
    before, after = (load(path)[0].state_dict() for path in (generations.third, out))
    for name, weight in before.items():
        if name not in {"temperature", "bias"}:
            assert torch.equal(after[name], weight), name


def test_an_artifact_that_is_not_there(small_shop, tmp_path) -> None:
    said = refused(small_shop.path, "--out", tmp_path / "m.pt", "--from", tmp_path / "nothing.pt")
    assert "nothing.pt" in said


def test_other_sizes_are_refused_by_the_command(generations, small_shop, tmp_path) -> None:
    said = refused(small_shop.path, "--out", tmp_path / "m.pt", "--from", generations.first, "--head-size", 9)
    assert "sizes.head_size: the artifact has 8, not 9" in said
    assert list(tmp_path.iterdir()) == []


# --- whether it pays


def period(folder: Path, shape: ShopShape, sessions: int, month: int) -> PreparedDataset:
    log = folder / f"{month}.parquet"
    write(generate(shape, sessions, seed=month, start=datetime(2026, month, 1, tzinfo=UTC)), log)
    return prepare(log, folder / f"{month}")


def mean_log_loss(model: SessionModel, data: PreparedDataset) -> float:
    columns = read_columns(data.shards, model.encoder.properties)
    with torch.inference_mode():
        probability = model.calibrated(logits(model, encode(model.encoder, columns))).numpy()
    outcome = columns.outcome.numpy()[columns.session_index().numpy()]
    return float(np.mean(log_losses(outcome, probability)))


@pytest.mark.slow
def test_when_a_shop_drifts_going_on_beats_staying_and_starting_anew(tmp_path) -> None:
    # Given a shop whose visitors become keener, stay shorter and buy more readily, and few sessions since
    before = ShopShape(days=14, intent=-1.0, purchase_scale=0.6)
    after = ShopShape(days=3, intent=1.5, leave_scale=1.5)
    settings = TrainSettings(
        fit=FitSettings(epochs=6, patience=3, batch_sessions=64, learning_rate=3e-3),
        sizes=NetworkSizes(hidden_size=16, head_size=16, dropout=0.1, input_dropout=0.0),
        fractions=(0.6, 0.15, 0.15, 0.1),
        lightgbm=False,
    )
    many, few, later = (
        period(tmp_path, shape, sessions, month)
        for shape, sessions, month in ((before, 3000, 1), (after, 400, 2), (after, 2000, 3))
    )
    # Three epochs of pre-training save time. They make the old model worse, and warm start begins with its weights.
    old = train(many, replace(settings, pretraining=PretrainingSettings(epochs=3))).model
    staying = mean_log_loss(old, later)
    # When it is trained anew on the few, and goes on with them
    anew = mean_log_loss(train(few, settings).model, later)
    lower = replace(settings, fit=replace(settings.fit, learning_rate=settings.fit.learning_rate * LEARNING_RATE_SHARE))
    going_on = mean_log_loss(train(few, lower, start=old).model, later)
    # Then going on is better than both
    assert going_on < staying - 0.04
    assert going_on < anew - 0.008
