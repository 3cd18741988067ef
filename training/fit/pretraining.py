"""What comes next in a session, as a task of its own: what the network learns before it is told any outcome.

A purchase is one bit a session; its events are dozens. Predicting each event from those before it asks the cell to keep
what tells visitors apart, and cannot be got right by memorising who bought, because no outcome is in it: a session
that bought ends here like one that did not. Measured in docs/recipe.md.

Shape legend: B sessions, N events of all of them in a row, E input size, H output size of the cell, W event names
known, K features foretold.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.network import SessionModel
from training.fit.objective import Batch, Objective

# What of the next event is foretold beside its name and the gap before it; those that say what it is about.
FORETOLD: Final = ("item_seen_before", "same_item_again", "log_price", "log_item_times_seen")
_GAP: Final = "log_gap"
# Logarithm of the deviation of the next gap, in standard deviations of all gaps; beyond it a loss has no bound.
_LOG_DEVIATION_LIMIT: Final = 3.0
_FEATURE_LIMIT: Final = 8.0  # as in the network's own inputs


@dataclass(frozen=True, slots=True)
class PretrainingSettings:
    """How the network learns to foretell the next event before it learns outcomes.

    Attributes:
        epochs: passes over the training sessions; 0 for none.
        learning_rate: highest rate of AdamW.
        weight_decay: AdamW's, decoupled.
    """

    epochs: int = 10
    learning_rate: float = 3e-3
    weight_decay: float = 0.5

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"epochs: expected a whole number from 0 up, not {self.epochs}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected a number above 0, not {self.learning_rate}")
        if not self.weight_decay >= 0:
            raise ValueError(f"weight_decay: expected a number from 0 up, not {self.weight_decay}")


class NextEvent(Objective):
    """The loss of foretelling each session's next event, or its end, from the cell's output.

    The heads are this module's own: trained with the model, and no part of it afterwards.

    Args:
        model: whose inputs and cell are trained; its head is not touched.
        mixed_precision: as in `Objective`.
    """

    def __init__(self, model: SessionModel, *, mixed_precision: bool = False) -> None:
        super().__init__(model, mixed_precision=mixed_precision)
        every = list(model.encoder.feature_names)
        # What the network does not see of an event, it is not asked of the next one either.
        seen = list(range(len(every))) if model.sizes.aggregates else model.encoder.features_of_the_event()
        foretold = [name for name in (_GAP, *FORETOLD) if every.index(name) in seen]
        self._columns = [every.index(name) for name in foretold]
        self._scaling = [seen.index(column) for column in self._columns]
        self._end = model.encoder.index_sizes[0]
        self.name_head = nn.Linear(model.lstm.output_size, self._end + 1)
        self.gap_head = nn.Linear(model.lstm.output_size, 2)
        self.feature_head = nn.Linear(model.lstm.output_size, len(foretold) - 1)

    def forward(self, batch: Batch) -> Tensor:
        """Return the negative log likelihood of what came next, summed over all events of the batch."""
        with self._autocast():
            inputs = self.model.inputs(batch.features, batch.indices)
        output = self.unroll(inputs.float(), batch.lengths)
        output = functional.dropout(output, self.model.dropout, self.training)
        ends = batch.lengths.cumsum(0).to(output.device) - 1
        following = torch.roll(batch.indices[:, 0], -1).index_fill(0, ends, self._end)
        loss: Tensor = functional.cross_entropy(self.name_head(output), following, reduction="sum") + self._nothing()
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

    def _nothing(self) -> Tensor:
        """Return zero, made of weights that a batch may not need: processes that train together wait for each of them.

        The network's head foretells nothing, and where all sessions of a batch have one event nothing follows.
        """
        modules = (self.model.head, self.model.logit, self.gap_head, self.feature_head)
        parts = [parameter.sum() for module in modules for parameter in module.parameters()]
        return torch.stack(parts).sum() * 0.0
