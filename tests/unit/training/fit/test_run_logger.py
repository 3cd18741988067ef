"""`willbuy train --logger`: each tracker has the run's epochs, settings and scores."""

import pytest

from training.api import train
from training.config_file import ConfigError
from training.fit import run_logger as module

SMALL = {"fit.epochs": 2, "sizes.hidden_size": 8, "sizes.head_size": 8}


@pytest.fixture
def run(small_shop, tmp_path, monkeypatch):
    # The page takes longer than this training.
    monkeypatch.setattr("training.commands.train.write_html", lambda path, _report: path.write_text("page"))

    def train_with(logger):
        return train(small_shop.path, tmp_path / "model.pt", quick=True, settings=SMALL, logger=logger)

    return train_with


def test_tensorboard_reads_the_losses_and_scores(run, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    model = run("tensorboard")
    events = accumulator.EventAccumulator(str(tmp_path / "model.tensorboard"))
    events.Reload()
    assert [one.step for one in events.Scalars("fit/validation_loss")] == [1, 2]
    (auc,) = events.Scalars("test/auc")
    assert auc.value == pytest.approx(model.manifest.metrics["models"]["willbuy"][-1]["scores"]["auc"])
    assert "settings/text_summary" in events.Tags()["tensors"]


def test_mlflow_has_the_run_with_its_files(run, tmp_path, monkeypatch):
    tracking = pytest.importorskip("mlflow.tracking")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run("mlflow")
    client = tracking.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("willbuy").experiment_id])
    assert (found.info.run_name, found.info.status) == ("model", "FINISHED")
    assert found.data.params["fit.epochs"] == "2"
    assert 0 < found.data.metrics["test/auc"] < 1
    assert [one.step for one in client.get_metric_history(found.info.run_id, "fit/train_loss")] == [1, 2]
    assert {one.path for one in client.list_artifacts(found.info.run_id)} == {"model.pt", "model.report.html"}


def test_a_tracker_that_is_not_installed_is_an_error_before_any_work(run, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match="--logger mlflow: not installed"):
        run("mlflow")
