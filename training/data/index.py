"""An index of all sessions in prepared shards, with the part of the split that each belongs to.

It takes about 100 bytes a session, so ten million sessions fit into memory where their events would not.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.config import PARTS
from training.data.prepared import PreparedDataset
from training.data.sessions import split

_COLUMNS: Final = ("session_id", "session_start_ms", "outcome")


@dataclass(frozen=True, slots=True)
class SessionIndex:
    """S sessions in the order in which the shards hold them.

    Attributes:
        session_id: text [S].
        session_start_ms: int64 [S].
        outcome: float32 [S], 1 for a purchase.
        lengths: int64 [S], events of each.
        part: int8 [S], position in `training.data.sessions.PARTS`; -1: in none.
        shard_ends: sessions up to the end of each shard.
    """

    session_id: pl.Series
    session_start_ms: NDArray[np.int64]
    outcome: NDArray[np.float32]
    lengths: NDArray[np.int64]
    part: NDArray[np.int8]
    shard_ends: list[int]

    def inside(self, part: str) -> NDArray[np.bool_]:
        """Return which sessions belong to a part."""
        belongs: NDArray[np.bool_] = self.part == PARTS.index(part)
        return belongs

    def ids(self, part: str) -> pl.Series:
        """Return the ids of a part's sessions."""
        return self.session_id.filter(pl.Series(self.inside(part)))

    def rows(self, part: str) -> list[pl.Series]:
        """Return for each shard which of its rows belong to a part: quicker than a search by id."""
        inside = self.inside(part)
        begins = [0, *self.shard_ends]
        return [
            pl.Series(inside[begin:end].repeat(self.lengths[begin:end])) for begin, end in itertools.pairwise(begins)
        ]

    def sessions(self, part: str) -> int:
        """Return how many sessions a part has."""
        return int(self.inside(part).sum())

    def buyers(self, part: str) -> int:
        """Return how many of a part's sessions end in a purchase."""
        return int(self.outcome[self.inside(part)].sum())

    def shard(self, number: int) -> tuple[int, NDArray[np.int8]]:
        """Return the number of sessions in earlier shards, and the part of each session in this shard."""
        first = self.shard_ends[number - 1] if number else 0
        return first, self.part[first : self.shard_ends[number]]


def index_sessions(dataset: PreparedDataset, fractions: Sequence[float], seed: int) -> SessionIndex:
    """Read the sessions of all shards, one shard at a time, and split them.

    Args:
        dataset: prepared sessions.
        fractions: shares of the parts, see `training.data.sessions.split`.
        seed: of a split by session.
    """
    frames, shard_ends = [], []
    total = 0
    for shard in dataset.shards:
        rows = pl.read_parquet(shard, columns=list(_COLUMNS)).with_row_index("row")
        firsts = rows.filter((pl.col("session_id") != pl.col("session_id").shift(1)).fill_null(value=True))
        ends = firsts["row"].shift(-1, fill_value=rows.height)
        frames.append(firsts.select(*_COLUMNS, lengths=(ends - firsts["row"]).cast(pl.Int64)))
        total += firsts.height
        shard_ends.append(total)
    table = pl.concat(frames)
    parts = split(table.select("session_id", "session_start_ms"), dataset.clock, fractions, seed)["part"]
    return SessionIndex(
        session_id=table["session_id"],
        session_start_ms=table["session_start_ms"].to_numpy(),
        outcome=table["outcome"].cast(pl.Float32).to_numpy(writable=True),
        lengths=table["lengths"].to_numpy(),
        part=parts.replace_strict(PARTS, range(len(PARTS)), return_dtype=pl.Int8).to_numpy(writable=True),
        shard_ends=shard_ends,
    )
