"""The kinds of recurrent cell: LSTM, GRU, a plain recurrent network, or no memory.

Each is a fold with one set of weights for the step and for the sequence. With x the inputs and h the output:

    plain   h_t = tanh(W [h_{t-1}; x_t] + b)                                  Elman (1990)

    LSTM    f = sigmoid(W_f [h_{t-1}; x_t] + b_f)      forget gate            Hochreiter & Schmidhuber (1997),
            i = sigmoid(W_i [h_{t-1}; x_t] + b_i)      input gate             forget gate of Gers et al. (2000),
            g = tanh   (W_g [h_{t-1}; x_t] + b_g)      candidate              drawn as in Olah (2015)
            o = sigmoid(W_o [h_{t-1}; x_t] + b_o)      output gate
            c_t = f * c_{t-1} + i * g
            h_t = o * tanh(c_t)

    GRU     r = sigmoid(W_r [h_{t-1}; x_t] + b_r)      reset gate             Cho et al. (2014), with the reset gate
            z = sigmoid(W_z [h_{t-1}; x_t] + b_z)      update gate            after the product, as torch and cuDNN
            n = tanh(W_n x_t + b_n + r * (U_n h_{t-1} + d_n))                 compute it
            h_t = (1 - z) * n + z * h_{t-1}

    none    h_t is empty: the head gets only the current inputs

Weights are plain parameters in torch's gate order, not an `nn.LSTM`: its flat copy of the weights prevents
`torch.jit.freeze`.

Shape legend: B sessions, T events, E input size, H hidden size, L layers, S state width.
"""

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

# Torch's number of the LSTM among oneDNN's recurrent cells.
_LSTM_MODE: Final = 2
# For smaller batches oneDNN's overhead exceeds its gain: 28 instead of 17 µs for one session.
_FEWEST_FOR_PACKED: Final = 4


class Cell(nn.Module):
    """Layers of one kind of cell.

    Attributes:
        state_width: S, number of state values of a session.
        output_size: H of the output; 0 without memory.
    """

    def __init__(self, input_size: int, hidden_size: int, layers: int, *, gates: int, states: int) -> None:
        super().__init__()
        self.hidden_size: int = hidden_size
        self.layers: int = layers
        self.output_size: int = hidden_size
        self.state_width: int = states * layers * hidden_size
        self.weights = nn.ParameterList()
        bound = hidden_size**-0.5
        for layer in range(layers):
            width = input_size if layer == 0 else hidden_size
            rows = gates * hidden_size
            for shape in ((rows, width), (rows, hidden_size), (rows,)):
                self.weights.append(nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))
            # Torch's kernels take two bias vectors; the textbook has one. The second stays zero, except in a GRU.
            self.weights.append(nn.Parameter(torch.zeros(rows), requires_grad=False))

    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one event: inputs [B, E] and hidden [B, S] to output [B, H] and the next hidden [B, S].

        The output is the last layer's h. `hidden` has the states of the layers in order; zeros before the first event.
        """
        raise NotImplementedError

    def sequence(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by T events: inputs [B, T, E] and hidden [B, S] to outputs [B, T, H] and the next hidden [B, S]."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the output after each event [B, T, H] of inputs [B, T, E], from the initial state."""
        zeros = torch.zeros([inputs.size(0), self.state_width], dtype=inputs.dtype, device=inputs.device)
        return self.sequence(inputs, zeros)[0]


class LSTM(Cell):
    """Gates and a memory cell: the state is h and c of each layer, S = 2 L H.

    Attributes:
        packed: two weights for each layer in oneDNN's layout; empty before `pack_for_cpu`.
    """

    packed: list[Tensor]
    mode: Final[int]
    fewest_for_packed: Final[int]

    def __init__(self, input_size: int, hidden_size: int, layers: int) -> None:
        super().__init__(input_size, hidden_size, layers, gates=4, states=2)
        self.packed = []
        self.mode = _LSTM_MODE
        self.fewest_for_packed = _FEWEST_FOR_PACKED
        # The forget gate starts open, so that gradients reach far back from the first epoch on.
        with torch.no_grad():
            for layer in range(layers):
                self.weights[4 * layer + 2][hidden_size : 2 * hidden_size] = 1.0

    @torch.jit.export
    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        states = torch.split(hidden, self.hidden_size, 1)
        following: list[Tensor] = []
        weights = [weight for weight in self.weights]  # noqa: C416  # TorchScript unrolls this, list() it cannot
        for layer in range(self.layers):
            w_ih, w_hh, b_ih, b_hh = weights[4 * layer : 4 * layer + 4]
            h, c = states[2 * layer], states[2 * layer + 1]
            if len(self.packed) > 0 and inputs.size(0) >= self.fewest_for_packed:
                # `contiguous`, because the kernel ignores strides.
                _, h, c, _ = torch.mkldnn_rnn_layer(
                    inputs.contiguous().unsqueeze(0), self.packed[2 * layer], self.packed[2 * layer + 1], b_ih, b_hh,
                    h.contiguous().unsqueeze(0), c.contiguous().unsqueeze(0),
                    False, [], self.mode, self.hidden_size, 1, True, False, False, False,
                )  # fmt: skip
                h, c = h[0], c[0]
            else:
                h, c = torch.lstm_cell(inputs, [h, c], w_ih, w_hh, b_ih, b_hh)
            following.append(h)
            following.append(c)
            inputs = h
        return inputs, torch.cat(following, 1)

    @torch.jit.export
    def sequence(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        # The state is [session; layer; h or c; unit], and torch takes [layer; session; unit] of h and of c.
        states = hidden.view(-1, self.layers, 2, self.hidden_size).permute(2, 1, 0, 3).contiguous()
        weights = [weight for weight in self.weights]  # noqa: C416  # as above
        output, h, c = torch.lstm(
            inputs, [states[0], states[1]], weights, True, self.layers, 0.0, self.training, False, True
        )
        return output, torch.stack([h, c]).permute(2, 1, 0, 3).reshape(hidden.size(0), -1)


def pack_for_cpu(cell: nn.Module) -> None:
    """Make an LSTM's `step` use oneDNN's kernel, with the weights converted to oneDNN's layout once.

    A step of 64 sessions with 128 units takes 113 instead of 251 µs: torch's products use MKL, which reaches half of
    the speed on processors of other makers than Intel. Answers are equal up to float32 rounding. Afterwards the weights
    must neither change nor move.

    Args:
        cell: scripted, on the CPU. Unchanged if it is another kind of cell or was scripted by an older release, or if
            torch was built without oneDNN.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(cell, "packed"):  # type: ignore[no-untyped-call]
        return
    weights = list(cell.parameters())
    packed: list[Tensor] = []
    for first in range(0, len(weights), 4):
        w_ih, w_hh = weights[first : first + 2]
        packed += torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(  # noqa: SLF001 - what torch's compiler calls, too
            w_ih.detach(), w_hh.detach(), w_hh.size(1), False, True, False, [1, 1, w_ih.size(1)]
        )
    cell.packed = packed  # type: ignore[assignment]  # torch knows of tensors and modules only


class GRU(Cell):
    """Gates without a separate memory cell: the state is h of each layer, S = L H."""

    def __init__(self, input_size: int, hidden_size: int, layers: int) -> None:
        super().__init__(input_size, hidden_size, layers, gates=3, states=1)
        # The reset gate multiplies d_n, so d_n is not redundant with b_n; the other two thirds only add to b.
        for layer in range(layers):
            self.weights[4 * layer + 3].requires_grad_(True)

    @torch.jit.export
    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        states = torch.split(hidden, self.hidden_size, 1)
        following: list[Tensor] = []
        weights = [weight for weight in self.weights]  # noqa: C416  # as in LSTM
        for layer in range(self.layers):
            w_ih, w_hh, b_ih, b_hh = weights[4 * layer : 4 * layer + 4]
            inputs = torch.gru_cell(inputs, states[layer], w_ih, w_hh, b_ih, b_hh)
            following.append(inputs)
        return inputs, torch.cat(following, 1)

    @torch.jit.export
    def sequence(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        states = hidden.view(-1, self.layers, self.hidden_size).transpose(0, 1).contiguous()
        weights = [weight for weight in self.weights]  # noqa: C416  # as in LSTM
        output, h = torch.gru(inputs, states, weights, True, self.layers, 0.0, self.training, False, True)
        return output, h.transpose(0, 1).reshape(hidden.size(0), -1)


class RNN(Cell):
    """No gates: the state is h of each layer, S = L H."""

    def __init__(self, input_size: int, hidden_size: int, layers: int) -> None:
        super().__init__(input_size, hidden_size, layers, gates=1, states=1)

    @torch.jit.export
    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        states = torch.split(hidden, self.hidden_size, 1)
        following: list[Tensor] = []
        weights = [weight for weight in self.weights]  # noqa: C416  # as in LSTM
        for layer in range(self.layers):
            w_ih, w_hh, b_ih, b_hh = weights[4 * layer : 4 * layer + 4]
            inputs = torch.rnn_tanh_cell(inputs, states[layer], w_ih, w_hh, b_ih, b_hh)
            following.append(inputs)
        return inputs, torch.cat(following, 1)

    @torch.jit.export
    def sequence(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        states = hidden.view(-1, self.layers, self.hidden_size).transpose(0, 1).contiguous()
        weights = [weight for weight in self.weights]  # noqa: C416  # as in LSTM
        output, h = torch.rnn_tanh(inputs, states, weights, True, self.layers, 0.0, self.training, False, True)
        return output, h.transpose(0, 1).reshape(hidden.size(0), -1)


class NoMemory(Cell):
    """No memory: output and state are empty, S = 0, and the network is feed-forward."""

    def __init__(self, input_size: int, hidden_size: int, layers: int) -> None:
        del layers
        super().__init__(input_size, hidden_size, 0, gates=0, states=0)
        self.output_size = 0

    @torch.jit.export
    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return inputs[:, :0], hidden

    @torch.jit.export
    def sequence(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return inputs[..., :0], hidden


CELLS: Final[dict[str, Callable[[int, int, int], Cell]]] = {
    "feed-forward": NoMemory,
    "rnn": RNN,
    "gru": GRU,
    "lstm": LSTM,
}
"""Constructor of each kind of cell, by its name in `willbuy train --cell`: input size, hidden size, layers."""
