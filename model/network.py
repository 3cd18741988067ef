"""The network: encoder, LSTM, head and calibration, as a fold over events.

Two methods are the contract. `step` advances B sessions by one event each and is what the service runs; `forward` does
the same for whole sequences at once and is what training and evaluation run. They agree to float32 rounding.

The LSTM is that of Hochreiter & Schmidhuber (1997) with forget gates (Gers et al., 2000), gates as drawn in Olah
(2015), with x the features and h the output:

    f = sigmoid(W_f [h_{t-1}; x_t] + b_f)      forget gate
    i = sigmoid(W_i [h_{t-1}; x_t] + b_i)      input gate
    g = tanh   (W_g [h_{t-1}; x_t] + b_g)      candidate
    o = sigmoid(W_o [h_{t-1}; x_t] + b_o)      output gate
    c_t = f * c_{t-1} + i * g
    h_t = o * tanh(c_t)

Shape legend: B sessions, T events, F features, I categorical indices, P quantile bins, E input size, H hidden size,
L layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.encoder import Encoder


@dataclass(frozen=True, slots=True)
class NetworkSizes:
    """Sizes of the network's parts.

    Attributes:
        hidden_size: units of each LSTM layer.
        layers: LSTM layers.
        head_size: units of the head's hidden layer, and of the layer on the quantile bins.
        dropout: share of bins, LSTM outputs and head units dropped while training.
        input_dropout: share of the LSTM's inputs dropped while training.
        embedding_size: upper bound of the width of a categorical column's embedding.
    """

    hidden_size: int = 32
    layers: int = 1
    head_size: int = 64
    dropout: float = 0.3
    input_dropout: float = 0.1
    embedding_size: int = 8

    def __post_init__(self) -> None:
        for name in ("hidden_size", "layers", "head_size", "embedding_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a whole number from 1 up, not {getattr(self, name)}")
        for name in ("dropout", "input_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}: expected a share from 0 up to, not including, 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class FeatureScaling:
    """How features become inputs, learned from the training sessions.

    Attributes:
        mean, deviation: float32 [F].
        bin_feature: int64 [P], the feature of each bin.
        bin_low, bin_width: float32 [P], where each bin begins and how wide it is; widths are above 0.
    """

    mean: Tensor
    deviation: Tensor
    bin_feature: Tensor
    bin_low: Tensor
    bin_width: Tensor

    @classmethod
    def identity(cls, features: int) -> "FeatureScaling":
        """Return the scaling that leaves F features as they are, with one bin from 0 to 1 each."""
        return cls(
            torch.zeros(features),
            torch.ones(features),
            torch.arange(features),
            torch.zeros(features),
            torch.ones(features),
        )


class LSTM(nn.Module):
    """Layers of LSTM cells with one set of weights for the step and for the sequence.

    Weights are this module's own parameters in torch's gate order (i, f, g, o) rather than an `nn.LSTM`, whose flat
    copy of them keeps `torch.jit.freeze` from working.
    """

    def __init__(self, input_size: int, hidden_size: int, layers: int) -> None:
        super().__init__()
        self.hidden_size: int = hidden_size
        self.layers: int = layers
        self.weights = nn.ParameterList()
        bound = hidden_size**-0.5
        for layer in range(layers):
            width = input_size if layer == 0 else hidden_size
            for shape in ((4 * hidden_size, width), (4 * hidden_size, hidden_size), (4 * hidden_size,)):
                self.weights.append(nn.Parameter(torch.empty(shape).uniform_(-bound, bound)))
            # A forget gate that starts open lets gradients reach far back from the first epoch on.
            with torch.no_grad():
                self.weights[-1][hidden_size : 2 * hidden_size] = 1.0
            # torch's kernels want two bias vectors; the textbook has one. The second stays zero.
            self.weights.append(nn.Parameter(torch.zeros(4 * hidden_size), requires_grad=False))

    @torch.jit.export
    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Advance by one event: inputs [B, E], hidden [B, 2 L H] (h and c of each layer in turn) to output and hidden.

        Returns:
            The last layer's h [B, H] and the next hidden [B, 2 L H].
        """
        states = torch.split(hidden, self.hidden_size, 1)
        following: list[Tensor] = []
        weights = [weight for weight in self.weights]  # noqa: C416  # TorchScript unrolls this, list() it cannot
        for layer in range(self.layers):
            w_ih, w_hh, b_ih, b_hh = weights[4 * layer : 4 * layer + 4]
            h, c = torch.lstm_cell(inputs, [states[2 * layer], states[2 * layer + 1]], w_ih, w_hh, b_ih, b_hh)
            following.append(h)
            following.append(c)
            inputs = h
        return inputs, torch.cat(following, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the last layer's h after each event [B, T, H] of inputs [B, T, E], from the initial state."""
        zeros = torch.zeros([self.layers, inputs.size(0), self.hidden_size], dtype=inputs.dtype, device=inputs.device)
        weights = [weight for weight in self.weights]  # noqa: C416  # as above
        return torch.lstm(inputs, [zeros, zeros], weights, True, self.layers, 0.0, self.training, False, True)[0]


class SessionModel(nn.Module):
    """From raw event columns and a session's state to the probability that the session ends in a purchase.

    The state is three tensors: ``hidden`` float32 [B, 2 L H], and the encoder's ``carry`` and ``memory``.
    """

    feature_mean: Tensor
    feature_deviation: Tensor
    bin_feature: Tensor
    bin_low: Tensor
    bin_width: Tensor
    temperature: Tensor
    bias: Tensor

    def __init__(self, encoder: Encoder, sizes: NetworkSizes, scaling: FeatureScaling | None = None) -> None:
        super().__init__()
        features = len(encoder.feature_names)
        scaling = scaling or FeatureScaling.identity(features)
        self.encoder = encoder
        self.sizes = sizes
        self.register_buffer("feature_mean", scaling.mean)
        self.register_buffer("feature_deviation", scaling.deviation)
        self.register_buffer("bin_feature", scaling.bin_feature)
        self.register_buffer("bin_low", scaling.bin_low)
        self.register_buffer("bin_width", scaling.bin_width)
        widths = [min(sizes.embedding_size, (size + 1) // 2) for size in encoder.index_sizes]
        self.embeddings = nn.ModuleList(map(nn.Embedding, encoder.index_sizes, widths))
        self.bins = nn.Linear(len(scaling.bin_feature), sizes.head_size)
        input_size = features + sum(widths) + sizes.head_size
        self.lstm = LSTM(input_size, sizes.hidden_size, sizes.layers)
        # The head sees the inputs beside the LSTM's output: what a sum or a share says need not pass the gates.
        self.head = nn.Linear(sizes.hidden_size + input_size, sizes.head_size)
        self.logit = nn.Linear(sizes.head_size, 1)
        self.dropout: float = sizes.dropout
        self.input_dropout: float = sizes.input_dropout
        self.hidden_width: int = 2 * sizes.layers * sizes.hidden_size
        # Platt scaling (Platt 1999) on logits; temperature is 1 / scale. Fitted after training, on sessions of its own.
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))

    def inputs(self, features: Tensor, indices: Tensor) -> Tensor:
        """Return the inputs [..., E] of LSTM and head for features [..., F] and indices [..., I]."""
        parts = [((features - self.feature_mean) / self.feature_deviation).clamp(-8.0, 8.0)]
        for column, embedding in enumerate(self.embeddings):
            parts.append(embedding(indices[..., column]))
        known = functional.dropout(torch.cat(parts, -1), self.input_dropout, self.training)
        return torch.cat([known, self.binned(features)], -1)

    def binned(self, features: Tensor) -> Tensor:
        """Return units [..., head] on the features' position among the training sessions' quantiles.

        Piecewise-linear encoding (Gorishniy et al., 2022, "On Embeddings for Numerical Features in Tabular Deep
        Learning"): how much of each bin lies below the value. It lets the network bend where the data does, as trees
        do; docs/benchmarks.md has what it brought.
        """
        below = torch.index_select(features, -1, self.bin_feature) - self.bin_low
        filled = (below / self.bin_width).clamp(0.0, 1.0) - 0.5
        units = functional.relu(self.bins(functional.dropout(filled, self.dropout, self.training)))
        return functional.dropout(units, self.dropout, self.training)

    def raw_logit(self, output: Tensor, inputs: Tensor) -> Tensor:
        """Return the uncalibrated logit [...] of the LSTM's output [..., H] and its inputs [..., E]."""
        output = functional.dropout(output, self.dropout, self.training)
        units = functional.relu(self.head(torch.cat([output, inputs], -1)))
        logits: Tensor = self.logit(functional.dropout(units, self.dropout, self.training))
        return logits.squeeze(-1)

    def sequence_logits(self, features: Tensor, indices: Tensor) -> Tensor:
        """Return uncalibrated logits [B, T] for encoded sequences [B, T, F], [B, T, I]: what training descends on."""
        inputs = self.inputs(features, indices)
        return self.raw_logit(self.lstm(inputs), inputs)

    def calibrated(self, logit: Tensor) -> Tensor:
        """Return probabilities for raw logits."""
        return torch.sigmoid(logit / self.temperature + self.bias)

    @torch.jit.export
    def initial_state(self, sessions: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return `(hidden, carry, memory)` of sessions without an event."""
        carry, memory = self.encoder.initial_state(sessions)
        hidden = torch.zeros([sessions, self.hidden_width], dtype=torch.float32, device=carry.device)
        return hidden, carry, memory

    @torch.jit.export
    def step(
        self, timestamp_ms: Tensor, codes: Tensor, numbers: Tensor, hidden: Tensor, carry: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fold one event into each of B sessions; columns as in `model.columns`.

        Returns:
            probability float32 [B] and the next hidden, carry and memory.
        """
        features, indices, carry, memory = self.encoder(timestamp_ms, codes, numbers, carry, memory)
        inputs = self.inputs(features, indices)
        output, hidden = self.lstm.step(inputs, hidden)
        return self.calibrated(self.raw_logit(output, inputs)), hidden, carry, memory

    def forward(self, timestamp_ms: Tensor, codes: Tensor, numbers: Tensor) -> Tensor:
        """Return the probability after each event [B, T] of sequences of raw columns, from the initial state."""
        features, indices = self.encoder.sequence(timestamp_ms, codes, numbers)
        return self.calibrated(self.sequence_logits(features, indices))
