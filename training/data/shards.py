"""Writing prepared sessions: shards, and the report of rejected rows."""

from collections import Counter
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import polars as pl

from model.columns import PropertySpec
from model.events import FIELD_NAMES
from training.data.sessions import SessionCounts, Sessions
from training.data.sources.canonical import CLOCK_KEY
from training.data.sources.conversion import PROPERTY_PREFIX
from training.data.sources.mapping import Clock, PropertyKind

_COLUMNS: Final = ("session_id", "session_start_ms", "timestamp_ms", "event_name", *FIELD_NAMES)


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
    """Writes sessions to `events-0000.parquet` and so on, and sums up what it wrote.

    Attributes:
        names: the files written.
        counts: what became of rows and sessions.
        first_time_ms, last_time_ms: of the events written; None before the first.
    """

    def __init__(self, folder: Path, clock: Clock, kinds: dict[str, PropertyKind]) -> None:
        self.names: list[str] = []
        self.counts = SessionCounts()
        self.first_time_ms: int | None = None
        self.last_time_ms: int | None = None
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
        """Return the properties, each with what its values showed it to be."""
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
