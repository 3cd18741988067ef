"""Distribution of the training sessions' inputs, with which the service detects drift of live inputs.

Each feature of the encoder is cut into bins at the training prefixes' deciles. The manifest keeps the share of prefixes
in each bin: only numbers, no item and no visitor. Calendar features are left out, because a window of one day always
has other weekdays than a training log.

Shape legend: N prefixes, F features, B sessions, T events.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from model.columns import columns_from_events
from model.events import Event
from model.properties import PropertySpec

_DECILES: Final = 10
_LOG_PRICE: Final = "log_price"
_NO_PRICE: Final = 0.005
_CALENDAR: Final = frozenset({"hour_sin", "hour_cos", "weekday_sin", "weekday_cos"})
# Most prefixes from which edges and shares are computed.
_SAMPLE: Final = 200_000
# Values closer than this count as equal: a feature's last digits depend on the batch in which it is computed.
_SAME: Final = 1e-4
# Distance of the outer bins from the smallest and the largest training value; relative for values above 1.
_MARGIN: Final = 1e-3
_DIGITS: Final = 7
# Most events folded at once, padding included; bounds the memory of `count_inputs`.
_CELLS: Final = 16_384


@dataclass(frozen=True, slots=True)
class DataSummary:
    """Shares of training prefixes by feature and bin.

    Attributes:
        sessions: training sessions.
        prefixes: their prefixes, one for each event.
        unseen_name_share: share of events whose name is not in the vocabulary.
        features: names of the features, in the order of `edges` and `shares`.
        edges: upper bounds of each feature's bins but the last, ascending; a value on an edge is in the lower bin. No
            training value lies in the first or the last bin.
        shares: share of prefixes in each bin, one more than edges.
    """

    sessions: int
    prefixes: int
    unseen_name_share: float
    features: tuple[str, ...]
    edges: tuple[tuple[float, ...], ...]
    shares: tuple[tuple[float, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values, for `from_dict`."""
        return {
            "sessions": self.sessions,
            "prefixes": self.prefixes,
            "unseen_name_share": self.unseen_name_share,
            "features": {
                name: {"edges": list(edges), "shares": list(shares)}
                for name, edges, shares in zip(self.features, self.edges, self.shares, strict=True)
            },
        }

    def usual_prices(self) -> tuple[float, float]:
        """Return the lowest decile above zero and the largest price of the training log; 0 and infinity: not known."""
        edges = dict(zip(self.features, self.edges, strict=True)).get(_LOG_PRICE, ())
        # No price counts as zero, and the outer edges are a little outside of all values.
        prices = [math.expm1(edge) for edge in edges if edge > _NO_PRICE]
        return (prices[0], prices[-1]) if prices else (0.0, math.inf)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any] | None) -> "DataSummary | None":
        """Return the summary of a result of `to_dict`; None if there is none or it cannot be used."""
        try:
            if values is None:
                return None
            features: Mapping[str, Any] = values["features"]
            edges = tuple(tuple(map(float, feature["edges"])) for feature in features.values())
            shares = tuple(tuple(map(float, feature["shares"])) for feature in features.values())
            if any(len(low) + 1 != len(of) for low, of in zip(edges, shares, strict=True)):
                return None
            return cls(
                int(values["sessions"]),
                int(values["prefixes"]),
                float(values["unseen_name_share"]),
                tuple(features),
                edges,
                shares,
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None


@dataclass(frozen=True, slots=True)
class InputCounts:
    """Inputs of live sessions.

    Attributes:
        events: events folded.
        unseen_names: events whose name is not in the vocabulary.
        bins: number of events in each bin, for each feature of the summary.
    """

    events: int
    unseen_names: int
    bins: tuple[tuple[int, ...], ...]


def summarise(features: Tensor, name_index: Tensor, names: Sequence[str], *, sessions: int) -> DataSummary:
    """Return the summary of the training sessions' inputs.

    Args:
        features: float32 [N, F] of every prefix of the training sessions; may be larger than memory, because only a
            sample is read.
        name_index: int64 [N], the encoder's index of each event's name; 1 is a name outside the vocabulary.
        names: names of the features.
        sessions: number of training sessions.
    """
    total = len(features)
    rows = _rows(total)
    sample = features[rows].double().t().contiguous()
    kept = [column for column, name in enumerate(names) if name not in _CALENDAR]
    edges = [_edges(sample[column]) for column in kept]
    shares = [
        tuple(round(count / max(1, len(rows)), _DIGITS) for count in _binned(sample[column], bounds))
        for column, bounds in zip(kept, edges, strict=True)
    ]
    return DataSummary(
        sessions=sessions,
        prefixes=total,
        unseen_name_share=round(float((name_index[rows] == 1).double().mean()), _DIGITS) if total else 0.0,
        features=tuple(names[column] for column in kept),
        edges=tuple(edges),
        shares=tuple(shares),
    )


def count_inputs(
    encoder: Any,  # noqa: ANN401 - an `Encoder`, or the script of one
    histories: Sequence[Sequence[Event]],
    *,
    names: Sequence[str],
    properties: Sequence[PropertySpec],
    summary: DataSummary,
) -> InputCounts:
    """Fold sessions through an artifact's encoder and count their inputs in the summary's bins; slow.

    Args:
        encoder: on any device.
        histories: B sessions.
        names: names of the encoder's features.
        properties: the encoder's declared properties.
        summary: summary of the training sessions.
    """
    position_of = {name: position for position, name in enumerate(names)}
    device = encoder.vocabulary.device
    counts = [[0] * len(shares) for shares in summary.shares]
    events = unseen = 0
    for batch in _batches(sorted((list(history) for history in histories if history), key=len)):
        lengths = torch.tensor([len(history) for history in batch])
        columns = [columns_from_events(history, properties) for history in batch]
        padded = [
            torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True) for column in zip(*columns, strict=True)
        ]
        with torch.inference_mode():
            features, indices = encoder.sequence(*(column.to(device) for column in padded))
        inside = torch.arange(features.size(1)) < lengths.unsqueeze(1)
        live, names_live = features.cpu()[inside].double().t().contiguous(), indices.cpu()[inside][:, 0]
        events += len(names_live)
        unseen += int((names_live == 1).sum())
        for row, (name, edges) in enumerate(zip(summary.features, summary.edges, strict=True)):
            position = position_of.get(name)
            if position is not None:
                found = _binned(live[position], edges)
                counts[row] = [before + more for before, more in zip(counts[row], found, strict=True)]
    return InputCounts(events, unseen, tuple(map(tuple, counts)))


def _batches(histories: Sequence[list[Event]]) -> list[list[list[Event]]]:
    """Split sessions, the shortest first, into batches with a bounded number of events including padding."""
    batches: list[list[list[Event]]] = []
    for history in histories:
        if batches and (len(batches[-1]) + 1) * len(history) <= _CELLS:
            batches[-1].append(history)
        else:
            batches.append([history])
    return batches


def _rows(total: int) -> Tensor:
    """Return the indices of all rows, or of a random sample if there are many."""
    if total <= _SAMPLE:
        return torch.arange(total)
    drawn = torch.randint(total, (_SAMPLE,), generator=torch.Generator().manual_seed(0))
    distinct: Tensor = torch.unique(drawn)
    return distinct


def _edges(values: Tensor) -> tuple[float, ...]:
    """Return the edges of a feature [N]: two outer ones, and some between distinct values, so that none is a value."""
    if not len(values):
        return ()
    ordered = values.sort()[0]
    smallest, largest = float(ordered[0]), float(ordered[-1])
    edges = {smallest - _MARGIN * max(1.0, abs(smallest)), largest + _MARGIN * max(1.0, abs(largest))}
    for share in range(1, _DECILES):
        decile = ordered[round(share * (len(ordered) - 1) / _DECILES)]
        # The first value that is distinct from the decile.
        above = int(torch.searchsorted(ordered, decile + _SAME, right=True))
        if above < len(ordered):
            edges.add(float(ordered[above - 1] + ordered[above]) / 2)
    return tuple(sorted(round(edge, _DIGITS) for edge in edges))


def _binned(values: Tensor, edges: Sequence[float]) -> list[int]:
    """Return the number of values [N] in each bin."""
    bounds = torch.tensor(edges, dtype=torch.float64)
    counts: list[int] = torch.bincount(torch.bucketize(values, bounds), minlength=len(edges) + 1).tolist()
    return counts
