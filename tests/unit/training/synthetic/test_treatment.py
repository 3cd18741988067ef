"""A treatment in the synthetic shop: its exact effect is what drawn sessions have."""

import numpy as np
import polars as pl
import pytest

from training.synthetic import PRESETS, ShopShape, generate, sessions
from training.synthetic.posterior import posterior
from training.synthetic.process import EVENT_NAMES, Process
from training.synthetic.sample import sample
from training.synthetic.treatment import Treatment

SESSIONS = 60_000


@pytest.fixture(scope="module")
def process() -> Process:
    return Process.of(PRESETS["default"])


@pytest.mark.parametrize("trigger", ["add_to_cart", "begin_checkout", "page_view"])
def test_drawn_sessions_have_the_exact_effect(process: Process, trigger: str) -> None:
    treatment = Treatment(0.5, trigger)
    effect = treatment.effect(process)
    for treated, expected in ((False, effect.control), (True, effect.treatment)):
        traces = treatment.draw(process, SESSIONS, np.random.default_rng(3), treated=treated)
        fired = treatment.fired(traces)
        assert fired.mean() == pytest.approx(effect.fires, abs=0.006)
        bought = traces.purchased[fired]
        # Four standard errors.
        assert bought.mean() == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / fired.sum()))
    assert effect.difference > 0.005


def test_a_treatment_without_strength_changes_nothing(process: Process) -> None:
    treatment = Treatment(0.0)
    effect = treatment.effect(process)
    assert effect.difference == pytest.approx(0.0, abs=1e-12)
    one = treatment.draw(process, 500, np.random.default_rng(1), treated=True)
    other = sample(process, 500, np.random.default_rng(1))
    assert (one.name == other.name).all()
    assert (one.purchased == other.purchased).all()


def test_the_event_that_fires_the_rule_is_not_treated_itself() -> None:
    short = Process.of(ShopShape(max_events=2))  # so the first `add_to_cart` is the last event
    effect = Treatment(5.0).effect(short)
    assert effect.control == effect.treatment > 0.0
    traces = Treatment(5.0).draw(short, SESSIONS, np.random.default_rng(5), treated=True)
    fired = Treatment(5.0).fired(traces)
    assert traces.purchased[fired].mean() == pytest.approx(effect.control, abs=0.02)


def test_strength_raises_the_probability_of_a_purchase_and_keeps_a_distribution(process: Process) -> None:
    strong = Treatment(5.0).process(process)
    assert (strong.buys >= process.buys).all()
    assert (strong.buys + strong.leaves <= 1.0).all()
    assert Treatment(-1.0).effect(process).difference < 0.0 < Treatment(1.0).effect(process).difference


@pytest.mark.parametrize(
    ("arguments", "named"), [({"log_odds": 9.0}, "log_odds"), ({"log_odds": 0.1, "trigger": "x"}, "trigger")]
)
def test_bad_arguments_are_named(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Treatment(**arguments)


def test_the_posterior_of_a_session_knows_its_group_from_the_decision_on(process: Process) -> None:
    treatment, rng = Treatment(1.0), np.random.default_rng(11)
    group = rng.random(SESSIONS) >= 0.3
    traces = treatment.draw(process, SESSIONS, rng, treated=group)
    answer = treatment.posterior(process, traces, group, held_out=0.3)
    effect = treatment.effect(process)
    since = ((traces.name == EVENT_NAMES.index("add_to_cart")).cumsum(axis=1) > 0).cumsum(axis=1)
    means = [answer[(since == 1) & (group == treated)[:, None]].mean() for treated in (False, True)]
    assert means == pytest.approx([effect.control, effect.treatment], abs=0.01)
    # Calibrated at each number of events since the decision, where each session counts once
    for events in (1, 2, 5):
        for treated in (False, True):
            row, column = np.nonzero((since == events) & (group == treated)[:, None] & (traces.name >= 0))
            chance = answer[row, column]
            error = (traces.purchased[row] - chance).sum() / np.sqrt((chance * (1.0 - chance)).sum())
            assert abs(error) < 4.0
    first = answer[:, 0][since[:, 0] == 0]
    assert first.mean() == pytest.approx(traces.purchased[since[:, 0] == 0].mean(), abs=0.006)
    # Without an effect, it is the shop's own
    np.testing.assert_allclose(
        Treatment(0.0).posterior(process, traces, group, held_out=0.3), posterior(process, traces), atol=1e-12
    )


def test_a_log_of_the_treated_shop_has_the_groups_as_a_collected_one() -> None:
    rows = generate(PRESETS["treated"], 2_000, seed=9).events.sort("session_id", "timestamp_ms")
    every, after = rows["property.willbuy.interventions"], rows["property.willbuy.intervention.voucher"]
    assert set(every.drop_nulls()) == {"voucher=treatment", "voucher=control"}
    is_add = (pl.col("event_name") == "add_to_cart").cast(pl.Int64)
    counted = rows.select(earlier=is_add.cum_sum().over("session_id") - is_add, whole=is_add.sum().over("session_id"))
    assert ((counted["earlier"] > 0) == after.is_not_null()).all()
    assert ((counted["whole"] > 0) == every.is_not_null()).all()
    stream = next(iter(sessions(PRESETS["treated"], seed=3)))
    assert set(stream[0].properties) >= {"device", "willbuy.interventions"}
