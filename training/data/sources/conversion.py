"""The conversion of raw rows to canonical events, for every format."""

from collections.abc import Sequence
from typing import Final

import polars as pl

from model.events import FIELDS, canonical_event_name
from training.data.sources import values
from training.data.sources.mapping import ColumnMapping, PropertyColumn
from training.data.sources.text import LINE, no_rejections, rejections

SOURCE_LINE: Final = "source_line"
PROPERTY_PREFIX: Final = "property."
SESSION_DAY_MS: Final = "day_ms"

EVENT_COLUMNS: Final = {
    "session_id": pl.String,
    "timestamp_ms": pl.Int64,
    "event_name": pl.String,
    **{field.name: pl.String if field.kind == "text" else pl.Float64 for field in FIELDS},
    "outcome": pl.Boolean,
    SOURCE_LINE: pl.Int64,
}


def event_schema(properties: Sequence[PropertyColumn]) -> pl.Schema:
    """Return the schema of canonical events; a property of unknown kind is text at first."""
    kinds = {
        PROPERTY_PREFIX + declared.name: pl.Float64() if declared.kind == "number" else pl.String()
        for declared in properties
    }
    return pl.Schema({**EVENT_COLUMNS, **kinds})


class _Row:
    """Collects the columns of a batch and the problems of its rows."""

    def __init__(self, raw: pl.DataFrame, mapping: ColumnMapping) -> None:
        self.raw = raw
        self.mapping = mapping
        self.problems: list[tuple[str, pl.Series, str]] = []

    def add(self, column: str, problems: Sequence[values.Problem]) -> None:
        self.problems.extend((column, mask, reason) for mask, reason in problems)

    def absent(self, dtype: type[pl.DataType]) -> pl.Series:
        return pl.repeat(None, self.raw.height, dtype=dtype, eager=True)

    def text(self, column: str | None, *, required: bool = False) -> pl.Series:
        if column is None:
            return self.absent(pl.String)
        texts = values.text(self.raw[column], self.mapping.missing_values)
        if required:
            self.add(column, values.required(texts))
        return texts

    def amount(self, column: str | None) -> pl.Series:
        if column is None:
            return self.absent(pl.Float64)
        amounts, problems = values.amount(self.raw[column], self.mapping.missing_values)
        self.add(column, problems)
        return amounts

    def outcome(self, column: str | None) -> pl.Series:
        if column is None:
            return self.absent(pl.Boolean)
        outcomes, problems = values.boolean(self.raw[column], self.mapping.missing_values)
        self.add(column, problems)
        return outcomes

    def time_ms(self, column: str, time_format: str) -> pl.Series:
        times, problems = values.time_ms(self.raw[column], time_format, self.mapping.missing_values)
        self.add(column, problems)
        return times

    def event_name(self) -> pl.Series:
        mapping = self.mapping
        if mapping.event_name is None:
            name = canonical_event_name(mapping.constant_event_name or "")
            return pl.repeat(name, self.raw.height, dtype=pl.String, eager=True)
        names = self.text(mapping.event_name, required=True)
        canonical = {
            name: canonical_event_name(mapping.events.get(name.strip(), name)) for name in names.unique().drop_nulls()
        }
        return names.replace(canonical)

    def property(self, declared: PropertyColumn) -> pl.Series:
        if declared.kind == "number":
            numbers, problems = values.number(self.raw[declared.column], self.mapping.missing_values)
            self.add(declared.column, problems)
            return numbers
        return self.text(declared.column)

    def rejected(self) -> tuple[pl.Series, pl.DataFrame]:
        """Return the mask of rejected rows, and their report with each row's first problem."""
        refused = pl.repeat(value=False, n=self.raw.height, dtype=pl.Boolean, eager=True)
        frames = [no_rejections()]
        for column, mask, reason in self.problems:
            fresh = mask & ~refused
            if fresh.any():
                rows = self.raw.filter(fresh)
                frames.append(rejections(rows[LINE], column, reason, rows[column]))
                refused = refused | fresh
        return refused, pl.concat(frames)


def convert(raw: pl.DataFrame, mapping: ColumnMapping) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return canonical events, and the rejected rows.

    Args:
        raw: the columns that `mapping` names, as text or as Parquet types them, and `LINE`.
        mapping: which column is which field.

    Returns:
        Events in the columns of `event_schema` (and `day_ms` where the mapping has a date), and `line`, `field`,
        `reason`, `value` of every other row.
    """
    row = _Row(raw, mapping)
    columns = {
        "session_id": row.text(mapping.session_id or mapping.visitor_id, required=True),
        "timestamp_ms": row.time_ms(mapping.timestamp, mapping.time_format),
        "event_name": row.event_name(),
        **{
            field.name: row.text(column) if field.kind == "text" else row.amount(column)
            for field, column in zip(FIELDS, mapping.event_fields(), strict=True)
        },
        "outcome": row.outcome(mapping.outcome),
        SOURCE_LINE: raw[LINE],
    }
    for declared in mapping.properties:
        columns[PROPERTY_PREFIX + declared.name] = row.property(declared)
    if mapping.date is not None:
        columns[SESSION_DAY_MS] = row.time_ms(mapping.date, "%Y-%m-%d")
    refused, rejected = row.rejected()
    events = pl.DataFrame(columns).with_columns(pl.col(name).cast(dtype) for name, dtype in EVENT_COLUMNS.items())
    return events.filter(~refused), rejected
