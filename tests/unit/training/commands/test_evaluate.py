"""`willbuy evaluate` from an artifact to HTML, JSON, table and model card, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from model.artifact import read_manifest
from model.predictor import load_predictor
from training.cli import cli
from training.commands.replay import read_events
from training.data.prepare import prepare
from training.evaluation.metrics import score
from training.fit.result import export
from training.fit.train import parts_of, train
from training.report.build import build_report
from training.report.model_card import LIMITS, NOT_AN_INPUT, model_card
from training.synthetic import PRESETS, generate, write

FAST = ["--bootstrap", 20, "--baseline-sessions", 1_000]


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(cli, ["evaluate", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    return result.exit_code, " ".join(result.stdout.split()), " ".join(result.stderr.split())


@pytest.fixture(scope="module")
def artifact(trained, shop, settings, tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("artifact") / "model.pt"
    export(trained, shop.dataset, settings, {}, path)
    return path


@pytest.fixture(scope="module")
def plain(shop, settings, tmp_path_factory) -> Path:
    """The same training for a feed-forward network."""
    few = replace(
        settings,
        sizes=replace(settings.sizes, cell="feed-forward"),
        fit=replace(settings.fit, epochs=1),
        lightgbm=False,
    )
    path: Path = tmp_path_factory.mktemp("plain") / "plain.pt"
    export(train(shop.dataset, few), shop.dataset, few, {}, path)
    return path


@pytest.fixture
def no_charts(monkeypatch) -> None:
    """Leave out the report's HTML page, whose charts take seconds."""
    monkeypatch.setattr("training.commands.evaluate.write_html", lambda _path, _report: None)


@pytest.mark.slow
def test_from_an_artifact_to_a_report(artifact, plain, shop, settings, tmp_path) -> None:
    # When an artifact is judged on the data that it was trained on, beside another one and the baselines
    out = tmp_path / "deep" / "report.html"
    code, told, err = run(
        *(artifact, shop.dataset.path, "--out", out, "--beside", f"ff={plain}", "--posterior", shop.posterior, *FAST),
        *("--margin", 40, "--cost", 1, "--uplift", 0.2, "--precision", 0.3, "--alarm-share", 0.2),
    )
    assert code == 0, err
    # Then its test part is judged, and the reader is told so
    assert "only the test part" in told
    content = json.loads(out.with_suffix(".json").read_text())
    ids = sorted(parts_of(shop.dataset, settings.fractions, settings.split_seed)["test"])
    assert content["sessions"] == len(ids)
    assert content["names"] == [
        "model", "ff", "base rate", "cart seen", "Markov 1", "Markov 2", "Markov 3", "n-grams", "logistic", "LightGBM",
    ]  # fmt: skip
    for name in content["names"]:
        assert name in told
    # And the scores are those of what the service would answer
    sessions = read_events(shop.dataset, ids)
    said = load_predictor(artifact, state_dtype="float32").score_sessions(list(sessions.values()))
    bought = dict(shop.dataset.sessions().select("session_id", "outcome").iter_rows())
    expected = score(
        np.concatenate([[float(bought[session_id])] * len(events) for session_id, events in sessions.items()]),
        np.clip(np.concatenate([np.array(one) for one in said]), 0.0, 1.0),
    )
    pooled = next(row for row in content["rows"] if row["name"] == "all prefixes")
    assert pooled["scores"]["model"]["log_loss"]["value"] == pytest.approx(expected.log_loss, abs=1e-5)
    assert pooled["scores"]["model"]["auc"]["value"] == pytest.approx(expected.auc, abs=1e-4)
    # Every score has an interval, and nobody beats the exact posterior
    for scores in pooled["scores"].values():
        assert all(found["low"] <= found["value"] <= found["high"] for found in scores.values())
    assert pooled["differences"]["best possible"]["log_loss"]["value"] > 0
    # Slices, the ladder, earliness, profit and the model card are there
    assert {row["heading"] for row in content["rows"]} == {"", "cart", "item"}
    assert {(step["buys"], step["having"], step["lacking"]) for step in content["ladder"]} == {
        ("memory", "model", "ff")
    }
    assert content["earliness"]["precision"]["model"]["target"] == 0.3
    assert content["assumptions"]["offer"] == {"margin": 40.0, "cost": 1.0, "uplift": 0.2}
    assert content["model_card"]["how_to_repeat"]["seed"] == 0
    page = out.read_text()
    for heading in ("Propensity is not uplift", "What memory buys", "Model card", "Parts of the sessions"):
        assert heading in page


def test_newer_data_is_judged_whole_without_baselines(artifact, no_charts, tmp_path) -> None:
    # Given a raw log of another month
    log = tmp_path / "newer.parquet"
    write(generate(PRESETS["default"], 300, seed=50), log)
    code, told, err = run(artifact, log, "--no-baselines", "--out", tmp_path / "r.html", *FAST)
    assert code == 0, err
    assert "was not trained on this data: all of it is judged" in told
    assert "LightGBM was not fitted" in told
    assert told.count("LightGBM") == 1
    assert "by name" in told  # how unseen items were told
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["sessions"] == prepare(log, tmp_path / "prepared").counts.sessions.sessions


@pytest.mark.slow
def test_a_base_rate_shifts_every_probability(trained, artifact, shop, no_charts, tmp_path) -> None:
    means = []
    for options in ([], ["--base-rate", 0.5]):
        code, _, err = run(artifact, shop.dataset.path, "--no-baselines", "--out", tmp_path / "r.html", *FAST, *options)
        assert code == 0, err
        content = json.loads((tmp_path / "r.json").read_text())
        points = content["reliability"]["model"]
        counts = sum(point["count"] for point in points)
        means.append(sum(point["count"] * point["probability"] for point in points) / counts)
    assert means[1] > means[0] + 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--beside", "no-equals-sign"], "--beside: expected NAME=ARTIFACT, not 'no-equals-sign'"),
        (["--beside", "a=nothing.pt"], "nothing.pt: no such file"),
        (["--precision", "1.5"], "precision: expected a share"),
        (["--margin", "-1"], "margin: expected a number"),
        (["--base-rate", "2"], "base_rate: expected a share"),
        (["--baseline-data", "nowhere"], "no prepared sessions here"),
        (["--posterior", "nowhere.parquet"], "nowhere.parquet: not a posterior"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(artifact, shop, tmp_path, options, words) -> None:
    code, _, err = run(artifact, shop.dataset.path, "--out", tmp_path / "r.html", *FAST, *options)
    assert code == 1
    assert f"error: {words}" in err or words in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_names_that_are_taken_are_refused(artifact, plain, shop, tmp_path) -> None:
    for name, words in (("model", "is there twice"), ("LightGBM", "is the name of a baseline")):
        code, _, err = run(
            artifact, shop.dataset.path, "--beside", f"{name}={plain}", "--out", tmp_path / "r.html", *FAST
        )
        assert code == 1
        assert words in err


def test_data_without_the_properties_of_the_model_is_refused(artifact, tmp_path) -> None:
    log = tmp_path / "bare.csv"
    log.write_text("session_id,timestamp,event_name,outcome\ns1,2026-01-01T00:00:00Z,page_view,true\n")
    code, _, err = run(artifact, log, "--no-baselines", "--out", tmp_path / "r.html", *FAST)
    assert code == 1
    assert "property 'device' of the artifact is not in the data" in err or "mapping" in err


# --- the model card


def test_the_card_says_what_the_model_is_for_and_is_not(trained, artifact, shop, settings, tmp_path) -> None:
    manifest = read_manifest(artifact)
    test = trained.test
    report = build_report(
        test.probability, test.outcome, test.prefix_length, test.session_index, title="", resamples=20, warnings=["few"]
    )

    card = model_card(manifest, report)

    assert json.loads(json.dumps(card, allow_nan=False)) == card
    assert card["not_an_input"] == NOT_AN_INPUT
    assert card["limits"][: len(LIMITS)] == LIMITS
    assert "few" in card["limits"]
    assert any("Propensity is not uplift" in limit for limit in card["limits"])
    assert card["data"]["sessions"] == trained.sessions
    assert card["data"]["from"].startswith("20")
    assert card["split"].endswith("65% training, 10% validation, 10% calibration, 15% test")
    assert card["calibration"]["temperature"] == pytest.approx(manifest.calibration["temperature"], abs=1e-6)
    assert card["calibration"]["class weights"] == "none"
    pooled = next(row for row in card["metrics"]["populations"] if row["name"] == "all prefixes")
    assert pooled["scores"]["auc"]["value"] == pytest.approx(report.pooled.scores["willbuy"]["auc"].value, abs=1e-6)
    assert set(pooled["log_loss_difference"]) == {"LightGBM", "base rate"}
    # And the artifact carries it without becoming another model
    path = tmp_path / "carded.pt"
    written = export(trained, shop.dataset, settings, {}, path, card=lambda made: model_card(made, report))
    assert read_manifest(path).model_card["data"] == card["data"]
    assert written.fingerprint == manifest.fingerprint == written.model_card["model"]["fingerprint"]
