"""What of the data a run is fitted, calibrated and compared on, on a log that trains in a second."""

from dataclasses import replace
from typing import Any

import pytest
from numpy.typing import NDArray

from training.config import FitSettings, PretrainingSettings, TeacherSettings, TrainSettings
from training.data.training_set import TrainingError, load
from training.evaluation.calibration import Calibration
from training.evaluation.slices import ITEM
from training.fit import train as module
from training.fit.checkpoint import CheckpointError
from training.fit.loop import logits
from training.fit.train import LIGHTGBM, train

BRIEF = TrainSettings(
    fit=FitSettings(epochs=1, batch_sessions=32),
    pretraining=PretrainingSettings(epochs=0),
    teacher=TeacherSettings(folds=0),
    lightgbm=False,
)


def category(number: int, position: int) -> str:
    return f"c-{(number * 7 + position) % 3}"


def test_the_logits_are_calibrated_on_the_calibration_sessions(log_of, monkeypatch) -> None:
    seen: list[tuple[NDArray[Any], ...]] = []

    def noted(*values: NDArray[Any]) -> Calibration:
        seen.append(values)
        return Calibration(1.5, 0.25)

    monkeypatch.setattr(module, "fit_calibration", noted)
    log = log_of(item_category=category)
    model = train(log, BRIEF).model
    data = load(log, BRIEF).parts["calibration"]
    ((raw, outcome, session),) = seen
    assert raw.tolist() == logits(model, data).tolist()
    assert session.tolist() == [number // 2 for number in range(40)]
    assert outcome.tolist() == data.columns.outcome.repeat_interleave(2).tolist()
    assert (float(model.temperature), float(model.bias)) == (1.5, 0.25)


def test_a_fit_that_diverges_is_an_error_that_says_what_helps(log_of) -> None:
    with pytest.raises(TrainingError, match="never a number; a smaller --learning-rate"):
        train(log_of(), replace(BRIEF, fit=replace(BRIEF.fit, learning_rate=1e30)))


def test_a_checkpoint_of_other_data_or_another_split_is_refused_by_what_differs(log_of, tmp_path) -> None:
    checkpoint = tmp_path / "run.checkpoint"
    log = log_of(item_category=category)
    train(log, BRIEF, checkpoint=checkpoint)
    for settings, differing in (
        (replace(BRIEF, split_seed=1), "split_seed differ"),
        (replace(BRIEF, quantile_bins=5), "quantile_bins differ"),
        (replace(BRIEF, fractions=(0.6, 0.15, 0.1, 0.15)), "fractions, training sessions, validation sessions differ"),
    ):
        with pytest.raises(CheckpointError, match=differing):
            train(log, settings, checkpoint=checkpoint, resume=True)
    for part, first in (("training", 0), ("validation", 130)):
        other = log_of(
            item_category=category, outcome=lambda number, _, first=first: (number == first + 1) != (number % 4 == 0)
        )
        with pytest.raises(CheckpointError, match=rf"\({part} sessions differ"):
            train(other, BRIEF, checkpoint=checkpoint, resume=True)


def test_parts_with_more_events_than_a_sample_are_named_and_the_inputs_are_counted_whole(log_of) -> None:
    result = train(log_of(item_category=category), replace(BRIEF, sample_events=100))
    (note,) = [warning for warning in result.warnings if "sample_events" in warning]
    assert note.endswith("represent each of these parts: train")
    assert result.inputs.prefixes == 260


def test_where_an_earlier_models_calibration_stays_that_is_said(log_of, monkeypatch) -> None:
    monkeypatch.setattr(module, "fit_calibration", lambda *_: None)
    log = log_of(item_category=category)
    fresh = train(log, BRIEF)
    assert fresh.calibration is None
    assert fresh.warnings[-1].endswith("the logits are used as they are")
    fresh.model.bias.fill_(0.25)
    again = train(log, BRIEF, start=fresh.model)
    assert again.warnings[-1].endswith("the earlier model's calibration stays")
    assert float(again.model.bias) == 0.25


def test_lightgbm_predicts_the_test_sessions(log_of) -> None:
    result = train(log_of(item_category=category), replace(BRIEF, lightgbm=True))
    assert result.test.probability[LIGHTGBM].shape == result.test.outcome.shape == (60,)


def test_items_of_the_training_sessions_are_known(log_of) -> None:
    log = log_of(item_id=lambda number, _: f"SKU-{number if number >= 185 else 0}")
    counts = {name: int(chosen.sum()) for name, chosen in train(log, BRIEF).test.slices[ITEM].items()}
    assert counts == {"an item that training had": 30, "an unseen item": 30}
