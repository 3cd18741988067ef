"""The five calls of `training.api`, with paths as texts; the documentation's notebook uses all five."""

import json

import pytest

from training.api import Model, evaluate, load, predict, prepare, train

SMALL = {"fit.epochs": 1, "sizes.hidden_size": 8, "sizes.head_size": 8}


@pytest.fixture(scope="module")
def model(small_shop, no_page, tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    return train(str(small_shop.path), str(folder / "model.pt"), quick=True, settings=SMALL)


def test_a_log_is_prepared_with_options_of_the_command(shop, tmp_path):
    dataset = prepare(str(shop.log), str(tmp_path / "sessions"), idle_timeout_s=600.0, keep_open_sessions=True)
    assert dataset.path == tmp_path / "sessions"
    assert dataset.counts.sessions.sessions >= shop.dataset.counts.sessions.sessions
    mapping = tmp_path / "mapping.toml"
    mapping.write_text('[columns]\nsession_id = "session_id"\nevent_name = "event_name"\ntimestamp = "timestamp_ms"\n')
    mapped = prepare(shop.log, tmp_path / "mapped", mapping=str(mapping), time_unit="ms")
    assert mapped.counts.sessions.sessions == shop.dataset.counts.sessions.sessions


def test_a_model_is_trained_with_settings_of_the_file(model):
    assert model.path.is_file()
    assert model.manifest.sizes["hidden_size"] == 8
    record = json.loads(model.path.with_name("model.run.json").read_text())
    assert record["config"]["fit"]["epochs"] == 1
    # The quick training's, as the command has it
    assert not record["config"]["lightgbm"]
    assert load(str(model.path)) == Model(model.path, model.manifest)


def test_predictions_are_a_table_or_a_file(model, small_shop, tmp_path):
    table = predict(model, str(small_shop.path))
    assert table.columns == ["session_id", "event", "timestamp_ms", "event_name", "probability"]
    assert table.height == small_shop.counts.sessions.events
    out = tmp_path / "table.parquet"
    assert predict(str(model.path), small_shop.path, out=str(out)).is_empty()
    assert out.is_file()


def test_an_evaluation_is_a_report(model, small_shop, tmp_path, monkeypatch):
    monkeypatch.setattr("training.commands.evaluate.write_html", lambda _path, _report: None)
    out = tmp_path / "page.html"
    report = evaluate(model, small_shop.path, out=str(out), baselines=False, resamples=20, margin=40.0)
    assert report.names == ["model"]
    assert report.assumptions.offer.margin == 40
    assert out.with_suffix(".json").is_file()


def test_a_misspelt_option_is_an_error_that_names_the_others(shop, tmp_path):
    with pytest.raises(TypeError, match=r"timezone: no such option.*time_zone"):
        prepare(shop.log, tmp_path / "sessions", timezone="UTC")
