"""Events scattered over shards on disk, so that every session can be put together in memory."""

from pathlib import Path
from typing import Final

import polars as pl

BUFFER_BYTES: Final = 256_000_000
_SHARD: Final = " shard"
# Any fixed number: it keeps a session's rows together, nothing else.
_HASH_SEED: Final = 20_151_112


class Partition:
    """Appends events to `shard_count` shards under `folder`, all rows of one `session_id` to the same.

    Rows wait in memory, at most `buffer_bytes` of them, so that many shards do not mean many tiny files.
    """

    def __init__(self, folder: Path, shard_count: int, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.shard_count = shard_count
        self._folder = folder
        self._buffer_bytes = buffer_bytes
        self._waiting: dict[int, list[pl.DataFrame]] = {}
        self._waiting_bytes = 0
        self._flushes = 0
        folder.mkdir(parents=True)

    def append(self, events: pl.DataFrame) -> None:
        """Add events; they are on disk after the next `flush`."""
        shard = pl.col("session_id").hash(_HASH_SEED) % self.shard_count
        by_shard = events.with_columns(shard.alias(_SHARD)).partition_by(_SHARD, as_dict=True, include_key=False)
        for (number,), rows in by_shard.items():
            self._waiting.setdefault(number, []).append(rows)
        self._waiting_bytes += int(events.estimated_size())
        if self._waiting_bytes >= self._buffer_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        while self._waiting:
            number, parts = self._waiting.popitem()
            file = self._folder / f"{number:06d}-{self._flushes:06d}.parquet"
            pl.concat(parts).write_parquet(file, compression="lz4")
        self._waiting_bytes = 0
        self._flushes += 1

    def read(self, shard: int) -> pl.DataFrame | None:
        """Return a shard's events and remove them from disk; None where it has none."""
        files = sorted(self._folder.glob(f"{shard:06d}-*.parquet"))
        if not files:
            return None
        events = pl.read_parquet(files, glob=False)
        for file in files:
            file.unlink()
        return events

    def remove(self) -> None:
        """Remove the folder, which is empty once every shard was read."""
        self._folder.rmdir()
