"""The training loss: the log loss of every prefix in a batch, computed without padding where that is quicker.

The network's three parts, `inputs`, `lstm` and `raw_logit`, run on the events in a row rather than on padded sessions.
Only the recurrent part needs a [session, time] layout; it groups sessions of similar length.

Shape legend: B sessions, N events of all of them in a row, T events of the longest, F features, I indices, E input
size, H output size of the cell.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.network import SessionModel
from training.data.dataset import event_indices, lengths_of
from training.data.encoded import Encoded

# Cost of one more group, in events of a step, and the smallest group: measured on a CPU with 32 and 128 units
# (docs/scale-training.md). A GPU computes a step of any width in about the same time.
_STEP_COST: Final = 16
_LEAST_GROUP: Final = 32


@dataclass(frozen=True, slots=True)
class Batch:
    """B sessions, one after another.

    Attributes:
        features, indices: float32 [N, F], int64 [N, I].
        lengths: events of each session, on the CPU, int64 [B].
        outcome: of each event's session, float32 [N].
        soft_targets: the teacher's probability, float32 [N]; None without a teacher.
    """

    features: Tensor
    indices: Tensor
    lengths: Tensor
    outcome: Tensor
    soft_targets: Tensor | None


def batch_of(data: Encoded, chosen: Tensor, device: str = "cpu") -> Batch:
    """Return the chosen sessions as a batch on a device."""
    lengths = lengths_of(data.columns.offsets, chosen)
    events, _ = event_indices(data.columns.offsets, chosen)
    features, indices = data.rows(events)
    outcome = data.columns.outcome[chosen].repeat_interleave(lengths)
    return Batch(
        features.to(device),
        indices.to(device),
        lengths,
        outcome.to(device),
        None if data.soft_targets is None else data.soft_targets[events].to(device),
    )


class Objective(nn.Module):
    """The model and its loss.

    Another loss, such as next-event prediction, is a subclass. Its own heads are trained and checkpointed with the
    model and are not part of the artifact.

    Args:
        model: the network to train.
        teacher_weight: weight of the loss against the soft targets, where there are any; the rest is the loss against
            the outcomes.
        mixed_precision: compute dense layers in bfloat16 on a GPU that supports it. The cell stays in float32:
            autocast would run cuDNN's LSTM in float16, whose small gradients vanish.
    """

    def __init__(self, model: SessionModel, *, teacher_weight: float = 0.0, mixed_precision: bool = False) -> None:
        super().__init__()
        self.model = model
        self.teacher_weight = teacher_weight
        self.mixed_precision = mixed_precision and _has_bfloat16(model.feature_mean.device)

    def forward(self, batch: Batch) -> Tensor:
        """Return the loss, summed over all events of the batch."""
        raw = self.logits(batch)
        outcome_loss = functional.binary_cross_entropy_with_logits(raw, batch.outcome, reduction="sum")
        if not self.teacher_weight or batch.soft_targets is None:
            return outcome_loss
        teacher_loss = functional.binary_cross_entropy_with_logits(raw, batch.soft_targets, reduction="sum")
        return torch.lerp(outcome_loss, teacher_loss, self.teacher_weight)

    def logits(self, batch: Batch) -> Tensor:
        """Return the raw logit after each event, float32 [N]."""
        with self._autocast():
            inputs = self.model.inputs(batch.features, batch.indices)
        output = self.unroll(inputs.float(), batch.lengths)
        with self._autocast():
            raw = self.model.raw_logit(output, inputs)
        return raw.float()

    def unroll(self, inputs: Tensor, lengths: Tensor) -> Tensor:
        """Return the cell's output after each event [N, H] of sessions of these lengths, inputs [N, E]."""
        if not self.model.lstm.output_size:
            return inputs[:, :0]
        outputs: list[Tensor] = []
        begin = 0
        for sessions in groups(lengths.tolist(), _STEP_COST if inputs.device.type == "cpu" else None):
            events = sum(sessions)
            outputs.append(self._unroll_group(inputs[begin : begin + events], sessions))
            begin += events
        return torch.cat(outputs)

    def _unroll_group(self, inputs: Tensor, lengths: list[int]) -> Tensor:
        longest = max(lengths)
        if min(lengths) == longest:
            return self._run_cell(inputs, len(lengths), longest)
        inside = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
        slots = inside.flatten().nonzero().squeeze(1).to(inputs.device)
        padded = inputs.new_zeros(len(lengths) * longest, inputs.size(1)).index_copy(0, slots, inputs)
        return self._run_cell(padded, len(lengths), longest).index_select(0, slots)

    def _run_cell(self, inputs: Tensor, sessions: int, events: int) -> Tensor:
        output: Tensor = self.model.lstm(inputs.reshape(sessions, events, inputs.size(1)))
        return output.flatten(0, 1)

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast("cuda", torch.bfloat16) if self.mixed_precision else nullcontext()


def groups(lengths: list[int], step_cost: int | None) -> list[list[int]]:
    """Cut sessions in a row into groups, so that padding costs less than unrolling more groups.

    Args:
        lengths: events of each session; sorted lengths need the least padding.
        step_cost: fixed cost of a step, in events; None for one group.
    """
    if step_cost is None:
        return [lengths]
    cut = [lengths[begin : begin + _LEAST_GROUP] for begin in range(0, len(lengths), _LEAST_GROUP)]
    merged: list[list[int]] = []
    for group in cut:
        if merged:
            before, longest = max(merged[-1]), max(*merged[-1], *group)
            padding = len(merged[-1]) * (longest - before) + len(group) * (longest - max(group))
            if padding <= step_cost * min(before, max(group)):
                merged[-1] = merged[-1] + group
                continue
        merged.append(group)
    return merged


def _has_bfloat16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
