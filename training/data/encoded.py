"""Sessions as the network's inputs: encoded once, because the encoder has no weights and its features do not change.

Shape legend: S sessions, N events of all sessions, T events of the longest session in a batch, F features, I indices,
P quantile bins.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from model.encoder import Encoder
from model.network import FeatureScaling
from training.data.dataset import Columns, event_indices, padded, short_batches
from training.data.storage import Memory, Storage

# A feature that deviates less than this is constant.
_CONSTANT: Final = 1e-6
# Most events encoded at once, padding included: bounds the memory for long sessions.
_MOST_PADDED_EVENTS: Final = 65_536
# Events read at once: float64 copies of so many take some 10 MB.
_CHUNK_EVENTS: Final = 16_384
# The quantiles are estimated from so many prefixes.
_QUANTILE_PREFIXES: Final = 100_000
# Above this, a permutation of all events would need more memory than the sample drawn from it.
_MOST_PERMUTED_EVENTS: Final = 10_000_000


@dataclass(slots=True)
class Encoded:
    """Sessions as the network's inputs.

    Attributes:
        features: float32 [N, F].
        indices: int64 [N, I].
        columns: session, outcome and raw columns of each event.
        soft_targets: the teacher's probability for each event, float32 [N]; None without a teacher.
        storage: that holds features, indices and columns.
    """

    features: Tensor
    indices: Tensor
    columns: Columns
    soft_targets: Tensor | None = None
    storage: Storage = field(default_factory=Memory)

    @property
    def size_bytes(self) -> int:
        """Bytes of features and indices."""
        return self.features.nbytes + self.indices.nbytes

    def select(self, sessions: Tensor) -> "Encoded":
        """Return the sessions with these indices, in this order, in memory."""
        events, _ = event_indices(self.columns.offsets, sessions)
        soft_targets = None if self.soft_targets is None else self.soft_targets[events]
        columns = self.columns.select(sessions)
        self.storage.touched(len(events))
        return Encoded(*self.rows(events), columns, soft_targets)

    def rows(self, events: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [N, F] and indices [N, I] of these events, in memory."""
        return _gathered(self.features, events, self.storage), _gathered(self.indices, events, self.storage)

    def sample(self, most_events: int, seed: int) -> "Encoded":
        """Return all sessions, or a random subset with at most `most_events` events."""
        lengths = self.columns.lengths
        if int(lengths.sum()) <= most_events:
            return self
        order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
        chosen = order[lengths[order].cumsum(0) <= most_events]
        # At least one session, whatever its length.
        return self.select((chosen if len(chosen) else order[:1]).sort().values)


def _gathered(values: Tensor, rows: Tensor, storage: Storage) -> Tensor:
    """Return these rows of values [N, ...] that are in the storage, read chunk by chunk."""
    gathered = values.new_empty((len(rows), *values.shape[1:]))
    for into, chunk in zip(torch.split(gathered, _CHUNK_EVENTS), torch.split(rows, _CHUNK_EVENTS), strict=True):
        torch.index_select(values, 0, chunk, out=into)
        storage.touched(len(chunk))
    return gathered


def encode(
    encoder: Encoder,
    columns: Columns,
    *,
    batch_sessions: int = 2048,
    progress: Callable[[int], None] | None = None,
    into: tuple[Tensor, Tensor] | None = None,
) -> Encoded:
    """Fold the encoder over all sessions once.

    Args:
        encoder: with the vocabularies of the training sessions.
        columns: S sessions.
        batch_sessions: most sessions folded at once.
        progress: called with the number of sessions done since the last call.
        into: features [N, F] and indices [N, I] to write into.
    """
    total = len(columns.timestamp_ms)
    features, indices = into or (
        torch.empty((total, len(encoder.feature_names)), dtype=torch.float32),
        torch.empty((total, len(encoder.index_names)), dtype=torch.int64),
    )
    with torch.inference_mode():
        for chosen in short_batches(columns.lengths, batch_sessions, _MOST_PADDED_EVENTS):
            lengths = columns.lengths[chosen]
            inside = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
            chunk_features, chunk_indices = encoder.sequence(
                padded(columns.timestamp_ms, columns.offsets, chosen),
                padded(columns.codes, columns.offsets, chosen),
                padded(columns.numbers, columns.offsets, chosen),
            )
            target = (columns.offsets[chosen].unsqueeze(1) + torch.arange(inside.size(1)))[inside]
            features[target] = chunk_features[inside]
            indices[target] = chunk_indices[inside]
            if progress is not None:
                progress(len(chosen))
    return Encoded(features, indices, columns)


def scaling_of(features: Tensor, *, bins: int = 12, storage: Storage | None = None) -> FeatureScaling:
    """Return mean, deviation and quantile bins of the training features [N, F], read chunk by chunk.

    Args:
        features: of every prefix of the training sessions only.
        bins: most quantile bins of a feature; bins of zero width (half of all carts are empty) are left out.
        storage: that holds the features; None for memory.
    """
    storage = storage or Memory()
    mean, deviation = _mean_and_deviation(features, storage)
    # A constant feature stays zero after centring; scale 1 keeps a later, different value finite.
    deviation = torch.where(deviation > _CONSTANT, deviation, 1.0)
    generator = torch.Generator().manual_seed(0)
    if len(features) <= _MOST_PERMUTED_EVENTS:
        chosen = torch.randperm(len(features), generator=generator)[:_QUANTILE_PREFIXES]
    else:
        chosen = torch.randint(len(features), (_QUANTILE_PREFIXES,), generator=generator)
    quantiles = torch.quantile(_gathered(features, chosen, storage), torch.linspace(0, 1, bins + 1), dim=0).t()
    low, width = quantiles[:, :-1], quantiles.diff()
    wide = width > _CONSTANT
    feature = torch.arange(len(quantiles)).unsqueeze(1).expand(wide.shape)
    if not wide.any():
        return replace(FeatureScaling.identity(features.size(1)), mean=mean.float(), deviation=deviation.float())
    return FeatureScaling(mean.float(), deviation.float(), feature[wide], low[wide], width[wide])


def _mean_and_deviation(features: Tensor, storage: Storage) -> tuple[Tensor, Tensor]:
    """Return mean and deviation [F] in float64, merging chunks as Chan, Golub & LeVeque (1979) do."""
    count, mean = 0, torch.zeros(features.size(1), dtype=torch.float64)
    squares = torch.zeros_like(mean)
    for chunk in torch.split(features, _CHUNK_EVENTS):
        variance, chunk_mean = torch.var_mean(chunk.double(), dim=0, correction=0)
        total = count + len(chunk)
        apart = chunk_mean - mean
        mean = mean + apart * (len(chunk) / total)
        squares = squares + variance * len(chunk) + apart.square() * (count * len(chunk) / total)
        count = total
        storage.touched(len(chunk))
    return mean, (squares / count).sqrt()
