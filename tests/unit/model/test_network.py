"""The network against its equations, written out in NumPy float64."""

import numpy as np
import pytest
import torch
from support.artifacts import EVENT_NAMES, random_model
from support.event_strategies import ALL_SCOPES, columns_of, random_sessions

from model.encoder import Encoder
from model.network import LSTM, FeatureScaling, NetworkSizes, SessionModel


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def as_float64(tensor):
    return tensor.detach().numpy().astype(np.float64)


def textbook_gates(lstm, layer):
    """W and b of each gate of a layer, to be used as W [h_{t-1}; x_t] + b, cut out of torch's stacked weights."""
    w_ih, w_hh, b_ih, b_hh = (as_float64(weight) for weight in list(lstm.weights)[4 * layer : 4 * layer + 4])
    size = lstm.hidden_size
    gates = {}
    # torch stacks the gates as input, forget, candidate, output.
    for number, gate in enumerate("ifgo"):
        rows = slice(number * size, (number + 1) * size)
        gates[gate] = (np.concatenate([w_hh[rows], w_ih[rows]], axis=1), b_ih[rows] + b_hh[rows])
    return gates


def textbook_step(gates, x, h, c):
    """One cell after Hochreiter & Schmidhuber (1997) with forget gates, as in Olah (2015)."""
    joined = np.concatenate([h, x])
    (w_f, b_f), (w_i, b_i), (w_g, b_g), (w_o, b_o) = (gates[gate] for gate in "figo")
    f = sigmoid(w_f @ joined + b_f)
    i = sigmoid(w_i @ joined + b_i)
    g = np.tanh(w_g @ joined + b_g)
    o = sigmoid(w_o @ joined + b_o)
    c = f * c + i * g
    return o * np.tanh(c), c


def textbook_states(lstm, inputs):
    """For inputs [T, E]: h and c of each layer in turn [T, 2 L H], layer upon layer."""
    layers = [textbook_gates(lstm, layer) for layer in range(lstm.layers)]
    states = [(np.zeros(lstm.hidden_size), np.zeros(lstm.hidden_size))] * lstm.layers
    rows = []
    for x in as_float64(inputs):
        below = x
        for layer, gates in enumerate(layers):
            states[layer] = textbook_step(gates, below, *states[layer])
            below = states[layer][0]
        rows.append(np.concatenate([part for state in states for part in state]))
    return np.array(rows)


def an_lstm(layers, *, input_size=7, hidden_size=5):
    torch.manual_seed(layers)
    lstm = LSTM(input_size, hidden_size, layers)
    with torch.no_grad():
        for weight in lstm.weights:
            # Every entry another, the second bias and the forget gate's too, so that no two gates can be mistaken.
            weight.copy_(torch.randn(weight.shape) * 0.7)
    return lstm


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_step_is_the_textbooks_over_40_chained_events(layers):
    lstm = an_lstm(layers)
    inputs = torch.randn(3, 40, 7) * 2
    hidden = torch.zeros(3, 2 * layers * 5)
    expected = np.stack([textbook_states(lstm, row) for row in inputs])
    for position in range(40):
        output, hidden = lstm.step(inputs[:, position], hidden)
        np.testing.assert_allclose(hidden.detach(), expected[:, position], rtol=1e-5, atol=2e-6)
        np.testing.assert_array_equal(output.detach(), hidden[:, -10:-5].detach())


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_sequence_is_the_textbooks_over_40_events(layers):
    lstm = an_lstm(layers)
    inputs = torch.randn(3, 40, 7) * 2
    expected = np.stack([textbook_states(lstm, row) for row in inputs])
    np.testing.assert_allclose(lstm(inputs).detach(), expected[:, :, -10:-5], rtol=1e-5, atol=2e-6)


def test_a_new_lstm_starts_with_open_forget_gates_and_one_bias_only():
    lstm = LSTM(3, 4, 2)
    for layer in range(2):
        bias, second_bias = list(lstm.weights)[4 * layer + 2 : 4 * layer + 4]
        assert bias[4:8].tolist() == [1.0] * 4
        assert not (bias[:4] == 1.0).any()
        assert not second_bias.any()
        assert (bias.requires_grad, second_bias.requires_grad) == (True, False)


def test_gates_survive_inputs_that_saturate_them():
    lstm = an_lstm(1)
    hidden = torch.zeros(1, 10)
    for sign in (1, -1, 1):
        output, hidden = lstm.step(torch.full((1, 7), sign * 1e30), hidden)
    assert output.isfinite().all()
    assert hidden.isfinite().all()


def a_scaled_model(layers=1, *, calibrated=True):
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
    model = SessionModel(encoder, NetworkSizes(hidden_size=6, layers=layers, head_size=9, embedding_size=3), scaling)
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
    size = model.lstm.hidden_size
    outputs = textbook_states(model.lstm, torch.from_numpy(inputs))[:, -2 * size : -size]
    logits = []
    for output, x in zip(outputs, inputs, strict=True):
        units = np.maximum(linear(model.head, np.concatenate([output, x])), 0)
        logits.append(linear(model.logit, units)[0])
    return sigmoid(np.array(logits) / float(model.temperature) + float(model.bias))


@pytest.mark.parametrize("layers", [1, 2])
def test_the_whole_model_is_its_equations(layers):
    model = a_scaled_model(layers)
    columns = columns_of(random_sessions([40, 40, 40]), ALL_SCOPES)
    features, indices = model.encoder.sequence(*columns)
    with torch.inference_mode():
        actual = model(*columns)
    assert actual.std() > 0.05  # a constant answer would agree with much
    for row in range(3):
        expected = reference_probabilities(model, features[row], indices[row])
        np.testing.assert_allclose(actual[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("hidden_size", "layers"), [(8, 2), (64, 1)])
def test_the_step_is_the_sequence(hidden_size, layers):
    model = random_model(hidden_size=hidden_size, layers=layers, properties=ALL_SCOPES)
    columns = columns_of(random_sessions([30, 30]), ALL_SCOPES)
    with torch.inference_mode():
        expected = model(*columns)
        hidden, carry, memory = model.initial_state(2)
        for position in range(30):
            stamps, codes, numbers = (column[:, position] for column in columns)
            probability, hidden, carry, memory = model.step(stamps, codes, numbers, hidden, carry, memory)
            torch.testing.assert_close(probability, expected[:, position], rtol=0, atol=1e-5)


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


def test_every_weight_but_the_second_bias_learns():
    model = random_model(layers=2, properties=ALL_SCOPES)
    features, indices = model.encoder.sequence(*columns_of(random_sessions([40] * 8), ALL_SCOPES))
    model.sequence_logits(features, indices).square().sum().backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert idle == ["lstm.weights.3", "lstm.weights.7"]


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
