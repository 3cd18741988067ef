"""What the network is compared with: neither looks at the sessions that it is judged on."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.encoder import Encoder
from model.events import Event
from training.baselines import (
    BASE_RATE,
    LIGHTGBM,
    base_rate_by_position,
    cart_seen_by_position,
    fit_baselines,
    lightgbm_on_aggregates,
    markov,
    ngram_regression,
)
from training.baselines.markov import MarkovChain
from training.data.dataset import read_columns
from training.data.encoded import Encoded, encode
from training.evaluation.metrics import score
from training.fit.train import parts_of


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


# --- Markov chains


def test_a_markov_chain_by_hand() -> None:
    # Given the sessions 1 2 and 1 1 2, each of which ends after its last event
    chain = MarkovChain(np.array([1, 2, 1, 1, 2]), np.array([0, 2, 5]), order=1, symbols=3)
    # Then of seven symbols, ends included, 1 is three, 2 is two, and the end is two; a prior of ten goes to the uniform
    one, two = ((count + 10 / 3) / 17 for count in (3, 2))
    # After the start came 1 both times; after 1 came 1 once and 2 twice
    expected = [(2 + 10 * one) / 12, (2 + 10 * two) / 13, (1 + 10 * one) / 13]
    found = np.exp(chain.log_probability(np.array([1, 2, 1, 1]), np.array([0, 2, 4]), 10.0))
    np.testing.assert_allclose(found, [expected[0], expected[1], expected[0], expected[2]])


def test_probabilities_of_all_that_may_come_next_add_up_to_one() -> None:
    random = np.random.default_rng(0)
    types, offsets = random.integers(1, 4, 60), np.arange(0, 61, 6)
    chain = MarkovChain(types, offsets, order=3, symbols=4)
    # The end is the symbol 0; a context that was never seen is one of those asked for
    sums = [
        sum(
            np.exp(chain.log_probability(np.array([*context, symbol]), np.array([0, 4]), 10.0)[-1])
            for symbol in range(4)
        )
        for context in ([1, 2, 3], [3, 3, 3], [2, 1, 2])
    ]
    assert sums == pytest.approx([1.0, 1.0, 1.0])


def paths(columns_of, count: int, seed: int) -> Encoded:
    """Buyers mostly go a-b-c, the others a-c-b: the same events, told apart by their order alone."""
    encoder = Encoder(["a", "b", "c"], [], [], [], {}, calendar=False)
    random = np.random.default_rng(seed)
    outcomes = random.integers(0, 2, count)
    sessions = [
        [Event(name, 1000 * n) for n, name in enumerate("abc" if outcome ^ (random.random() < 0.1) else "acb")]
        for outcome in outcomes
    ]
    return encode(encoder, columns_of(sessions, outcomes.tolist()))


def test_a_markov_chain_tells_the_order_of_events(columns_of) -> None:
    train, validation, test = (paths(columns_of, count, seed) for seed, count in enumerate((600, 200, 200)))
    said = markov(train, validation, test, 1)
    position = test.columns.prefix_length().numpy()
    bought = test.columns.outcome.numpy()[test.columns.session_index().numpy()]
    # After the first event nothing is known, after the second nearly all
    assert np.ptp(said[position == 1]) == pytest.approx(0.0, abs=1e-12)
    assert said[position == 1][0] == pytest.approx(0.5, abs=0.08)
    assert log_loss(bought[position == 2], said[position == 2]) == pytest.approx(0.325, abs=0.12)


def test_without_calibration_sessions_the_ratio_stays_as_it_is(columns_of) -> None:
    train, few, test = (paths(columns_of, count, seed) for seed, count in enumerate((600, 20, 50)))
    raw = markov(train, few, test, 1)
    assert np.all((raw > 0) & (raw < 1))


# --- the cart, the regressions, and all together


def test_cart_seen_by_hand(columns_of) -> None:
    # Given 40 sessions that fill a cart at their second event and buy, and 60 that do not
    encoder = Encoder(["view_item", "add_to_cart"], [], [], [], {}, calendar=False)
    filled = [Event("view_item", 0), Event("add_to_cart", 1)]
    looked = [Event("view_item", 0), Event("view_item", 1)]
    train = encode(encoder, columns_of([filled] * 40 + [looked] * 60, [1] * 40 + [0] * 60))
    test = encode(encoder, columns_of([looked, filled], [0, 1]))
    np.testing.assert_allclose(cart_seen_by_position(train, test), [41 / 102, 1 / 62, 41 / 102, 41 / 42])


def test_n_grams_tell_the_order_of_events_and_ignore_the_test_outcomes(columns_of) -> None:
    train, validation, test = (paths(columns_of, count, seed) for seed, count in enumerate((600, 200, 200)))
    said = ngram_regression(train, validation, test, seed=0)
    columns = test.columns
    bought = columns.outcome[columns.session_index()].numpy()
    last = columns.prefix_length().numpy() == 3
    assert log_loss(bought[last], said[last]) < 0.45
    turned = Encoded(test.features, test.indices, replace(columns, outcome=1 - columns.outcome))
    assert ngram_regression(train, validation, turned, seed=0).tolist() == said.tolist()


def test_every_baseline_beats_the_base_rate_on_the_synthetic_shop(shop, trained, settings) -> None:
    encoder, columns = trained.model.encoder, read_columns(shop.dataset.shards, trained.model.encoder.properties)
    parts = parts_of(shop.dataset, settings.fractions, settings.split_seed)
    train, validation, test = (
        encode(encoder, columns.select(torch.tensor([n for n, s in enumerate(columns.session_id) if s in parts[part]])))
        for part in ("train", "validation", "test")
    )
    named: list[str] = []
    found = fit_baselines(encoder, train, validation, test, progress=named.append)
    assert list(found.predictions) == named == [
        "base rate", "cart seen", "Markov 1", "Markov 2", "Markov 3", "n-grams", "logistic", "LightGBM",
    ]  # fmt: skip
    bought = test.columns.outcome[test.columns.session_index()].numpy()
    losses = {name: log_loss(bought, said) for name, said in found.predictions.items()}
    base = losses.pop("base rate")
    assert max(losses.values()) < base - 0.005, losses
    assert losses["logistic"] < losses["cart seen"]
    assert found.notes == []


def test_baselines_of_one_outcome_alone_are_refused(columns_of) -> None:
    data = paths(columns_of, 50, 0)
    only = Encoded(data.features, data.indices, replace(data.columns, outcome=torch.zeros(50)))
    encoder = Encoder(["a", "b", "c"], [], [], [], {}, calendar=False)
    with pytest.raises(ValueError, match=r"^baselines: the training sessions have 0 buyers among 50"):
        fit_baselines(encoder, only, data, data)
    with pytest.raises(ValueError, match=r"^baselines: the validation sessions"):
        fit_baselines(encoder, data, only, data)
