"""The data summary: bins of the training inputs, and live inputs counted by them."""

import json

import pytest
import torch
from support.artifacts import random_model
from support.event_strategies import columns_of, random_sessions

from model.artifact import load, manifest_of, save
from model.events import Event
from model.predictor import Predictor
from model.summary import DataSummary, count_inputs, summarise


def summary_of(values, names=("x",)):
    features = torch.tensor(values, dtype=torch.float32).reshape(-1, len(names))
    return summarise(features, torch.full((len(features),), 2), names, sessions=1)


def test_bins_lie_between_the_values_and_shares_are_those_of_training():
    # Given a feature that is 0 three times in four, and else 1
    summary = summary_of([0.0] * 75 + [1.0] * 25)
    # Then an edge lies between them, and one beyond either end
    assert summary.edges == ((-0.001, 0.5, 1.001),)
    assert summary.shares == ((0.0, 0.75, 0.25, 0.0),)


def test_many_values_are_cut_at_their_deciles():
    summary = summary_of([number / 1000 for number in range(1000)])
    (shares,) = summary.shares
    assert shares[0] == shares[-1] == 0.0
    assert shares[1:-1] == pytest.approx([0.1] * 10, abs=0.002)


def test_what_never_changed_in_training_is_told_from_what_does():
    (edges,) = summary_of([5.0] * 10).edges
    assert len(edges) == 2
    assert edges[0] < 5.0 < edges[1]


def test_calendar_features_are_left_out():
    summary = summary_of([[0.0, 1.0, 2.0]] * 3, names=("hour_sin", "log_gap", "weekday_cos"))
    assert summary.features == ("log_gap",)


def test_a_large_log_is_sampled():
    values = torch.rand(300_000, 1, generator=torch.Generator().manual_seed(1))
    summary = summarise(values, torch.ones(300_000, dtype=torch.int64), ["x"], sessions=9)
    assert summary.prefixes == 300_000
    assert summary.unseen_name_share == 1.0
    assert summary.shares[0][1:-1] == pytest.approx([0.1] * 10, abs=0.01)


def test_a_summary_survives_the_manifest():
    summary = summary_of([[0.1, 2.0], [0.2, 3.0], [0.3, 3.0]], names=("x", "y"))
    assert DataSummary.from_dict(json.loads(json.dumps(summary.to_dict()))) == summary


@pytest.mark.parametrize("values", [None, {}, {"features": 3}, {"features": {"x": {"edges": [1], "shares": [1]}}}])
def test_what_is_no_summary_counts_as_none(values):
    assert DataSummary.from_dict(values) is None


@pytest.fixture(scope="module")
def sessions():
    return random_sessions([1, 3, 12, 30, 7])


@pytest.fixture(scope="module")
def model():
    return random_model()


def summary_of_sessions(model, sessions):
    encoder = model.encoder
    features, indices = [], []
    for events in sessions:
        columns = columns_of([events], encoder.properties)
        one, index = encoder.sequence(*columns)
        features.append(one[0])
        indices.append(index[0])
    return summarise(torch.cat(features), torch.cat(indices)[:, 0], encoder.feature_names, sessions=len(sessions))


def test_the_training_sessions_themselves_fall_into_the_shares_they_made(model, sessions, tmp_path):
    # Given an artifact with the summary of some sessions
    summary = summary_of_sessions(model, sessions)
    save(model, tmp_path / "model.pt", manifest_of(model, data={"inputs": summary.to_dict()}))
    predictor = Predictor(*load(tmp_path / "model.pt"))
    assert predictor.summary == summary
    # When the same sessions come live, folded in other batches
    counts = predictor.count_inputs(sessions)
    # Then each bin holds what it held
    assert counts is not None
    events = sum(map(len, sessions))
    assert counts.events == events
    for bins, shares in zip(counts.bins, summary.shares, strict=True):
        assert [count / events for count in bins] == pytest.approx(shares, abs=1e-6)
    assert counts.unseen_names / events == pytest.approx(summary.unseen_name_share, abs=1e-6)
    assert 0 < counts.unseen_names < events


def test_an_artifact_without_a_summary_counts_nothing(model, sessions, tmp_path):
    save(model, tmp_path / "model.pt")
    predictor = Predictor(*load(tmp_path / "model.pt"))
    assert predictor.summary is None
    assert predictor.count_inputs(sessions) is None


def test_long_and_short_sessions_are_counted_alike(model):
    long, short = random_sessions([900])[0], [[Event("page_view", number)] for number in range(40)]
    summary = summary_of_sessions(model, short)
    encoder = model.encoder
    names, properties = encoder.feature_names, encoder.properties
    together = count_inputs(encoder, [long, *short], names=names, properties=properties, summary=summary)
    apart = [
        count_inputs(encoder, [one], names=names, properties=properties, summary=summary) for one in (long, *short)
    ]
    assert together.events == 940
    sums = [
        [sum(column) for column in zip(*rows, strict=True)] for rows in zip(*(one.bins for one in apart), strict=True)
    ]
    assert [list(bins) for bins in together.bins] == sums


class Sequences:
    """An encoder whose one feature is a number for all events, and which keeps the shapes that it was given."""

    vocabulary = torch.zeros(1)

    def __init__(self, value):
        self.value = value
        self.shapes: list[tuple[int, ...]] = []

    def sequence(self, times, _codes, _numbers):
        self.shapes.append(tuple(times.shape))
        return torch.full((*times.shape, 1), self.value), torch.full((*times.shape, 1), 2)


def test_sessions_without_events_count_nothing(model):
    encoder, summary = model.encoder, summary_of_sessions(model, [[Event("x", 1)]])
    for number in range(3):
        empty: list[list[Event]] = [[] for _ in range(number)]
        found = count_inputs(
            encoder, empty, names=encoder.feature_names, properties=encoder.properties, summary=summary
        )
        assert (found.events, found.unseen_names) == (0, 0)


@pytest.mark.parametrize(("value", "place"), [(-0.002, 0), (0.0, 1), (0.5, 1), (0.501, 2), (1.0, 2), (1.002, 3)])
def test_a_value_on_an_edge_is_in_the_lower_bin(value, place):
    summary = DataSummary.from_dict({**summary_of([0.0] * 75 + [1.0] * 25).to_dict()})
    assert summary is not None
    found = count_inputs(Sequences(value), [[], [Event("x", 1)]], names=["x"], properties=[], summary=summary)
    assert (found.events, found.bins) == (1, (tuple(int(at == place) for at in range(4)),))


def test_batches_have_a_bounded_number_of_events_with_what_fills_them_up():
    encoder = Sequences(0.0)
    lengths = [1] * 300 + [300] * 100
    histories = [[Event("x", at) for at in range(length)] for length in lengths]
    found = count_inputs(encoder, histories, names=["x"], properties=[], summary=summary_of([0.0, 1.0]))
    assert found.events == sum(lengths)
    assert sum(sessions for sessions, _ in encoder.shapes) == len(lengths)
    assert all(sessions * events <= 16_384 for sessions, events in encoder.shapes)
    assert len(encoder.shapes) < 6


@pytest.mark.parametrize("with_price", [1.0, 0.4])
def test_usual_prices_are_from_the_lowest_decile_above_none_to_the_largest(with_price):
    prices = 10.0 + 90.0 * torch.rand(10_000)
    prices[torch.rand(10_000) > with_price] = 0.0
    features = torch.stack([torch.log1p(prices), torch.zeros(10_000)], dim=1)
    summary = summarise(features, torch.zeros(10_000, dtype=torch.int64), ["log_price", "other"], sessions=1)
    low, high = summary.usual_prices()
    # With sessions without prices, the decile may lie between none and the lowest price
    assert (9.0 if with_price == 1.0 else 0.0) < low < 40.0
    assert 99.0 < high < 101.0


def test_without_prices_any_price_is_usual():
    summary = summarise(torch.zeros(9, 1), torch.zeros(9, dtype=torch.int64), ["log_price"], sessions=1)
    assert summary.usual_prices() == (0.0, float("inf"))
