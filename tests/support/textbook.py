"""The recurrent cells' textbook equations in NumPy float64: the reference for torch's kernels."""

import numpy as np

from model.cells import GRU, LSTM, NoMemory


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def as_float64(tensor):
    return tensor.detach().numpy().astype(np.float64)


def _weights(cell, layer):
    """Return the layer's two weights and two biases, each split by gate: [gates, H, width] and [gates, H]."""
    stacked = [as_float64(weight) for weight in list(cell.weights)[4 * layer : 4 * layer + 4]]
    return [weight.reshape(-1, cell.hidden_size, *weight.shape[1:]) for weight in stacked]


def lstm_step(cell, layer, x, states):
    """One cell after Hochreiter & Schmidhuber (1997) with forget gates, as in Olah (2015)."""
    h, c = states
    # torch stacks the gates as input, forget, candidate, output.
    i, f, g, o = (u @ x + w @ h + b + d for u, w, b, d in zip(*_weights(cell, layer), strict=True))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return [sigmoid(o) * np.tanh(c), c]


def gru_step(cell, layer, x, states):
    """One cell after Cho et al. (2014), the reset gate after the product."""
    (h,) = states
    (u_r, u_z, u_n), (w_r, w_z, w_n), (b_r, b_z, b_n), (d_r, d_z, d_n) = _weights(cell, layer)
    r = sigmoid(u_r @ x + w_r @ h + b_r + d_r)
    z = sigmoid(u_z @ x + w_z @ h + b_z + d_z)
    n = np.tanh(u_n @ x + b_n + r * (w_n @ h + d_n))
    return [(1 - z) * n + z * h]


def rnn_step(cell, layer, x, states):
    """One cell after Elman (1990)."""
    (h,) = states
    (u,), (w,), (b,), (d,) = _weights(cell, layer)
    return [np.tanh(u @ x + w @ h + b + d)]


def textbook_states(cell, inputs):
    """Return, for inputs [T, E], the states of all layers after each event [T, S], layer by layer."""
    if isinstance(cell, NoMemory):
        return np.zeros((len(inputs), 0))
    step = lstm_step if isinstance(cell, LSTM) else gru_step if isinstance(cell, GRU) else rnn_step
    parts = cell.state_width // (cell.layers * cell.hidden_size)
    states = [[np.zeros(cell.hidden_size)] * parts for _ in range(cell.layers)]
    rows = []
    for x in as_float64(inputs):
        below = x
        for layer in range(cell.layers):
            states[layer] = step(cell, layer, below, states[layer])
            below = states[layer][0]
        rows.append(np.concatenate([part for layer in states for part in layer]))
    return np.array(rows)


def textbook_outputs(cell, inputs):
    """Return, for inputs [T, E], the last layer's h after each event [T, H]."""
    states = textbook_states(cell, inputs)
    parts = states.shape[1] // max(1, cell.layers * cell.hidden_size)
    start = states.shape[1] - parts * cell.hidden_size
    return states[:, start : start + cell.output_size]
