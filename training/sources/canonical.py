"""The canonical event table itself, as Parquet: reading and writing it.

What times mean is in the files' key-value metadata under `willbuy.clock`; without it they are the calendar's.
"""

from pathlib import Path
from typing import Final, cast, get_args

import polars as pl

from training.sources.base import Adapter, EventFile, Source
from training.sources.blocks import LINE
from training.sources.conversion import EVENT_COLUMNS, PROPERTY_PREFIX, SOURCE_LINE
from training.sources.errors import SourceError
from training.sources.mapped import parquet_property_kinds
from training.sources.mapping import Clock, ColumnMapping, PropertyColumn
from training.sources.tables import column_names, is_parquet

CLOCK_KEY: Final = "willbuy.clock"
REQUIRED: Final = ("session_id", "timestamp_ms", "event_name")
_OPTIONAL: Final = ("item_id", "item_category", "price", "quantity", "outcome")


def write_events(events: pl.DataFrame, path: Path, *, clock: Clock) -> None:
    """Write canonical events to one Parquet file that names its clock.

    Columns that are not given are left out and read back as nulls; `source_line` defaults to the row's number.

    Raises:
        SourceError: a required column is missing, or a column is none of the table's.
    """
    for name in REQUIRED:
        if name not in events.columns:
            raise SourceError(f"canonical events need the column {name}; given: {', '.join(events.columns)}")
    for name in events.columns:
        if name not in EVENT_COLUMNS and not name.startswith(PROPERTY_PREFIX):
            raise SourceError(f"{name} is no column of the event table; a property's is {PROPERTY_PREFIX}{name}")
    known = [pl.col(name).cast(dtype) for name, dtype in EVENT_COLUMNS.items() if name in events.columns]
    events.with_columns(known).write_parquet(path, metadata={CLOCK_KEY: clock})


def _files(path: Path) -> list[Path]:
    return sorted(path.glob("*.parquet")) if path.is_dir() else [path]


def _recognises(path: Path) -> bool:
    files = _files(path)
    return bool(files) and all(is_parquet(file) and set(column_names(file)) >= set(REQUIRED) for file in files)


def _clock(path: Path) -> Clock:
    try:
        with path.open("rb") as file:
            clock = pl.read_parquet_metadata(file).get(CLOCK_KEY, "calendar")
    except (pl.exceptions.PolarsError, OSError) as exc:
        raise SourceError(f"{path}: not a readable Parquet file: {exc}") from exc
    if clock not in get_args(Clock):
        raise SourceError(f"{path}: {CLOCK_KEY} is {clock!r}; known: {', '.join(get_args(Clock))}")
    return cast("Clock", clock)


def _with_given_lines(rows: pl.DataFrame) -> pl.DataFrame:
    if SOURCE_LINE not in rows.columns:
        return rows
    return rows.with_columns(pl.coalesce(pl.col(SOURCE_LINE).cast(pl.Int64, strict=False), LINE).alias(LINE))


def _event_file(path: Path, properties: tuple[PropertyColumn, ...]) -> EventFile:
    found = column_names(path)
    mapping = ColumnMapping(
        session_id="session_id",
        timestamp="timestamp_ms",
        event_name="event_name",
        time_format="epoch_ms",
        properties=properties,
        also_needed=(SOURCE_LINE,) if SOURCE_LINE in found else (),
        **{name: name for name in _OPTIONAL if name in found},  # type: ignore[arg-type]  # all five are texts
    )
    return EventFile(path, mapping, refine=_with_given_lines)


def _open(path: Path) -> Source:
    files = _files(path)
    if not files:
        raise SourceError(f"{path}: no .parquet file in this folder")
    for file in files:
        if not file.is_file():
            raise SourceError(f"{file}: no such file")
        if not is_parquet(file):
            raise SourceError(f"{file}: not a Parquet file")
    clocks = {_clock(file) for file in files}
    if len(clocks) > 1:
        raise SourceError(f"{path}: the files' clocks differ: {', '.join(sorted(clocks))}")
    declared = tuple(
        PropertyColumn(name.removeprefix(PROPERTY_PREFIX), name)
        for name in column_names(files[0])
        if name.startswith(PROPERTY_PREFIX)
    )
    properties = parquet_property_kinds(files, declared)
    return Source(
        format="canonical",
        clock=clocks.pop(),
        event_files=tuple(_event_file(file, properties) for file in files),
    )


ADAPTER: Final = Adapter("willbuy's own event table: one Parquet file or a folder of them", _recognises, _open)
