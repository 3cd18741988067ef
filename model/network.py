"""The network: encoder, recurrent cell, head and calibration, as a fold over events.

Three methods are the contract. The service runs `step`, which advances B sessions by one event each, and `fold`, which
advances them by several. Training and evaluation run `forward`, which computes the same for whole sequences. They agree
up to float32 rounding.

By default the cell is an LSTM, and the network gets the encoder's running aggregates. `NetworkSizes.cell` and
`.aggregates` replace or remove them, so that the effect of each can be measured: docs/recipe.md.

Shape legend: B sessions, T events, F features, I categorical indices, P quantile bins, E input size, H output size and
S state width of the cell.
"""

from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.cells import CELLS
from model.dropout import dropout
from model.encoder import Encoder
from model.sizes import NetworkSizes

__all__ = ["FeatureScaling", "NetworkSizes", "SessionModel"]


@dataclass(frozen=True, slots=True)
class FeatureScaling:
    """Scaling and bins of features, computed from the training sessions.

    Attributes:
        mean, deviation: float32 [F].
        bin_feature: int64 [P], the feature of each bin.
        bin_low, bin_width: float32 [P], lower bound and width of each bin; widths are above 0.
    """

    mean: Tensor
    deviation: Tensor
    bin_feature: Tensor
    bin_low: Tensor
    bin_width: Tensor

    @classmethod
    def identity(cls, features: int) -> "FeatureScaling":
        """Return the scaling that does not change F features, with one bin from 0 to 1 for each."""
        return cls(
            torch.zeros(features),
            torch.ones(features),
            torch.arange(features),
            torch.zeros(features),
            torch.ones(features),
        )

    def narrowed(self, chosen: list[int]) -> "FeatureScaling":
        """Return the scaling of some of the features, in the order of `chosen`."""
        position = {feature: at for at, feature in enumerate(chosen)}
        kept = [at for at, feature in enumerate(self.bin_feature.tolist()) if feature in position]
        narrow = FeatureScaling.identity(len(chosen))
        narrow = replace(narrow, mean=self.mean[chosen], deviation=self.deviation[chosen])
        if not kept:
            return narrow
        return replace(
            narrow,
            bin_feature=torch.tensor([position[int(self.bin_feature[at])] for at in kept]),
            bin_low=self.bin_low[kept],
            bin_width=self.bin_width[kept],
        )


class SessionModel(nn.Module):
    """From raw event columns and a session's state to the probability that the session ends in a purchase.

    The state is three tensors: `hidden` float32 [B, S], and the encoder's `carry` and `memory`.
    """

    # A constant, so that the script of a network with aggregates does not contain the other branch.
    aggregates: Final[bool]
    seen_features: Tensor
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
        self.aggregates = sizes.aggregates
        if not sizes.aggregates:
            seen = encoder.features_of_the_event()
            features = len(seen)
            scaling = scaling.narrowed(seen)
            self.register_buffer("seen_features", torch.tensor(seen))
        self.register_buffer("feature_mean", scaling.mean)
        self.register_buffer("feature_deviation", scaling.deviation)
        self.register_buffer("bin_feature", scaling.bin_feature)
        self.register_buffer("bin_low", scaling.bin_low)
        self.register_buffer("bin_width", scaling.bin_width)
        widths = [min(sizes.embedding_size, (size + 1) // 2) for size in encoder.index_sizes]
        self.embeddings = nn.ModuleList(map(nn.Embedding, encoder.index_sizes, widths))
        self.bins = nn.Linear(len(scaling.bin_feature), sizes.head_size)
        input_size = features + sum(widths) + sizes.head_size
        # Named after the default cell for every kind, so that the names of weights are the same in all artifacts.
        self.lstm = CELLS[sizes.cell](input_size, sizes.hidden_size, sizes.layers)
        # The head gets the inputs as well as the cell's output, so that sums and shares bypass the gates.
        self.head = nn.Linear(self.lstm.output_size + input_size, sizes.head_size)
        self.logit = nn.Linear(sizes.head_size, 1)
        self.dropout: float = sizes.dropout
        self.input_dropout: float = sizes.input_dropout
        self.hidden_width: int = self.lstm.state_width
        # Platt scaling (Platt 1999) on logits; temperature is 1 / scale. Fitted after training, on separate sessions.
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))

    def inputs(self, features: Tensor, indices: Tensor) -> Tensor:
        """Return the inputs [..., E] of cell and head for features [..., F] and indices [..., I]."""
        if not self.aggregates:
            features = torch.index_select(features, -1, self.seen_features)
        parts = [(features - self.feature_mean).div_(self.feature_deviation).clamp_(-8.0, 8.0)]
        words = indices.unbind(-1)
        for column, embedding in enumerate(self.embeddings):
            parts.append(embedding(words[column]))
        known = dropout(torch.cat(parts, -1), self.input_dropout, self.training)
        return torch.cat([known, self.binned(features)], -1)

    def binned(self, features: Tensor) -> Tensor:
        """Return units [..., head] that encode the features' positions among the training sessions' quantiles.

        Piecewise-linear encoding (Gorishniy et al., 2022, "On Embeddings for Numerical Features in Tabular Deep
        Learning"): the share of each bin that is below the value. It lets the network change its slope at quantiles, as
        decision trees can; its effect is in docs/benchmarks.md.
        """
        # In place, because this tensor is as wide as all other inputs together.
        below = torch.index_select(features, -1, self.bin_feature).sub_(self.bin_low)
        filled = below.div_(self.bin_width).clamp_(0.0, 1.0).sub_(0.5)
        units = functional.relu(self.bins(dropout(filled, self.dropout, self.training)))
        return dropout(units, self.dropout, self.training)

    def raw_logit(self, output: Tensor, inputs: Tensor) -> Tensor:
        """Return the uncalibrated logit [...] of the cell's output [..., H] and its inputs [..., E]."""
        output = dropout(output, self.dropout, self.training)
        units = functional.relu(self.head(torch.cat([output, inputs], -1)))
        logits: Tensor = self.logit(dropout(units, self.dropout, self.training))
        return logits.squeeze(-1)

    def sequence_logits(self, features: Tensor, indices: Tensor) -> Tensor:
        """Return uncalibrated logits [B, T] of encoded sequences [B, T, F], [B, T, I]: input of the training loss."""
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

    @torch.jit.export
    def fold(
        self, timestamp_ms: Tensor, codes: Tensor, numbers: Tensor, hidden: Tensor, carry: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fold T events into each of B sessions: `step` after `step`, with one call of cell and head for all events.

        Returns:
            probabilities float32 [B, T] and the next hidden, carry and memory.
        """
        features, indices, carry, memory = self.encoder.fold(timestamp_ms, codes, numbers, carry, memory)
        inputs = self.inputs(features, indices)
        output, hidden = self.lstm.sequence(inputs, hidden)
        return self.calibrated(self.raw_logit(output, inputs)), hidden, carry, memory

    def forward(self, timestamp_ms: Tensor, codes: Tensor, numbers: Tensor) -> Tensor:
        """Return the probability after each event [B, T] of sequences of raw columns, from the initial state."""
        features, indices = self.encoder.sequence(timestamp_ms, codes, numbers)
        return self.calibrated(self.sequence_logits(features, indices))
