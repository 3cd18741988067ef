"""Rows by population: which prefixes they take, and what the paired differences and the calibration's chance say."""

import numpy as np
import pytest
from support.estimates import known

from training.evaluation.evaluate import score_rows
from training.evaluation.ladder import Rung, steps_of
from training.evaluation.metrics import PREFIX_LENGTHS, log_losses
from training.evaluation.prefixes import prefixes_of


def rows_by_name(prefixes, predictions, **options):
    return {row.name: row for row in score_rows(prefixes, predictions, resamples=50, **options)}


def test_populations_by_hand() -> None:
    # Given a buyer with three events and two others with one event each
    outcome, length, session = [1, 1, 1, 0, 0], [1, 2, 3, 1, 1], [7, 7, 7, 3, 5]
    said = np.array([0.3, 0.6, 0.9, 0.2, 0.4])
    early = np.array(length) < 2

    rows = rows_by_name(prefixes_of(outcome, length, session, {"part": {"early": early}}), {"a": said})

    assert list(rows) == [*map(str, PREFIX_LENGTHS), "all prefixes", "per session", "last event", "early"]
    assert [rows[name].count for name in ("1", "2", "3", "5", "all prefixes", "last event", "early")] == [
        3, 1, 1, 0, 5, 3, 3,
    ]  # fmt: skip
    assert (rows["all prefixes"].sessions, rows["2"].sessions) == (3, 1)
    assert rows["all prefixes"].base_rate.value == pytest.approx(3 / 5)
    assert rows["per session"].base_rate.value == pytest.approx(1 / 3)
    assert rows["last event"].base_rate.value == pytest.approx(1 / 3)
    loss = -np.log([0.3, 0.6, 0.9, 0.8, 0.6])
    scores = {name: row.scores["a"] for name, row in rows.items()}
    assert scores["all prefixes"]["log_loss"].value == pytest.approx(loss.mean())
    assert scores["per session"]["log_loss"].value == pytest.approx((loss[:3].mean() + loss[3] + loss[4]) / 3)
    assert scores["last event"]["log_loss"].value == pytest.approx((loss[2] + loss[3] + loss[4]) / 3)
    assert scores["1"]["auc"].value == pytest.approx(0.5)  # 0.3 above 0.2, below 0.4
    # Of one class there is no ranking, of no prefix nothing at all.
    assert scores["2"]["auc"].value is None
    assert scores["5"]["log_loss"].value is None
    assert rows["5"].calibration_noise["a"] is None


def test_sessions_are_numbered_from_zero_and_have_their_own_outcome() -> None:
    prefixes = prefixes_of([1, 1, 1, 0, 0], [1, 2, 3, 1, 1], [7, 7, 7, 3, 5])
    assert prefixes.session.tolist() == [2, 2, 2, 0, 1]
    assert prefixes.sessions == 3
    assert prefixes.session_outcome.tolist() == [0.0, 0.0, 1.0]
    # Of sessions of one event, too
    alone = prefixes_of([1, 0, 1, 0], [1] * 4, [10, 11, 12, 13])
    assert alone.session_outcome.tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.fixture(scope="module")
def shop():
    rng = np.random.default_rng(0)
    length = rng.integers(1, 12, 800)
    session = np.repeat(np.arange(800), length)
    strength = rng.normal(-1.0, 1.5, 800)
    outcome = (rng.random(800) < 1 / (1 + np.exp(-strength))).astype(float)[session]
    prefixes = prefixes_of(outcome, np.concatenate([np.arange(1, n + 1) for n in length]), session)
    truth = 1 / (1 + np.exp(-strength[session]))
    noisy = 1 / (1 + np.exp(-strength[session] - 1.5 * rng.standard_normal(len(session))))
    return prefixes, truth, noisy


def test_differences_are_of_the_same_resamples(shop) -> None:
    prefixes, truth, noisy = shop
    rows = rows_by_name(prefixes, {"truth": truth, "noisy": noisy, "again": truth})
    found = rows["all prefixes"].differences
    # The same predictions differ by nothing, in every resample
    assert {(e.value, e.low, e.high) for e in found["again"].values()} == {(0.0, 0.0, 0.0)}
    # Better predictions have the lower loss and the higher AUC
    assert found["noisy"]["log_loss"].high < 0.0
    assert found["noisy"]["auc"].low > 0.0
    losses = [log_losses(prefixes.outcome, said).mean() for said in (truth, noisy)]
    expected = losses[0] - losses[1]
    assert found["noisy"]["log_loss"].value == pytest.approx(expected)
    # And the interval of the difference is much narrower than those of the two scores
    spread = {name: rows["all prefixes"].scores[name]["log_loss"] for name in ("truth", "noisy")}
    widths = [e.high - e.low for e in spread.values()]
    assert found["noisy"]["log_loss"].high - found["noisy"]["log_loss"].low < max(widths)


def test_what_chance_makes_of_the_calibration_error_is_told(shop) -> None:
    prefixes, truth, _ = shop
    rows = rows_by_name(prefixes, {"truth": truth, "too bold": np.clip(2 * truth, 0, 1)})
    first = rows["1"]
    # True probabilities have an error that chance explains, doubled ones have not
    assert 0 < first.scores["truth"]["calibration_error"].value < first.calibration_noise["truth"]
    assert first.scores["too bold"]["calibration_error"].value > first.calibration_noise["too bold"]
    error = first.scores["truth"]["calibration_error"]
    assert error.low <= error.value <= error.high


def test_intervals_do_not_depend_on_what_else_is_judged(shop) -> None:
    prefixes, truth, noisy = shop
    alone = rows_by_name(prefixes, {"truth": truth})["3"].scores["truth"]
    assert rows_by_name(prefixes, {"noisy": noisy, "truth": truth})["3"].scores["truth"] == alone


def test_no_model_is_refused(shop) -> None:
    with pytest.raises(ValueError, match=r"^predictions: "):
        score_rows(shop[0], {})


# --- the ladder


def test_the_ladder_pairs_models_that_differ_in_one_thing(shop) -> None:
    prefixes, truth, noisy = shop
    rungs = {
        "lstm": Rung("lstm", aggregates=True),
        "gru": Rung("gru", aggregates=True),
        "rnn": Rung("rnn", aggregates=True),
        "none": Rung("feed-forward", aggregates=True),
        "bare": Rung("lstm", aggregates=False),
        "lstm again": Rung("lstm", aggregates=True),
    }
    said = dict.fromkeys(rungs, noisy) | {"lstm": truth, "lstm again": truth}
    steps = steps_of(prefixes, said, rungs, resamples=50)
    assert [(step.buys, step.having, step.lacking) for step in steps] == [
        ("memory", "rnn", "none"),
        ("memory", "gru", "none"),
        ("memory", "lstm", "none"),
        ("gates", "gru", "rnn"),
        ("gates", "lstm", "rnn"),
        ("aggregates", "lstm", "bare"),
    ]
    by_pair = {(step.having, step.lacking): step.differences for step in steps}
    # Lower loss is below zero; equal predictions differ by nothing; the interval is that of the rows
    assert known(by_pair["lstm", "rnn"]["all prefixes"])[2] < 0.0
    assert by_pair["gru", "rnn"]["all prefixes"].value == 0.0
    expected = rows_by_name(prefixes, {"a": truth, "b": noisy})["5"].differences["b"]["log_loss"]
    assert by_pair["lstm", "rnn"]["5"].value == pytest.approx(expected.value)
    assert by_pair["lstm", "rnn"]["5"].low == pytest.approx(expected.low)
    # A length that no session reached is undefined
    assert by_pair["lstm", "rnn"]["20"].value is None


def test_one_model_makes_no_ladder(shop) -> None:
    prefixes, truth, _ = shop
    assert steps_of(prefixes, {"a": truth}, {"a": Rung("lstm", aggregates=True)}, resamples=20) == []
