"""The recurrent cells against their equations, written out in NumPy float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.textbook import textbook_outputs, textbook_states

from model.cells import CELLS, GRU, LSTM, RNN, NoMemory, pack_for_cpu

INPUTS, HIDDEN = 7, 5
RECURRENT = [name for name in CELLS if name != "feed-forward"]


def a_cell(kind, layers=1):
    torch.manual_seed(layers)
    cell = CELLS[kind](INPUTS, HIDDEN, layers)
    with torch.no_grad():
        for weight in cell.weights:
            # Every entry another, the second bias and the forget gate's too, so that no two gates can be mistaken.
            weight.copy_(torch.randn(weight.shape) * 0.7)
    return cell


def stepped(cell, inputs):
    """Output and hidden after each event of inputs [B, T, E], one step an event."""
    hidden = torch.zeros(len(inputs), cell.state_width)
    outputs, states = [], []
    for position in range(inputs.size(1)):
        output, hidden = cell.step(inputs[:, position], hidden)
        outputs.append(output)
        states.append(hidden)
    return torch.stack(outputs, 1).detach(), torch.stack(states, 1).detach()


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", CELLS)
def test_the_step_is_the_textbooks_over_40_chained_events(kind, layers):
    cell = a_cell(kind, layers)
    inputs = torch.randn(3, 40, INPUTS) * 2
    outputs, states = stepped(cell, inputs)
    np.testing.assert_allclose(states, [textbook_states(cell, row) for row in inputs], rtol=1e-5, atol=3e-6)
    np.testing.assert_allclose(outputs, [textbook_outputs(cell, row) for row in inputs], rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("hidden", [16, 64])
@pytest.mark.parametrize("kind", RECURRENT)
def test_initial_weights_are_even_up_to_one_by_the_root_of_the_width(kind, hidden):
    torch.manual_seed(0)
    for weight in CELLS[kind](64, hidden, 2).weights:
        if weight.dim() == 2:
            assert weight.abs().max() <= hidden**-0.5
            assert weight.std().item() == pytest.approx(hidden**-0.5 / 3**0.5, rel=0.2)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_packed_lstm_steps_as_before_however_many_sessions_there_are(layers):
    cell = a_cell("lstm", layers)
    packed = torch.jit.script(a_cell("lstm", layers))
    pack_for_cpu(packed)
    assert len(packed.packed) == 2 * layers
    for sessions in (1, 3, 4, 5, 33, 256):
        inputs, hidden = torch.randn(sessions, INPUTS) * 2, torch.randn(sessions, cell.state_width)
        with torch.inference_mode():
            expected = cell.step(inputs, hidden)
            torch.testing.assert_close(packed.step(inputs, hidden), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(set(CELLS) - {"lstm"}))
def test_other_cells_and_those_of_older_releases_are_left_as_they_are(kind):
    packed = torch.jit.script(a_cell(kind))
    pack_for_cpu(packed)
    assert not hasattr(packed, "packed")


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", CELLS)
def test_the_sequence_is_the_textbooks_over_40_events(kind, layers):
    cell = a_cell(kind, layers)
    inputs = torch.randn(3, 40, INPUTS) * 2
    expected = [textbook_outputs(cell, row) for row in inputs]
    np.testing.assert_allclose(cell(inputs).detach(), expected, rtol=1e-5, atol=3e-6)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(list(CELLS)),
    layers=st.integers(1, 3),
    sessions=st.integers(1, 9),
    events=st.integers(1, 60),
    scale=st.floats(0.0, 20.0),
    seed=st.integers(0, 2**31),
)
def test_stepping_is_the_sequence_whatever_the_inputs(kind, layers, sessions, events, scale, seed):
    cell = a_cell(kind, layers)
    torch.manual_seed(seed)
    inputs = torch.randn(sessions, events, INPUTS) * scale
    outputs, _ = stepped(cell, inputs)
    torch.testing.assert_close(outputs, cell(inputs).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "made", "state_width", "output_size"),
    [("feed-forward", NoMemory, 0, 0), ("rnn", RNN, 10, 5), ("gru", GRU, 10, 5), ("lstm", LSTM, 20, 5)],
)
def test_each_cell_keeps_the_state_that_it_says(kind, made, state_width, output_size):
    cell = a_cell(kind, layers=2)
    outputs, states = stepped(cell, torch.randn(4, 3, INPUTS))
    assert isinstance(cell, made)
    assert (cell.state_width, cell.output_size) == (state_width, output_size)
    assert (states.shape, outputs.shape) == ((4, 3, state_width), (4, 3, output_size))


@pytest.mark.parametrize("kind", RECURRENT)
def test_what_came_before_is_remembered(kind):
    cell = a_cell(kind)
    one, another = torch.randn(2, 1, 6, INPUTS)
    another[:, 1:] = one[:, 1:]
    assert not torch.allclose(cell(one)[:, -1], cell(another)[:, -1], atol=1e-4)


def test_a_new_lstm_starts_with_open_forget_gates_and_one_bias_only():
    lstm = LSTM(3, 4, 2)
    for layer in range(2):
        bias, second_bias = list(lstm.weights)[4 * layer + 2 : 4 * layer + 4]
        assert bias[4:8].tolist() == [1.0] * 4
        assert not (bias[:4] == 1.0).any()
        assert not second_bias.any()
        assert (bias.requires_grad, second_bias.requires_grad) == (True, False)


def test_the_second_bias_learns_in_a_gru_alone():
    learns = {kind: [weight.requires_grad for weight in CELLS[kind](3, 4, 2).weights] for kind in RECURRENT}
    textbook = [True, True, True, False] * 2
    assert learns == {"rnn": textbook, "gru": [True] * 8, "lstm": textbook}


@pytest.mark.parametrize("kind", CELLS)
def test_inputs_that_saturate_everything_leave_finite_numbers(kind):
    cell = a_cell(kind)
    hidden = torch.zeros(1, cell.state_width)
    for sign in (1, -1, 1):
        output, hidden = cell.step(torch.full((1, INPUTS), sign * 1e30), hidden)
        assert output.isfinite().all()
        assert hidden.isfinite().all()
