"""Pre-training: next-event prediction, before the network sees any outcome.

A purchase is one bit a session, while a session has dozens of events. Predicting each next event makes the cell keep
what distinguishes visitors. Memorising buyers does not help, as no outcome is an input or a target: sessions with and
without a purchase end alike. docs/recipe.md has measurements.

Shape legend: B sessions, N events of all of them in a row, E input size, H output size of the cell, W event names
known, K features predicted.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.network import SessionModel
from training.fit.objective import Batch, Objective

# Features of the next event that are predicted beside its name and the gap before it: those that describe its item.
PREDICTED_FEATURES: Final = ("item_seen_before", "same_item_again", "log_price", "log_item_times_seen")
_GAP: Final = "log_gap"
# Logarithm of the deviation of the next gap, in standard deviations of all gaps; beyond it a loss has no bound.
_LOG_DEVIATION_LIMIT: Final = 3.0
_FEATURE_LIMIT: Final = 8.0  # as in the network's own inputs


class NextEventPrediction(Objective):
    """The loss of predicting each session's next event, or its end, from the cell's output.

    The prediction heads belong to this module: they are trained with the model and are not part of the artifact.

    Args:
        model: its inputs and its cell are trained; its head stays as it is.
        mixed_precision: as in `Objective`.
    """

    def __init__(self, model: SessionModel, *, mixed_precision: bool = False) -> None:
        super().__init__(model, mixed_precision=mixed_precision)
        every = list(model.encoder.feature_names)
        # Only features that the network sees are predicted.
        seen = list(range(len(every))) if model.sizes.aggregates else model.encoder.features_of_the_event()
        predicted = [name for name in (_GAP, *PREDICTED_FEATURES) if every.index(name) in seen]
        self._columns = [every.index(name) for name in predicted]
        self._scaling = [seen.index(column) for column in self._columns]
        self._end = model.encoder.index_sizes[0]
        self.name_head = nn.Linear(model.lstm.output_size, self._end + 1)
        self.gap_head = nn.Linear(model.lstm.output_size, 2)
        self.feature_head = nn.Linear(model.lstm.output_size, len(predicted) - 1)

    def forward(self, batch: Batch) -> Tensor:
        """Return the negative log likelihood of the next events, summed over all events of the batch."""
        with self._autocast():
            inputs = self.model.inputs(batch.features, batch.indices)
        output = self.unroll(inputs.float(), batch.lengths)
        output = functional.dropout(output, self.model.dropout, self.training)
        ends = batch.lengths.cumsum(0).to(output.device) - 1
        following = torch.roll(batch.indices[:, 0], -1).index_fill(0, ends, self._end)
        loss: Tensor = (
            functional.cross_entropy(self.name_head(output), following, reduction="sum") + self._zero_of_all_weights()
        )
        inside = torch.ones(len(output), dtype=torch.bool, device=output.device).index_fill(0, ends, value=False)
        before = inside.nonzero().squeeze(1)
        if not len(before):
            return loss
        output = output[before]
        following_values = batch.features[before + 1][:, self._columns]
        scaled = (following_values - self.model.feature_mean[self._scaling]) / self.model.feature_deviation[
            self._scaling
        ]
        scaled = scaled.clamp(-_FEATURE_LIMIT, _FEATURE_LIMIT)
        expected, log_deviation = self.gap_head(output).unbind(1)
        log_deviation = log_deviation.clamp(-_LOG_DEVIATION_LIMIT, _LOG_DEVIATION_LIMIT)
        off = (scaled[:, 0] - expected) / log_deviation.exp()
        # Normal densities without their constant, of unit deviation for all but the gap.
        loss = loss + (0.5 * off.square() + log_deviation).sum()
        error = self.feature_head(output) - scaled[:, 1:]
        total: Tensor = loss + 0.5 * error.square().sum()
        return total

    def _zero_of_all_weights(self) -> Tensor:
        """Return a zero-valued term that touches every parameter, so that DDP gets a gradient for each.

        The network's own head has no part in this loss. A batch of one-event sessions uses no gap or feature head.
        """
        modules = (self.model.head, self.model.logit, self.gap_head, self.feature_head)
        parts = [parameter.sum() for module in modules for parameter in module.parameters()]
        return torch.stack(parts).sum() * 0.0
