"""The benchmark of an experiment's intervals, on a few experiments."""

import numpy as np
import pytest

from benchmarks.experiment_coverage import Population, Scenario, daily_sums, measure, populate
from training.synthetic import PRESETS
from training.synthetic.process import Process
from training.synthetic.treatment import Treatment


def test_running_sums_are_those_of_the_days() -> None:
    population = Population(np.array([0.0, 2.0]))
    sums = daily_sums(population, np.array([0, 3, 2]), np.random.default_rng(1))
    assert sums[:, 0].tolist() == [0.0, 3.0, 5.0]
    assert (sums[:, 2] == 2.0 * sums[:, 1]).all()
    assert (sums[:, 3] == 4.0 * sums[:, 1]).all()
    assert (np.diff(sums, axis=0) >= 0.0).all()


def test_only_decided_sessions_count_and_only_buyers_have_revenue() -> None:
    process, treatment = Process.of(PRESETS["default"]), Treatment(0.5)
    population = populate(process, treatment, 5_000, 3, treated=True)
    effect = treatment.effect(process)
    assert len(population.revenue) == pytest.approx(5_000 * effect.fires, rel=0.1)
    assert population.conversion == pytest.approx(effect.treatment, abs=0.05)
    assert population.revenue.min() == 0.0


def test_a_scenario_has_its_shares_and_the_true_difference() -> None:
    found = measure(Scenario("default", 0.5, 0.5, 100), experiments=10, sessions=5_000, seed=1)
    assert found.difference == pytest.approx(found.exact, abs=8.0)
    assert found.exact > 0.0
    for share in (found.fixed_once, found.fixed_daily, found.sequence_daily, found.revenue_daily, found.decided):
        assert 0.0 <= share <= 1.0
    assert found.fixed_daily <= found.fixed_once
