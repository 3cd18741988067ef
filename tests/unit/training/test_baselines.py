"""What the network is compared with: neither looks at the sessions that it is judged on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.encoder import Encoder
from model.events import Event
from training.baselines import base_rate_by_position, lightgbm_on_aggregates
from training.loop import Encoded, encode
from training.metrics import score
from training.train import BASE_RATE, LIGHTGBM


def encoded(columns_of, lengths: list[int], outcomes: list[int]) -> Encoded:
    sessions = [[Event("a", 1000 * position) for position in range(length)] for length in lengths]
    return encode(Encoder(["a"], [], [], [], {}, calendar=False), columns_of(sessions, outcomes))


def log_loss(outcome: np.ndarray, probability: np.ndarray) -> float:
    found = score(outcome, probability).log_loss
    assert found is not None
    return found


def test_base_rate_by_position_by_hand(columns_of) -> None:
    # Given 60 sessions of one event, none a buyer, and 40 of three events, half of them buyers
    train = encoded(columns_of, [1] * 60 + [3] * 40, [0] * 60 + [1, 0] * 20)
    test = encoded(columns_of, [3, 1], [0, 1])
    # Then position 1 counts all 100, positions 2 and 3 the 40 that came as far; plus one of each outcome
    expected = [21 / 102, 21 / 42, 21 / 42, 21 / 102]
    np.testing.assert_allclose(base_rate_by_position(train, test), expected)


def test_a_position_that_few_came_to_borrows_from_the_one_before(columns_of) -> None:
    train = encoded(columns_of, [1] * 70 + [2] * 29, [0] * 70 + [1] * 29)
    test = encoded(columns_of, [4], [0])
    np.testing.assert_allclose(base_rate_by_position(train, test), [30 / 101] * 4)
    one_more = encoded(columns_of, [1] * 70 + [2] * 30, [0] * 70 + [1] * 30)
    np.testing.assert_allclose(base_rate_by_position(one_more, test), [31 / 102] + [31 / 32] * 3)


def test_base_rate_does_not_look_at_the_test_outcomes(columns_of) -> None:
    train = encoded(columns_of, [2] * 50, [1, 0] * 25)
    one, other = (encoded(columns_of, [2] * 4, outcomes) for outcomes in ([0] * 4, [1] * 4))
    assert base_rate_by_position(train, one).tolist() == base_rate_by_position(train, other).tolist()


def test_lightgbm_beats_the_base_rate_on_the_synthetic_shop(trained) -> None:
    outcome, said = trained.test.outcome, trained.test.probability
    assert log_loss(outcome, said[LIGHTGBM]) < log_loss(outcome, said[BASE_RATE]) - 0.03


@pytest.fixture
def chances(columns_of) -> dict[str, Encoded]:
    """Sessions whose first event tells much of the outcome, but not all."""
    encoder = Encoder(["a", "b"], [], [], [], {}, calendar=False)
    random = np.random.default_rng(1)
    parts = {}
    for part, count in (("train", 500), ("validation", 200), ("test", 100)):
        outcomes = random.integers(0, 2, count)
        first = ["ab"[outcome ^ (random.random() < 0.2)] for outcome in outcomes]
        sessions = [[Event(name, 0), *(Event("a", 1000 * (n + 1)) for n in range(3))] for name in first]
        parts[part] = encode(encoder, columns_of(sessions, outcomes.tolist()))
    return parts


def test_lightgbm_does_not_look_at_the_test_outcomes(chances) -> None:
    encoder = Encoder(["a", "b"], [], [], [], {}, calendar=False)
    said, trees = lightgbm_on_aggregates(encoder, chances["train"], chances["validation"], chances["test"], seed=0)
    columns = chances["test"].columns
    turned = Encoded(chances["test"].features, chances["test"].indices, replace(columns, outcome=1 - columns.outcome))
    again, _ = lightgbm_on_aggregates(encoder, chances["train"], chances["validation"], turned, seed=0)
    assert said.tolist() == again.tolist()
    assert trees >= 1
    # It is no constant: the outcome of 80 % of the sessions is in their first event.
    bought = columns.outcome[columns.session_index()].numpy()
    assert log_loss(bought, said) < 0.55


def test_lightgbm_stops_early_by_the_validation_sessions(chances) -> None:
    # Given validation sessions in which everything is the other way round
    encoder = Encoder(["a", "b"], [], [], [], {}, calendar=False)
    columns = chances["validation"].columns
    opposite = Encoded(
        chances["validation"].features, chances["validation"].indices, replace(columns, outcome=1 - columns.outcome)
    )
    _, trees = lightgbm_on_aggregates(encoder, chances["train"], chances["validation"], chances["test"], seed=0)
    _, stopped = lightgbm_on_aggregates(encoder, chances["train"], opposite, chances["test"], seed=0)
    assert stopped == 1 < trees


def test_the_base_rate_says_one_thing_of_all_that_came_as_far(trained) -> None:
    said = trained.test.probability[BASE_RATE]
    by_length = [said[trained.test.prefix_length == length] for length in range(1, 10)]
    assert all(len(set(values.tolist())) == 1 for values in by_length)
    assert torch.tensor([values[0] for values in by_length]).diff().abs().max() > 0
