"""Prepared sessions as tensors: raw columns of all events in a row, and where each session begins.

Shape legend: S sessions, N events of all sessions, T events of the longest session in a batch.
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.columns import CODE_FIELDS, NUMBER_FIELDS, category_code, code_of
from model.properties import PropertySpec
from model.text_rules import MAY_BE_NULL, canonical_text, category_text


@dataclass(frozen=True, slots=True)
class Columns:
    """Raw event columns of S sessions, one session after another.

    Attributes:
        session_id: [S].
        session_start_ms: int64 [S].
        outcome: float32 [S], 1 for a purchase.
        offsets: int64 [S + 1]; session s has the events from `offsets[s]` up to `offsets[s + 1]`.
        timestamp_ms, codes, numbers: int64 [N], int64 [N, 3 + C], float32 [N, 2 + N'], as in `model.columns`.
    """

    session_id: NDArray[np.object_]
    session_start_ms: NDArray[np.int64]
    outcome: Tensor
    offsets: Tensor
    timestamp_ms: Tensor
    codes: Tensor
    numbers: Tensor

    @property
    def lengths(self) -> Tensor:
        """Events of each session, int64 [S]."""
        return self.offsets.diff()

    def prefix_length(self) -> Tensor:
        """Return for each event its position in its session, from 1, int64 [N]."""
        return torch.arange(len(self.timestamp_ms)) - self.offsets[:-1].repeat_interleave(self.lengths) + 1

    def session_index(self) -> Tensor:
        """Return the session of each event, int64 [N]."""
        return torch.arange(len(self.outcome)).repeat_interleave(self.lengths)

    def select(self, sessions: Tensor) -> "Columns":
        """Return the sessions with these indices, in this order."""
        events, offsets = event_indices(self.offsets, sessions)
        return Columns(
            self.session_id[sessions.numpy()],
            self.session_start_ms[sessions.numpy()],
            self.outcome[sessions],
            offsets,
            self.timestamp_ms[events],
            self.codes[events],
            self.numbers[events],
        )


def lengths_of(offsets: Tensor, sessions: Tensor) -> Tensor:
    """Return the events of each of these sessions; the cost does not depend on the number of all sessions."""
    return offsets[sessions + 1] - offsets[sessions]


def event_indices(offsets: Tensor, sessions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the events of the sessions, one session after another, and the offsets in that row."""
    lengths = lengths_of(offsets, sessions)
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    shift = (offsets[sessions] - ends[:-1]).repeat_interleave(lengths)
    return torch.arange(int(ends[-1])) + shift, ends


def padded(values: Tensor, offsets: Tensor, sessions: Tensor) -> Tensor:
    """Return the sessions' values [B, T, ...], padded at the end with zeros."""
    lengths = lengths_of(offsets, sessions)
    position = torch.arange(int(lengths.max()))
    inside = position < lengths.unsqueeze(1)
    index = torch.where(inside, offsets[sessions].unsqueeze(1) + position, 0)
    return values[index].masked_fill(~inside.reshape(*inside.shape, *([1] * (values.dim() - 1))), 0)


def read_columns(shards: Sequence[Path], properties: Sequence[PropertySpec]) -> Columns:
    """Read prepared shards whole.

    Args:
        shards: Parquet files as `training.data.prepare` writes them.
        properties: which `property.*` columns to take, in the order of the artifact's columns.
    """
    return joined([_columns(pl.read_parquet(shard), properties) for shard in shards])


def read_sessions(shards: Sequence[Path], properties: Sequence[PropertySpec], session_ids: Collection[str]) -> Columns:
    """Return the sessions with these ids, in the order of the shards; reads one shard at a time.

    Raises:
        ValueError: none of the shards has any of them.
    """
    wanted = pl.Series(list(session_ids), dtype=pl.String)
    found = []
    for shard in shards:
        columns = read_columns([shard], properties)
        chosen = np.flatnonzero(pl.Series(columns.session_id, dtype=pl.String).is_in(wanted.implode()).to_numpy())
        if len(chosen):
            found.append(columns.select(torch.from_numpy(chosen)))
    if not found:
        raise ValueError("session_ids: no such session in the data")
    return joined(found)


def joined(parts: Sequence[Columns]) -> Columns:
    """Return the sessions of all parts as one, in their order."""
    if len(parts) == 1:
        return parts[0]
    offsets = [torch.zeros(1, dtype=torch.int64)]
    for part in parts:
        offsets.append(part.offsets[1:] + offsets[-1][-1])
    return Columns(
        np.concatenate([part.session_id for part in parts]),
        np.concatenate([part.session_start_ms for part in parts]),
        torch.cat([part.outcome for part in parts]),
        torch.cat(offsets),
        torch.cat([part.timestamp_ms for part in parts]),
        torch.cat([part.codes for part in parts]),
        torch.cat([part.numbers for part in parts]),
    )


def _columns(frame: pl.DataFrame, properties: Sequence[PropertySpec]) -> Columns:
    is_first = (frame["session_id"] != frame["session_id"].shift(1)).fill_null(value=True)
    sessions = frame.filter(is_first)
    offsets = np.append(np.flatnonzero(is_first.to_numpy()), len(frame))
    # In the order of an artifact's columns: fields, then properties.
    codes = [_codes(frame[name], code_of(name)) for name in CODE_FIELDS]
    numbers = [_numbers(frame[name]) for name in NUMBER_FIELDS]
    for spec in properties:
        column = frame[f"property.{spec.name}"]
        if spec.kind == "category":
            codes.append(_codes(_category_texts(column), category_code))
        else:
            numbers.append(_numbers(column))
    return Columns(
        sessions["session_id"].to_numpy(),
        sessions["session_start_ms"].to_numpy(),
        torch.from_numpy(sessions["outcome"].cast(pl.Float32).to_numpy(writable=True)),
        torch.from_numpy(offsets.astype(np.int64)),
        torch.from_numpy(frame["timestamp_ms"].to_numpy(writable=True)),
        torch.from_numpy(np.stack(codes, axis=1)),
        torch.from_numpy(np.stack(numbers, axis=1)),
    )


def _numbers(column: pl.Series) -> NDArray[np.float32]:
    values = column.cast(pl.Float64, strict=False).fill_null(math.nan).to_numpy()
    # A value too large for float32 becomes infinite, as in the service; the encoder bounds it.
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _category_texts(column: pl.Series) -> pl.Series:
    if column.dtype == pl.String and not column.str.contains(MAY_BE_NULL).any():
        return column
    # A name is never a word for nothing.
    rule = canonical_text if column.name == "event_name" else category_text
    values = column.unique()
    return column.replace_strict(values, [rule(value) for value in values], return_dtype=pl.String)


def _codes(column: pl.Series, code: Callable[[str | None], int]) -> NDArray[np.int64]:
    """Return the code of each text, computed once for each distinct text."""
    values = column.unique()
    codes = pl.DataFrame({column.name: values, "code": [code(value) for value in values]})
    joined = column.to_frame().join(codes, on=column.name, how="left", nulls_equal=True, maintain_order="left")
    return joined["code"].cast(pl.Int64).to_numpy()


def words_by_sessions(
    shards: Sequence[Path], column: str, rows: Sequence[pl.Series], *, at_least: int, at_most: int
) -> list[str]:
    """Return the column's words that enough of the given sessions contain, most frequent first.

    Args:
        shards: prepared shards.
        column: name of the column.
        rows: for each shard which rows belong to the training sessions; a vocabulary learned elsewhere would leak.
        at_least: sessions that must contain a word.
        at_most: words to return.
    """
    counts: dict[str, int] = {}
    for shard, inside in zip(shards, rows, strict=True):
        frame = pl.read_parquet(shard, columns=["session_id", column]).filter(inside).drop_nulls(column)
        frame = frame.with_columns(_category_texts(frame[column]).alias(column)).drop_nulls(column)
        for word, count in frame.unique()[column].value_counts().iter_rows():
            counts[word] = counts.get(word, 0) + count
    frequent = sorted((word for word in counts if counts[word] >= at_least and word), key=lambda w: (-counts[w], w))
    return frequent[:at_most]


def short_batches(lengths: Tensor, batch_sessions: int, most_events: int) -> Iterator[Tensor]:
    """Yield indices of sessions from the shortest to the longest, so many at once and no more padded events.

    A longer session is a batch of its own.
    """
    for batch in batches(lengths, batch_sessions, None):
        yield from torch.split(batch, max(1, most_events // int(lengths[batch].max())))


def batches(
    lengths: Tensor, batch_sessions: int, generator: torch.Generator | None, *, bucket_batches: int = 1
) -> Iterator[Tensor]:
    """Yield indices of sessions in batches.

    Args:
        lengths: events of each session, int64 [S].
        batch_sessions: sessions in a batch.
        generator: for a random order; None for one pass from the shortest to the longest.
        bucket_batches: random sessions for so many batches are sorted by length before they are cut into batches.
            More means less padding, but also batches of similar sessions. As length and outcome correlate, each step
            then pulls the first predictions of a session to another base rate.
    """
    if generator is None:
        yield from torch.split(lengths.argsort(stable=True), batch_sessions)
        return
    order = torch.randperm(len(lengths), generator=generator)
    pools: list[Tensor] = []
    for pool in torch.split(order, bucket_batches * batch_sessions):
        pools += torch.split(pool[lengths[pool].argsort(stable=True)], batch_sessions)
    for index in torch.randperm(len(pools), generator=generator).tolist():
        yield pools[index]
