"""Segment and RudderStack: tables of their warehouses, and their calls as JSON.

Their columns are in `model.vendors.segment`. Schemas:
https://www.twilio.com/docs/segment/connections/storage/warehouses/schema and
https://www.rudderstack.com/docs/destinations/warehouse-destinations/warehouse-schema/. A folder may hold `tracks`,
`pages` and a table for each event; an event with a table of its own is taken from there, since `tracks` has none of its
properties. Calls have no session, so that visitors are split into sessions at idle times. An event with several
products is one event and has the values of the first product; the property `items` is their number.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl

from model.vendors.segment import NO_EVENTS, PAGES, PRODUCTS, SEGMENT, TABLE, TIMES, corrected_time, product_columns
from training.data.sources.base import Adapter, EventFile, Source
from training.data.sources.errors import SourceError
from training.data.sources.files import plain_name, table_files
from training.data.sources.json_lines import is_json, sample
from training.data.sources.mapping import ColumnMapping
from training.data.sources.nested import expression
from training.data.sources.tables import column_names, is_parquet, parquet_schema
from training.data.sources.vendors import Case, filled, mapping_of

TRACKS: Final = "tracks"
_SIGNS: Final = frozenset(
    {"original_timestamp", "sent_at", "received_at", "event_text", "uuid_ts", "context_library_name"}
)
_CALLS: Final = frozenset({"track", *PAGES, *NO_EVENTS})


def _mapping(case: Case) -> ColumnMapping:
    return mapping_of(TABLE, case, also_needed=(PRODUCTS,))


def _refine(case: Case, taken: frozenset[str]) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Return what fills gaps of a table from its other columns, and leaves out events that other tables have."""

    def refine(rows: pl.DataFrame) -> pl.DataFrame:
        products = [product_columns(text) for text in rows[case(PRODUCTS)]]
        found = [
            pl.Series(case(column), [one[column] for one in products], dtype=pl.String)
            for column in product_columns(None)
        ]
        complete = filled(_corrected(rows.with_columns(found), case), TABLE, case)
        if not taken:
            return complete
        return complete.filter(~pl.col(case("event")).cast(pl.String).is_in(list(taken)).fill_null(value=False))

    return refine


def _corrected(rows: pl.DataFrame, case: Case) -> pl.DataFrame:
    """Return the rows of a table with the times of those that have the device's clock alone."""
    column, *others = map(case, TIMES)
    if not rows[column].null_count() or any(rows[name].dtype != pl.String for name in (column, *others)):
        return rows
    times = [given or corrected_time(*known) for given, *known in rows.select(column, *others).iter_rows()]
    return rows.with_columns(pl.Series(column, times, dtype=pl.String))


def _refined_calls(rows: pl.DataFrame) -> pl.DataFrame:
    return filled(rows, TABLE)


def _table_name(file: Path, root: Path) -> str:
    """Return the table's name: of the file, or of a folder that holds the table in parts."""
    stem = plain_name(file).partition(".")[0]
    parts = [part.lower() for part in file.relative_to(root).parts[:-1]] if root.is_dir() else []
    known = {TRACKS, *PAGES, *NO_EVENTS}
    return next((part for part in reversed(parts) if part in known or not stem.strip("0123456789-_part")), stem)


def _event_file(file: Path, name: str, taken: frozenset[str]) -> EventFile:
    if is_json(file):
        return EventFile(file, _mapping(str), refine=_refined_calls, records=SEGMENT.rows, may_lack=True)
    found = column_names(file)
    # Snowflake writes names in upper case.
    case: Case = str.upper if "ANONYMOUS_ID" in found else str
    mapping = _mapping(case)
    if is_parquet(file):
        found = _readable(parquet_schema(file), found, mapping)
    given: dict[str, str | None] = dict.fromkeys(column for column in mapping.needed_columns() if column not in found)
    if case("event") not in found and case("event_text") not in found:
        given[case("event_text")] = PAGES.get(name, name)
    return EventFile(file, mapping, refine=_refine(case, taken if name == TRACKS else frozenset()), given=given)


def _readable(schema: pl.Schema, found: Sequence[str], mapping: ColumnMapping) -> tuple[str, ...]:
    """Return the columns of a Parquet file that hold single values, and the paths into others that it has."""
    single = [name for name in found if not schema[name].is_nested()]
    return (
        *single,
        *(path for path in mapping.needed_columns() if path not in schema and expression(path, schema) is not None),
    )


def _is_ours(file: Path) -> bool:
    if is_json(file):
        calls = sample(file)[:1]
        return any(isinstance(call.get("batch"), list) or _is_call(call) for call in calls)
    found = {name.lower() for name in column_names(file)}
    return "anonymous_id" in found and not found.isdisjoint(TIMES) and not found.isdisjoint(_SIGNS)


def _is_call(call: dict[str, Any]) -> bool:
    return call.get("type") in _CALLS and not call.keys().isdisjoint({"anonymousId", "userId"})


def _tables(path: Path) -> dict[Path, str]:
    named = {file: _table_name(file, path) for file in table_files(path)}
    events = {file: name for file, name in named.items() if name not in NO_EVENTS}
    return events or named


def _recognises(path: Path) -> bool:
    try:
        return all(map(_is_ours, _tables(path)))
    except SourceError:
        return False


def _open(path: Path) -> Source:
    tables = _tables(path)
    for file in tables:
        if not _is_ours(file):
            raise SourceError(
                f"{file}: neither a table of Segment's or RudderStack's warehouse nor their calls as JSON"
            )
    own = frozenset(tables.values()) - {TRACKS, *PAGES}
    files = tuple(_event_file(file, name, own) for file, name in tables.items())
    return Source(format="segment", clock="calendar", event_files=files)


ADAPTER: Final = Adapter("Segment or RudderStack: tables of the warehouse, or calls as JSON", _recognises, _open)
