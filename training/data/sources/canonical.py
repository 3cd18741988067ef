"""The canonical event table itself, as Parquet: reading and writing it.

The files' key-value metadata has the meaning of times under `willbuy.clock`; without it they are calendar times. With
`willbuy.equal_rows` = `distinct`, equal rows are distinct events.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, cast, get_args

import polars as pl

from model.events import FIELD_NAMES
from training.data.sources.base import Adapter, EventFile, Source, parquet_property_kinds
from training.data.sources.blocks import LINE
from training.data.sources.conversion import EVENT_COLUMNS, PROPERTY_PREFIX, SOURCE_LINE
from training.data.sources.errors import SourceError
from training.data.sources.files import matching
from training.data.sources.mapping import Clock, ColumnMapping, PropertyColumn
from training.data.sources.tables import PARQUET_ERRORS, column_names, is_parquet

CLOCK_KEY: Final = "willbuy.clock"
EQUAL_ROWS_KEY: Final = "willbuy.equal_rows"
DISTINCT: Final = "distinct"
REQUIRED: Final = ("session_id", "timestamp_ms", "event_name")
_OPTIONAL: Final = (*FIELD_NAMES, "outcome")


def write_events(
    events: pl.DataFrame, path: Path, *, clock: Clock, metadata: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write canonical events to one Parquet file that names its clock.

    Columns that are not given are left out and read back as nulls; `source_line` defaults to the row's number.

    Args:
        events: the events.
        path: the file.
        clock: meaning of the times.
        metadata: further key-value metadata, such as `EQUAL_ROWS_KEY`.

    Raises:
        SourceError: a required column is missing, or a column is unknown.
    """
    for name in REQUIRED:
        if name not in events.columns:
            raise SourceError(f"canonical events need the column {name}; given: {', '.join(events.columns)}")
    for name in events.columns:
        if name not in EVENT_COLUMNS and not name.startswith(PROPERTY_PREFIX):
            raise SourceError(f"{name} is no column of the event table; a property's is {PROPERTY_PREFIX}{name}")
    known = [pl.col(name).cast(dtype) for name, dtype in EVENT_COLUMNS.items() if name in events.columns]
    events.with_columns(known).write_parquet(path, metadata={**metadata, CLOCK_KEY: clock})


def _files(path: Path) -> list[Path]:
    return matching(path, "*.parquet") if path.is_dir() else [path]


def _recognises(path: Path) -> bool:
    files = _files(path)
    return bool(files) and all(is_parquet(file) and set(column_names(file)) >= set(REQUIRED) for file in files)


def parquet_metadata(path: Path) -> dict[str, str]:
    """Return a Parquet file's key-value metadata; raise `SourceError` if it is damaged."""
    try:
        with path.open("rb") as file:
            return pl.read_parquet_metadata(file)
    except PARQUET_ERRORS as exc:
        raise SourceError(f"{path}: not a readable Parquet file: {exc}") from exc


def _clock(path: Path) -> Clock:
    clock = parquet_metadata(path).get(CLOCK_KEY, "calendar")
    if clock not in get_args(Clock):
        raise SourceError(f"{path}: {CLOCK_KEY} is {clock!r}; known: {', '.join(get_args(Clock))}")
    return cast("Clock", clock)


def _with_given_lines(rows: pl.DataFrame) -> pl.DataFrame:
    if SOURCE_LINE not in rows.columns:
        return rows
    return rows.with_columns(pl.coalesce(pl.col(SOURCE_LINE).cast(pl.Int64, strict=False), LINE).alias(LINE))


def _event_file(path: Path, properties: tuple[PropertyColumn, ...], *, equal_rows_are_duplicates: bool) -> EventFile:
    found = column_names(path)
    mapping = ColumnMapping(
        session_id="session_id",
        timestamp="timestamp_ms",
        event_name="event_name",
        time_format="epoch_ms",
        properties=properties,
        also_needed=(SOURCE_LINE,) if SOURCE_LINE in found else (),
        equal_rows_are_duplicates=equal_rows_are_duplicates,
        **{name: name for name in _OPTIONAL if name in found},  # type: ignore[arg-type]  # all of them are texts
    )
    lacking = [declared.column for declared in properties if declared.column not in found]
    return EventFile(path, mapping, refine=_with_given_lines, given=dict.fromkeys(lacking))


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
    # Only some files may have a property.
    columns = dict.fromkeys(name for file in files for name in column_names(file) if name.startswith(PROPERTY_PREFIX))
    declared = tuple(PropertyColumn(name.removeprefix(PROPERTY_PREFIX), name) for name in columns)
    properties = parquet_property_kinds(files, declared)
    are_distinct = all(parquet_metadata(file).get(EQUAL_ROWS_KEY) == DISTINCT for file in files)
    return Source(
        format="canonical",
        clock=clocks.pop(),
        event_files=tuple(_event_file(file, properties, equal_rows_are_duplicates=not are_distinct) for file in files),
    )


ADAPTER: Final = Adapter("willbuy's own event table: one Parquet file or a folder of them", _recognises, _open)
