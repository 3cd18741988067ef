"""Files of `prepare`: events scattered over temporary shards, prepared shards, and the report of rejected rows."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import polars as pl

from model.events import FIELD_NAMES
from model.properties import PropertySpec
from training.data.sessions import LARGEST, SessionCounts, Sessions
from training.data.sources.canonical import CLOCK_KEY
from training.data.sources.conversion import PROPERTY_PREFIX
from training.data.sources.mapping import Clock, PropertyKind

BUFFER_BYTES: Final = 256_000_000
MOST_ROWS: Final = 500_000
"""Rows made into sessions at once, which need about 1 kB each; a single session may have more."""
_SHARD: Final = " shard"
# An arbitrary fixed seed: it assigns all rows of a session to one shard.
_HASH_SEED: Final = 20_151_112
LARGEST_SCHEMA: Final = pl.Schema(
    {"session_id": pl.String(), "rows": pl.Int64(), "first_ms": pl.Int64(), "last_ms": pl.Int64()}
)
_COLUMNS: Final = ("session_id", "session_start_ms", "timestamp_ms", "event_name", *FIELD_NAMES)


class Partition:
    """Appends events to `shard_count` shards under `folder`, all rows of one `session_id` to the same.

    Rows are buffered in memory, up to `buffer_bytes`, so that many shards do not mean many tiny files.
    """

    def __init__(
        self, folder: Path, shard_count: int, buffer_bytes: int = BUFFER_BYTES, most_rows: int = MOST_ROWS
    ) -> None:
        self.shard_count = shard_count
        self._folder = folder
        self._buffer_bytes = buffer_bytes
        self._most_rows = most_rows
        self._rows: Counter[int] = Counter()
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
            self._rows[number] += rows.height
        self._waiting_bytes += int(events.estimated_size())
        if self._waiting_bytes >= self._buffer_bytes:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows."""
        while self._waiting:
            number, parts = self._waiting.popitem()
            file = self._folder / f"{number:06d}-{self._flushes:06d}.parquet"
            pl.concat(parts).write_parquet(file, compression="lz4")
        self._waiting_bytes = 0
        self._flushes += 1

    def read(self, shard: int) -> Iterator[pl.DataFrame]:
        """Yield a shard's events, whole sessions in parts of about `most_rows` rows, then remove them from disk."""
        files = sorted(self._folder.glob(f"{shard:06d}-*.parquet"))
        # The size of a compressed log says little about its rows, so a shard may turn out too large for memory.
        parts = math.ceil(self._rows[shard] / self._most_rows)
        part_of = pl.col("session_id").hash(_HASH_SEED) // self.shard_count % parts
        for part in range(parts):
            log = pl.scan_parquet(files, glob=False)
            events = (log.filter(part_of == part) if parts > 1 else log).collect()
            if events.height:
                yield events
        for file in files:
            file.unlink()

    def remove(self) -> None:
        """Remove the folder, which is empty after every shard was read."""
        self._folder.rmdir()


class RejectedRows:
    """Writes rejected rows to a CSV as they come (`file, line, field, reason, value`) and counts them by reason."""

    def __init__(self, path: Path, file_names: list[str]) -> None:
        self.by_reason: Counter[str] = Counter()
        self._file_names = file_names
        self._out = path.open("wb")
        self._out.write(b"file,line,field,reason,value\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.close()

    def add(self, file_index: int, rows: pl.DataFrame) -> None:
        """Add malformed rows of one file: `line`, `field`, `reason`, `value`."""
        if rows.height:
            self._write(rows.with_columns(file=pl.lit(self._file_names[file_index])).sort("line"))

    def add_contradictory(self, rows: pl.DataFrame) -> None:
        """Add rows of sessions that contradict themselves: `source_file`, `session_id`, `reason`, `line`."""
        if rows.height:
            file = pl.col("source_file").replace_strict(dict(enumerate(self._file_names)), return_dtype=pl.String)
            self._write(rows.with_columns(file=file, field=pl.lit("outcome"), value="session_id"))

    def _write(self, rows: pl.DataFrame) -> None:
        self.by_reason.update(dict(rows["reason"].value_counts().iter_rows()))
        rows.select("file", "line", "field", "reason", "value").write_csv(self._out, include_header=False)


class ShardWriter:
    """Writes sessions to `events-0000.parquet` and so on, and adds up their counts.

    Attributes:
        names: the files written.
        counts: of rows and sessions.
        first_time_ms, last_time_ms: of the events written; None before the first.
        largest: `session_id`, `rows`, `first_ms`, `last_ms` of the sessions with the most rows.
        longer_than_a_day: sessions that span more than a day.
        sessions_seen: all sessions, kept or not.
        equal_rows, backward: as in `Sessions`.
    """

    def __init__(self, folder: Path, clock: Clock, kinds: dict[str, PropertyKind]) -> None:
        self.names: list[str] = []
        self.counts = SessionCounts()
        self.first_time_ms: int | None = None
        self.last_time_ms: int | None = None
        self.largest = pl.DataFrame(schema=LARGEST_SCHEMA)
        self.longer_than_a_day = self.sessions_seen = self.equal_rows = 0
        self.backward = (0, 0)
        self._folder = folder
        self._clock = clock
        self._kinds = kinds
        self._constant = dict.fromkeys(kinds, True)

    def write(self, sessions: Sessions) -> None:
        """Write one shard, unless no session is in it."""
        self.counts = SessionCounts(
            **{
                count.name: getattr(self.counts, count.name) + getattr(sessions.counts, count.name)
                for count in fields(SessionCounts)
            }
        )
        largest = pl.concat([self.largest, sessions.largest.cast(LARGEST_SCHEMA)])
        self.largest = largest.sort("rows", "session_id", descending=[True, False]).head(LARGEST)
        self.longer_than_a_day += sessions.longer_than_a_day
        self.sessions_seen += sessions.seen
        self.equal_rows += sessions.equal_rows
        self.backward = (self.backward[0] + sessions.backward[0], self.backward[1] + sessions.backward[1])
        if not sessions.events.height:
            return
        typed = [
            pl.col(PROPERTY_PREFIX + name).cast(pl.Float64 if kind == "number" else pl.String)
            for name, kind in self._kinds.items()
        ]
        events = sessions.events.select(*_COLUMNS, *typed, "outcome")
        name = f"events-{len(self.names):04d}.parquet"
        events.write_parquet(self._folder / name, metadata={CLOCK_KEY: self._clock})
        self.names.append(name)
        self._note_times(events)
        self._note_constants(events)

    def properties(self) -> tuple[PropertySpec, ...]:
        """Return the properties, each with the kind and scope that its values have."""
        return tuple(
            PropertySpec(name, kind, "session" if self._constant[name] else "event")
            for name, kind in self._kinds.items()
        )

    def _note_times(self, events: pl.DataFrame) -> None:
        first, last = events.select(first=pl.col("timestamp_ms").min(), last=pl.col("timestamp_ms").max()).row(0)
        self.first_time_ms = first if self.first_time_ms is None else min(first, self.first_time_ms)
        self.last_time_ms = last if self.last_time_ms is None else max(last, self.last_time_ms)

    def _note_constants(self, events: pl.DataFrame) -> None:
        names = [PROPERTY_PREFIX + name for name, constant in self._constant.items() if constant]
        if names:
            distinct = events.group_by("session_id").agg(pl.col(names).n_unique()).select(names).max().row(0)
            for name, most in zip(names, distinct, strict=True):
                self._constant[name.removeprefix(PROPERTY_PREFIX)] = most == 1
