"""Columns of many records by the tables of `model.vendors`, which read one record for the service."""

from collections.abc import Callable
from typing import Any

import polars as pl

from model.events import FIELD_NAMES
from model.vendors.table import Paths, VendorTable
from training.data.sources.mapping import ColumnMapping, PropertyColumn

Case = Callable[[str], str]
"""How columns are spelt: as they are, or in capitals."""


def mapping_of(table: VendorTable, case: Case = str, **more: Any) -> ColumnMapping:  # noqa: ANN401 - any argument of it
    """Return the mapping of rows that `filled` has completed: each value is in the first of its places.

    Args:
        table: the vendor's.
        case: how columns are spelt.
        more: further arguments of the mapping.
    """
    fields = _fields(table)
    first = {name: case(paths[0]) for name, paths in fields.items() if paths}
    also = [*table.names_by, *((column, "", ()) for column in more.pop("also_needed", ()))]
    needed = [path for paths in fields.values() for path in paths[1:]]
    needed += [path for column, _, paths in also for path in (column, *paths)]
    needed += [path for declared in table.properties for path in declared.paths[1:]]
    return ColumnMapping(
        **{**first, **more},
        properties=tuple(
            PropertyColumn(declared.name, case(declared.paths[0]), declared.kind) for declared in table.properties
        ),
        events=table.events,
        time_format=table.time_format,
        missing_values=table.missing_values,
        also_needed=tuple(dict.fromkeys(map(case, needed))),
    )


def filled(rows: pl.DataFrame, table: VendorTable, case: Case = str) -> pl.DataFrame:
    """Return rows whose first places of a value have the value of the other places where they had none."""

    def given(path: str) -> pl.Expr:
        text = pl.col(case(path)).cast(pl.String)
        return pl.when(text.str.strip_chars() != "").then(text)

    def first_of(paths: Paths) -> pl.Expr:
        return pl.coalesce(*map(given, paths))

    filling = {paths[0]: first_of(paths) for paths in _fields(table).values() if len(paths) > 1}
    if table.names_by:
        name = first_of(table.event_name)
        for column, value, paths in reversed(table.names_by):
            name = (
                pl.when(given(column) == value)
                .then(pl.coalesce(*map(given, paths), first_of(table.event_name)))
                .otherwise(name)
            )
        filling[table.event_name[0]] = name
    for declared in table.properties:
        if declared.absent is not None:
            with_item = pl.lit(declared.absent_with_item or declared.absent)
            absent = pl.when(first_of(table.item_id).is_not_null()).then(with_item).otherwise(pl.lit(declared.absent))
            filling[declared.paths[0]] = pl.coalesce(*map(given, declared.paths), absent)
    rows = rows.with_columns(*(_as_text(rows[case(name)]) for name in table.timestamp if len(table.timestamp) > 1))
    return rows.with_columns(expression.alias(case(column)) for column, expression in filling.items())


def _fields(table: VendorTable) -> dict[str, Paths]:
    """Return the places of what `ColumnMapping` has under the same name."""
    of_visitor = {} if table.session_id else {"visitor_id": table.visitor_id}
    of_session = {} if table.session_of_visitor else {"session_id": table.session_id}
    names = ("timestamp", "event_name", "event_id", *FIELD_NAMES)
    return {**of_visitor, **of_session, **{name: getattr(table, name) for name in names}}


def _as_text(times: pl.Series) -> pl.Series:
    """Return times as ISO 8601 in UTC, so that typed times and texts fill each other's gaps."""
    if not isinstance(times.dtype, pl.Datetime):
        return times.cast(pl.String)
    in_utc = times.dt.convert_time_zone("UTC") if times.dtype.time_zone else times
    return in_utc.dt.to_string("%Y-%m-%dT%H:%M:%S%.6f")
