"""The network against its equations, written out in NumPy float64, with each cell and without aggregates."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from msgspec import structs
from support.artifacts import EVENT_NAMES, random_model
from support.event_strategies import ALL_SCOPES, columns_of, random_session, random_sessions
from support.textbook import as_float64, sigmoid, textbook_outputs

from model.cells import CELLS
from model.encoder import Encoder
from model.network import FeatureScaling, SessionModel
from model.sizes import NetworkSizes

LADDER = [(cell, aggregates) for cell in CELLS for aggregates in (True, False)]


def a_scaled_model(layers=1, *, calibrated=True, **sizes):
    """A model with all parts away from their defaults: scaling, bins out of order, temperature and bias."""
    encoder = Encoder(
        list(EVENT_NAMES),
        ["shoes", "hats"],
        ["SKU-1", "SKU-2"],
        list(ALL_SCOPES),
        {"device": ["mobile"]},
        calendar=True,
    )
    torch.manual_seed(3)
    features = len(encoder.feature_names)
    scaling = FeatureScaling(
        mean=torch.randn(features),
        deviation=torch.rand(features) + 0.2,
        bin_feature=torch.randint(0, features, (70,)),
        bin_low=torch.randn(70) * 0.5,
        bin_width=torch.rand(70) + 0.1,
    )
    chosen = NetworkSizes(hidden_size=6, layers=layers, head_size=9, embedding_size=3, **sizes)
    model = SessionModel(encoder, chosen, scaling)
    with torch.no_grad():
        model.logit.weight.mul_(4)
        if calibrated:
            model.temperature.fill_(1.7)
            model.bias.fill_(-0.4)
    return model.eval()


def linear(layer, x):
    return as_float64(layer.weight) @ x + as_float64(layer.bias)


def reference_probabilities(model, features, indices):
    """Probability after each event of one session, from encoded features [T, F] and indices [T, I]."""
    if not model.sizes.aggregates:
        features = features[:, model.encoder.features_of_the_event()]
    known, binned = [], []
    for row, words in zip(as_float64(features), indices.tolist(), strict=True):
        scaled = np.clip((row - as_float64(model.feature_mean)) / as_float64(model.feature_deviation), -8, 8)
        embedded = [as_float64(table.weight)[word] for table, word in zip(model.embeddings, words, strict=True)]
        known.append(np.concatenate([scaled, *embedded]))
        place = [
            min(max((row[feature] - low) / width, 0), 1) - 0.5
            for feature, low, width in zip(
                model.bin_feature.tolist(), as_float64(model.bin_low), as_float64(model.bin_width), strict=True
            )
        ]
        binned.append(np.maximum(linear(model.bins, np.array(place)), 0))
    inputs = np.concatenate([np.array(known), np.array(binned)], axis=1)
    outputs = textbook_outputs(model.lstm, torch.from_numpy(inputs))
    logits = []
    for output, x in zip(outputs, inputs, strict=True):
        units = np.maximum(linear(model.head, np.concatenate([output, x])), 0)
        logits.append(linear(model.logit, units)[0])
    return sigmoid(np.array(logits) / float(model.temperature) + float(model.bias))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("cell", "aggregates"), LADDER)
def test_the_whole_model_is_its_equations(cell, aggregates, layers):
    model = a_scaled_model(layers, cell=cell, aggregates=aggregates)
    columns = columns_of(random_sessions([40, 40, 40]), ALL_SCOPES)
    features, indices = model.encoder.sequence(*columns)
    with torch.inference_mode():
        actual = model(*columns)
    assert actual.std() > 0.01  # a constant answer would agree with much
    for row in range(3):
        expected = reference_probabilities(model, features[row], indices[row])
        np.testing.assert_allclose(actual[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("hidden_size", "layers"), [(8, 2), (64, 1)])
@pytest.mark.parametrize(("cell", "aggregates"), LADDER)
def test_the_step_is_the_sequence(cell, aggregates, hidden_size, layers):
    model = random_model(
        hidden_size=hidden_size, layers=layers, properties=ALL_SCOPES, cell=cell, aggregates=aggregates
    )
    columns = columns_of(random_sessions([30, 30]), ALL_SCOPES)
    with torch.inference_mode():
        expected = model(*columns)
        hidden, carry, memory = model.initial_state(2)
        for position in range(30):
            stamps, codes, numbers = (column[:, position] for column in columns)
            probability, hidden, carry, memory = model.step(stamps, codes, numbers, hidden, carry, memory)
            torch.testing.assert_close(probability, expected[:, position], rtol=0, atol=1e-5)


def ending_alike(seed):
    """Two sessions with nothing in common but their last event and the gap before it."""
    last = random_session(seed, 1)[0]
    for session in (random_session(100 + seed, 12), random_session(200 + seed, 7)):
        yield [*session, structs.replace(last, timestamp_ms=max(event.timestamp_ms for event in session) + 20_000)]


@pytest.mark.parametrize(("cell", "aggregates"), LADDER)
def test_only_a_network_with_neither_cell_nor_aggregates_forgets_what_came_before(cell, aggregates):
    properties = [spec for spec in ALL_SCOPES if spec.scope == "event"]
    model = random_model(properties=properties, cell=cell, aggregates=aggregates)
    with torch.inference_mode():
        last = [
            [float(model(*columns_of([events], properties))[0, -1]) for events in ending_alike(seed)]
            for seed in range(8)
        ]
    differences = [abs(one - another) for one, another in last]
    if cell == "feed-forward" and not aggregates:
        assert max(differences) < 1e-6
        assert np.std(last) > 1e-3  # and it is an answer, not a constant
    else:
        assert np.median(differences) > 1e-4


def test_without_aggregates_the_network_sees_what_the_event_says_and_no_more():
    model = a_scaled_model(aggregates=False)
    names = [model.encoder.feature_names[position] for position in model.encoder.features_of_the_event()]
    numbers = [spec.name for spec in ALL_SCOPES if spec.kind == "number"]
    assert set(names) == {
        *("log_gap", "is_first", "has_item", "has_category", "has_price", "log_price", "log_quantity"),
        *("hour_sin", "hour_cos", "weekday_sin", "weekday_cos"),
        *(f"value[{name}]" for name in numbers),
        *(f"given[{name}]" for name in numbers),
    }
    assert model.seen_features.tolist() == [model.encoder.feature_names.index(name) for name in names]


def test_a_narrowed_scaling_keeps_each_features_own_mean_and_bins():
    whole = FeatureScaling(
        mean=torch.tensor([1.0, 2.0, 3.0]),
        deviation=torch.tensor([4.0, 5.0, 6.0]),
        bin_feature=torch.tensor([2, 0, 1, 2]),
        bin_low=torch.tensor([0.1, 0.2, 0.3, 0.4]),
        bin_width=torch.tensor([1.1, 1.2, 1.3, 1.4]),
    )
    narrow = whole.narrowed([2, 1])
    assert (narrow.mean.tolist(), narrow.deviation.tolist()) == ([3.0, 2.0], [6.0, 5.0])
    assert narrow.bin_feature.tolist() == [0, 1, 0]
    torch.testing.assert_close(narrow.bin_low, torch.tensor([0.1, 0.3, 0.4]))
    torch.testing.assert_close(narrow.bin_width, torch.tensor([1.1, 1.3, 1.4]))
    # With no bin left there is one that reaches from 0 to 1 for each feature
    bare = replace(whole, bin_feature=torch.tensor([0, 0, 0, 0])).narrowed([1, 2])
    assert (bare.bin_feature.tolist(), bare.bin_low.tolist(), bare.bin_width.tolist()) == ([0, 1], [0, 0], [1, 1])
    assert bare.mean.tolist() == [2.0, 3.0]


def test_the_default_is_an_lstm_with_aggregates_whose_weights_keep_their_names():
    sizes = NetworkSizes()
    assert (sizes.cell, sizes.aggregates) == ("lstm", True)
    assert set(random_model().state_dict()) == {
        *(f"encoder.{name}" for name in random_model().encoder.state_dict()),
        *("feature_mean", "feature_deviation", "bin_feature", "bin_low", "bin_width", "temperature", "bias"),
        *(f"embeddings.{number}.weight" for number in range(5)),
        *(f"lstm.weights.{number}" for number in range(4)),
        *(f"{layer}.{part}" for layer in ("bins", "head", "logit") for part in ("weight", "bias")),
    }


def test_what_comes_later_changes_no_probability_before_it():
    model = a_scaled_model()
    one, another = random_sessions([30, 30])
    with torch.inference_mode():
        answers = [model(*columns_of([one[:10] + rest], ALL_SCOPES))[0, :10] for rest in ([], one[10:], another)]
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(answers[2], answers[0], rtol=0, atol=1e-6)


def test_calibration_divides_the_logit_and_shifts_it():
    model = a_scaled_model()
    logits = torch.tensor([-200.0, -1.7, 0.0, 3.4, 200.0])
    np.testing.assert_allclose(model.calibrated(logits), sigmoid(as_float64(logits) / 1.7 - 0.4), rtol=1e-6, atol=1e-12)


def test_dropout_is_for_training_only():
    model = random_model()
    columns = columns_of(random_sessions([20]), model.encoder.properties)
    with torch.inference_mode():
        assert torch.equal(model(*columns), model(*columns))
        model.train()
        assert not torch.equal(model(*columns), model(*columns))


@pytest.mark.parametrize("aggregates", [True, False])
@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("lstm", ["lstm.weights.3", "lstm.weights.7"]),
        ("rnn", ["lstm.weights.3", "lstm.weights.7"]),
        ("gru", []),
        ("feed-forward", []),
    ],
)
def test_every_weight_but_the_second_bias_learns(cell, expected, aggregates):
    model = random_model(layers=2, properties=ALL_SCOPES, cell=cell, aggregates=aggregates)
    features, indices = model.encoder.sequence(*columns_of(random_sessions([40] * 8), ALL_SCOPES))
    model.sequence_logits(features, indices).square().sum().backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert idle == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", 0),
        ("layers", 0),
        ("head_size", -1),
        ("embedding_size", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("input_dropout", 1.5),
        ("input_dropout", float("nan")),
        ("cell", "transformer"),
    ],
)
def test_sizes_that_make_no_sense_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        NetworkSizes(**{field: value})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_the_step_on_a_gpu_is_the_step_on_the_cpu():
    model = a_scaled_model(2)
    columns = columns_of(random_sessions([30, 30, 30]), ALL_SCOPES)
    with torch.inference_mode():
        expected = model(*columns)
        model.cuda()
        hidden, carry, memory = model.initial_state(3)
        for position in range(30):
            stamps, codes, numbers = (column[:, position].cuda() for column in columns)
            probability, hidden, carry, memory = model.step(stamps, codes, numbers, hidden, carry, memory)
            torch.testing.assert_close(probability.cpu(), expected[:, position], rtol=0, atol=1e-4)
