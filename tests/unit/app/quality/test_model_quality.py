"""What is said of the model, against scikit-learn on the same answers and against hand computations."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from app.quality.counts import (
    BINS,
    GROUPS,
    answers_of,
    bin_of,
    count_answers,
    count_inputs,
    count_outcome,
    first_model,
    group_of,
    revenue_of,
)
from app.quality.figures import drift_of, population_stability_index, quality_of
from app.store.history_codec import Entry
from app.store.outcomes import ClosedSession
from model.events import Event
from model.summary import DataSummary, InputCounts

ONE, OTHER = "9f86d081884c7d65", "0011223344556677"


def a_session(probabilities, *, bought=False, model=ONE):
    entries = [Entry(Event("page_view", place), probability, model) for place, probability in enumerate(probabilities)]
    return ClosedSession("1-0", "s", bought, "idle", 0, 1, entries)


def random_answers(sessions, seed):
    """Sessions of a fairly good model: outcome, and the probability after each event."""
    random = np.random.default_rng(seed)
    for _ in range(sessions):
        logit = random.normal(-3.0, 1.5)
        bought = bool(random.random() < 1 / (1 + math.exp(-logit)))
        noise = random.normal(0, 0.7, size=random.integers(1, 30))
        yield bought, [float(1 / (1 + math.exp(-(logit + one)))) for one in noise]


def counted(answers):
    counts: Counter[str] = Counter()
    for bought, probabilities in answers:
        counts.update(count_answers(list(enumerate(probabilities, start=1)), bought=bought))
    return counts


def calibration_error(said, happened, bins=10):
    order = np.argsort(said, kind="stable")
    parts = np.array_split(order, bins)
    return sum(abs(happened[part].sum() - said[part].sum()) for part in parts) / len(said)


def test_figures_are_those_of_scikit_learn():
    # Given the answers to a thousand sessions
    answers = list(random_answers(1000, seed=1))
    # When they are counted, session by session
    overall, groups, reliability = quality_of(counted(answers))
    # Then the figures are those of the answers themselves
    rows = [(n, p, bought) for bought, said in answers for n, p in enumerate(said, start=1)]
    for figures, first, last in [(overall, 1, None), *((group, group.from_, group.to) for group in groups)]:
        chosen = [(p, bought) for n, p, bought in rows if n >= first and (last is None or n <= last)]
        said, happened = np.array([p for p, _ in chosen]), np.array([bought for _, bought in chosen], dtype=float)
        assert figures.predictions == len(chosen)
        assert figures.sessions == sum(len(one) >= first for _, one in answers)
        assert figures.buyers == sum(bought for bought, one in answers if len(one) >= first)
        assert figures.base_rate == pytest.approx(happened.mean())
        assert figures.mean_probability == pytest.approx(said.mean(), rel=1e-6)
        assert figures.log_loss == pytest.approx(log_loss(happened, said), rel=1e-6)
        # Answers of one score bin are ties
        assert figures.auc == pytest.approx(roc_auc_score(happened, said), abs=1e-3)
        # Bins are cut between score bins, so not at quite the same answers
        assert figures.calibration_error == pytest.approx(calibration_error(said, happened), abs=5e-3)
    assert len(reliability) == 10
    assert sum(point.predictions for point in reliability) == len(rows)
    assert sorted(point.mean_probability for point in reliability) == [p.mean_probability for p in reliability]
    assert sum(point.purchase_rate * point.predictions for point in reliability) == pytest.approx(
        sum(bought for *_, bought in rows)
    )


def test_revenue_is_summed_by_currency_and_never_over_two():
    def bought(value, currency=None, of_event=None):
        entries = [Entry(Event("page_view", 1, currency=of_event), 0.5, ONE)]
        return ClosedSession("1-0", "s", True, "event", 0, 1, entries, value, currency)

    counts: Counter[str] = Counter()
    sessions = [bought(0.1, "EUR"), bought(0.2, of_event="EUR"), bought(900.0, "JPY", "EUR"), bought(5.0), bought(None)]
    for session in [*sessions, a_session([0.5])]:
        counts.update(count_outcome(session))
    assert (counts["s"], counts["b"]) == (6, 5)
    assert [(one.currency, one.value, one.purchases) for one in revenue_of(counts)] == [
        ("EUR", 0.3, 2),
        (None, 5.0, 1),
        ("JPY", 900.0, 1),
    ]


def test_figures_of_few_sessions_are_not_given():
    answers = [(False, [0.1, 0.2])] * 25 + [(True, [0.3])] * 5
    few, _, reliability = quality_of(counted(answers[1:]))
    assert (few.sessions, few.log_loss, few.auc, few.calibration_error) == (29, None, None, None)
    assert few.mean_probability is not None
    assert reliability == []
    # One session more is enough, and so are five buyers; four are too few for an AUC
    enough, _, reliability = quality_of(counted(answers))
    assert (enough.sessions, enough.buyers, enough.predictions, enough.auc) == (30, 5, 55, 1.0)
    assert None not in (enough.log_loss, enough.calibration_error)
    # The rate is that of answers, not of sessions
    assert enough.base_rate == pytest.approx(5 / 55)
    assert len(reliability) > 1
    four, *_ = quality_of(counted([*answers[:-1], (False, [0.1])]))
    assert four.auc is None
    assert four.log_loss is not None
    # A hundred sessions, and all alike
    alike, *_ = quality_of(counted([(False, [0.1])] * 100))
    assert alike.auc is None
    assert alike.log_loss == pytest.approx(-math.log(0.9))
    assert alike.calibration_error == pytest.approx(0.1)


def test_nothing_counted_is_said_to_be_nothing():
    overall, groups, reliability = quality_of({})
    assert (overall.sessions, overall.predictions, overall.base_rate) == (0, 0, None)
    assert [(group.from_, group.to) for group in groups] == list(GROUPS)
    assert reliability == []


def test_certain_answers_that_were_wrong_have_a_finite_loss():
    overall, *_ = quality_of(counted([(True, [0.0]), (False, [1.0])] * 20))
    assert overall.log_loss == pytest.approx(-math.log(1e-7), rel=1e-6)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_higher_probability_is_never_in_a_lower_bin(one, other):
    low, high = sorted((one, other))
    assert 0 <= bin_of(low) <= bin_of(high) < BINS


def test_the_ends_of_the_scale_are_the_first_and_the_last_bin():
    assert (bin_of(0.0), bin_of(0.5), bin_of(1.0)) == (0, BINS // 2, BINS - 1)


@pytest.mark.parametrize(("number", "group"), [*enumerate(GROUPS)])
def test_a_group_begins_and_ends_where_it_says(number, group):
    first, last = group
    assert group_of(first) == number
    assert group_of(last or 10_000) == number


@given(st.integers(1, 1000))
def test_every_prefix_length_is_in_the_group_that_names_it(prefix_length):
    first, last = GROUPS[group_of(prefix_length)]
    assert first <= prefix_length <= (last or prefix_length)


def test_answers_count_for_the_model_that_gave_them():
    session = a_session([0.1, 0.2, 0.3])
    unknown = [Entry(Event("page_view", 2)), Entry(Event("page_view", 3), 0.4)]
    entries = [session.entries[0], Entry(Event("page_view", 1), 0.2, OTHER), *unknown]
    mixed = ClosedSession("1-0", "s", True, "event", 9, 9, entries)
    # An answer that an older release did not keep counts for nobody, and the next has its own place
    assert answers_of(mixed, ONE) == [(1, 0.1)]
    assert answers_of(mixed, OTHER) == [(2, 0.2)]
    assert (first_model(mixed), first_model(session)) == (ONE, ONE)
    assert first_model(ClosedSession("1-0", "s", True, "event", 9, 9, unknown)) is None
    assert first_model(ClosedSession("1-0", "s", True, "event", 9, 9, [])) is None


def test_the_index_of_a_hand_computation():
    # (0.5 - 0.25) ln 2 + (0.5 - 0.75) ln (2 / 3), by hand
    assert population_stability_index([50, 50], [0.25, 0.75]) == pytest.approx(0.274653, abs=1e-6)
    assert population_stability_index([25, 75], [0.25, 0.75]) == pytest.approx(0.0)
    # An empty bin counts as one in ten thousand: (0.5 - 0.0001) ln 5000 on either side
    assert population_stability_index([0, 10], [0.5, 0.5]) == pytest.approx(
        (0.5 - 1e-4) * math.log(5000) + 0.5 * math.log(2), abs=1e-6
    )


SUMMARY = DataSummary(
    sessions=1000,
    prefixes=5000,
    unseen_name_share=0.01,
    features=("steady", "shifted"),
    edges=((0.0, 1.0), (0.0, 1.0)),
    shares=((0.25, 0.5, 0.25), (0.25, 0.5, 0.25)),
)


def test_a_shifted_feature_stands_out():
    inputs = InputCounts(events=400, unseen_names=40, bins=((100, 200, 100), (10, 100, 290)))
    drift = drift_of(count_inputs(inputs, sessions=100), SUMMARY)
    assert [feature.name for feature in drift.features] == ["shifted", "steady"]
    assert drift.max_psi == drift.features[0].psi > 0.25
    assert drift.features[1].psi == pytest.approx(0.0)
    assert (drift.sessions, drift.unseen_name_share, drift.trained_unseen_name_share) == (100, 0.1, 0.01)


def test_drift_of_few_sessions_is_not_given():
    inputs = InputCounts(events=400, unseen_names=40, bins=((100, 200, 100), (10, 100, 290)))
    drift = drift_of(count_inputs(inputs, sessions=99), SUMMARY)
    assert (drift.sessions, drift.features, drift.max_psi, drift.unseen_name_share) == (99, [], None, None)
    assert len(drift_of(count_inputs(inputs, sessions=100), SUMMARY).features) == 2


def test_only_the_features_that_moved_most_are_named():
    names = tuple(f"f{number:02}" for number in range(25))
    summary = DataSummary(1, 1, 0.0, names, ((0.0,),) * 25, ((0.5, 0.5),) * 25)
    inputs = InputCounts(events=100, unseen_names=0, bins=tuple((50 - number, 50 + number) for number in range(25)))
    drift = drift_of(count_inputs(inputs, sessions=100), summary)
    assert [feature.name for feature in drift.features] == [*reversed(names)][:20]


def test_a_bin_that_training_never_had_makes_no_infinite_drift():
    assert population_stability_index([10, 10], [1.0, 0.0]) == pytest.approx(
        -0.5 * math.log(0.5) + (0.5 - 1e-4) * math.log(5000), abs=1e-6
    )


def test_every_bin_with_an_event_is_counted_and_no_empty_one():
    counts = count_inputs(InputCounts(events=3, unseen_names=1, bins=((0, 1, 2),)), sessions=2)
    assert counts == {"sessions": 2, "events": 3, "unseen": 1, "0:1": 1, "0:2": 2}
