"""The conversion of raw rows to canonical events, for every format.

A row without a session, a time or a name means nothing and is rejected. Any other value that cannot be read becomes
null and is counted. Where a rejected row's name says purchase, the label of its session is unknown from then on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from model.events import FIELDS, PURCHASE, EventNames
from model.text_rules import canonical_text
from training.data.sources import values
from training.data.sources.blocks import DAMAGED, LINE, BrokenRows, no_rejections, rejections
from training.data.sources.mapping import ColumnMapping, PropertyColumn
from training.data.sources.time_patterns import in_utc

SOURCE_LINE: Final = "source_line"
# What an adapter may add to raw rows: their order at equal times, where that is not the order of lines.
ORDER: Final = " order"
PROPERTY_PREFIX: Final = "property."
SESSION_DAY_MS: Final = "day_ms"
EVENT_ID: Final = " event id"
OUTSIDE: Final = "time outside the plausible range"
NOT_UTF_8: Final = "not valid UTF-8"
# The character that stands for bytes which are not valid.
_LOST: Final = "\ufffd"
# Rows of a block that show whether times have offsets.
_LOOKED_AT: Final = 100
_MIDNIGHT: Final = r"[T ]00:00(?::00(?:\.0+)?)?$"
NAME_SCHEMA: Final = {"name": pl.String, "read_as": pl.String, "rows": pl.Int64}

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


@dataclass(frozen=True, slots=True)
class Reading:
    """How values are judged beyond their mapping.

    Attributes:
        earliest_ms, latest_ms: plausible calendar times; None: any time.
        placeholders_count: whether ids such as `undefined` are taken for ids.
    """

    earliest_ms: int | None = None
    latest_ms: int | None = None
    placeholders_count: bool = False


@dataclass(frozen=True, slots=True)
class Converted:
    """Rows as canonical events, and the account of all others.

    Attributes:
        events: in the columns of `event_schema`; `day_ms` where the mapping has a date, `EVENT_ID` where it has ids.
        rejected: `line`, `field`, `reason`, `value` of rows that mean nothing.
        nulled: the same of optional values that could not be read and became null.
        lost_labels: session ids whose label is unknown, as a row was rejected whose name says purchase.
        lost_purchases: such rows without a session id.
        rows_dropped: rows of names that the mapping leaves out.
        names: `name`, `read_as`, `rows` of the log's event names.
        placeholders: rows by id that stands for nothing.
        warnings: what else looks wrong, in plain words.
        notes: how the log was read, where it might mean something else.
    """

    events: pl.DataFrame
    rejected: pl.DataFrame
    nulled: pl.DataFrame = field(default_factory=no_rejections)
    lost_labels: pl.Series = field(default_factory=lambda: pl.Series([], dtype=pl.String))
    lost_purchases: int = 0
    rows_dropped: int = 0
    names: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=NAME_SCHEMA))
    placeholders: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class _Rows:
    """Collects the columns of a batch, the problems that reject a row, and those of optional values."""

    def __init__(self, raw: pl.DataFrame, mapping: ColumnMapping, reading: Reading) -> None:
        self.raw = raw
        self.mapping = mapping
        self.reading = reading
        self.rejecting: list[tuple[str, pl.Series, str]] = []
        self.nulling: list[tuple[str, pl.Series, str]] = []
        self.placeholders: dict[str, int] = {}
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def _none(self, dtype: type[pl.DataType]) -> pl.Series:
        return pl.repeat(None, self.raw.height, dtype=dtype, eager=True)

    def _damaged(self, texts: pl.Series) -> list[values.Problem]:
        """Return the problem of texts with bytes that are not valid, in the lines that have some."""
        column = self.raw.get_column(DAMAGED, default=None)
        if column is None:
            return []
        return [(column & texts.str.contains(_LOST, literal=True).fill_null(value=False), NOT_UTF_8)]

    def session_id(self) -> pl.Series:
        mapping = self.mapping
        parts = []
        for column in mapping.session_columns:
            ids, problems = values.identifier(
                self.raw[column], mapping.missing_values, placeholders_count=self.reading.placeholders_count
            )
            problems += [*self._damaged(ids), *values.required(ids)]
            self.rejecting += [(column, mask, reason) for mask, reason in problems]
            for mask, reason in problems:
                if reason == values.PLACEHOLDER and mask.any():
                    for text, rows in ids.filter(mask).value_counts().iter_rows():
                        self.placeholders[text] = self.placeholders.get(text, 0) + rows
            parts.append(ids)
        return parts[0] if len(parts) == 1 else _joined_key(parts)

    def time_ms(self) -> pl.Series:
        mapping = self.mapping
        columns = mapping.time_columns
        column = self.raw[columns[0]] if len(columns) == 1 else _joined_time([self.raw[name] for name in columns])
        times, problems = values.time_ms(column, mapping.time_format, mapping.missing_values)
        times = self._in_utc(mapping.timestamp, column, times)
        self.rejecting += [(mapping.timestamp, mask, reason) for mask, reason in problems]
        if mapping.time_format == "iso" and mapping.time_zone is None and values.mixes_offsets(column):
            self.warnings.append(
                f"column {mapping.timestamp!r}: some times have an offset and others have none, which are read as UTC"
            )
        if mapping.clock == "calendar":
            self._check_range(mapping.timestamp, times)
        return times

    def day_ms(self, column: str) -> pl.Series:
        days, problems = values.time_ms(self.raw[column], "%Y-%m-%d", self.mapping.missing_values)
        days = self._in_utc(column, self.raw[column], days)
        self.rejecting += [(column, mask, reason) for mask, reason in problems]
        self._check_range(column, days)
        return days

    def _in_utc(self, name: str, column: pl.Series, times: pl.Series) -> pl.Series:
        """Return times, those without an offset from the mapping's time zone."""
        mapping = self.mapping
        time_format = "iso" if name == mapping.date else mapping.time_format
        if mapping.time_zone is None:
            if values.are_local(column.head(_LOOKED_AT), time_format).any():
                self.notes.append(
                    f"column {name!r}: times without an offset are read as UTC, in which the service counts hours; "
                    "--time-zone names another zone"
                )
            return times
        local = in_utc(times, mapping.time_zone)
        is_local = values.are_local(column, time_format)
        self.rejecting.append((name, is_local & local.is_null() & times.is_not_null(), values.SKIPPED))
        return local.zip_with(is_local, times)

    def _check_range(self, column: str, times: pl.Series) -> None:
        earliest_ms, latest_ms = self.reading.earliest_ms, self.reading.latest_ms
        if earliest_ms is not None and latest_ms is not None:
            outside = ~times.is_between(earliest_ms, latest_ms)
            self.rejecting.append((column, outside.fill_null(value=False), OUTSIDE))

    def event_name(self, names: EventNames) -> tuple[pl.Series, pl.DataFrame]:
        """Return what the log's own names are read as, and how many rows each has."""
        mapping = self.mapping
        if mapping.event_name is None:
            own = pl.repeat(mapping.constant_event_name, self.raw.height, dtype=pl.String, eager=True)
        else:
            if mapping.constant_event_name is None:
                own = values.text(self.raw[mapping.event_name], mapping.missing_values)
            else:
                own = values.category(self.raw[mapping.event_name], mapping.missing_values)
                own = own.fill_null(mapping.constant_event_name)
            problems = [*self._damaged(own), *values.required(own)]
            self.rejecting += [(mapping.event_name, mask, reason) for mask, reason in problems]
        counts = (
            pl.DataFrame({"name": own})
            .drop_nulls()
            .group_by("name", maintain_order=True)
            .agg(rows=pl.len().cast(pl.Int64))
        )
        counts = counts.with_columns(
            read_as=pl.Series([names.canonical(name) for name in counts["name"]], dtype=pl.String)
        ).select(NAME_SCHEMA.keys())
        return own.replace_strict(counts["name"], counts["read_as"], default=None, return_dtype=pl.String), counts

    def category(self, column: str) -> pl.Series:
        texts = values.category(self.raw[column], self.mapping.missing_values)
        return self._nulled(column, texts, self._damaged(texts))

    def item_id(self, column: str) -> pl.Series:
        # A placeholder is no item, whatever the setting for sessions is; see `model.columns`.
        ids, problems = values.identifier(self.raw[column], self.mapping.missing_values)
        return self._nulled(column, ids, [*problems, *self._damaged(ids)])

    def amount(self, column: str) -> pl.Series:
        return self._nulled(column, *values.amount(self._numbers(column), self.mapping.missing_values))

    def _numbers(self, column: str) -> pl.Series:
        """Return a column of numbers, in text with decimal points."""
        raw = self.raw[column]
        if raw.dtype != pl.String:
            return raw
        if self.mapping.decimal_comma:
            return values.with_decimal_points(raw)
        if values.has_decimal_commas(raw):
            self.warnings.append(f"column {column!r} has decimal commas: --decimal-comma reads such numbers")
        return raw

    def outcome(self, column: str) -> tuple[pl.Series, pl.Series]:
        """Return outcomes, and which rows have one that cannot be read."""
        outcomes, problems = values.boolean(self.raw[column], self.mapping.missing_values)
        unreadable = self._none(pl.Boolean).fill_null(value=False)
        for mask, _ in problems:
            unreadable = unreadable | mask
        return self._nulled(column, outcomes, problems), unreadable

    def field(self, name: str, kind: str, column: str | None) -> pl.Series:
        constant = self.mapping.constants.get(name)
        if column is None and constant is None:
            return self._none(pl.String if kind == "text" else pl.Float64)
        if column is None:
            given = pl.Series(name, [constant])
            value = values.category(given) if kind == "text" else values.amount(given)[0]
            if name == "currency":
                value = values.currency(value)[0]
            return pl.repeat(value.item(), self.raw.height, dtype=value.dtype, eager=True)
        if kind == "amount":
            return self.amount(column)
        if name == "currency":
            return self.currency(column)
        return self.item_id(column) if name == "item_id" else self.category(column)

    def currency(self, column: str) -> pl.Series:
        return self._nulled(column, *values.currency(values.category(self.raw[column], self.mapping.missing_values)))

    def property(self, declared: PropertyColumn) -> pl.Series:
        if declared.kind == "number":
            numbers, problems = values.property_number(self._numbers(declared.column), self.mapping.missing_values)
            return self._nulled(declared.column, numbers, problems)
        return self.category(declared.column)

    def _nulled(self, column: str, read: pl.Series, problems: Iterable[values.Problem]) -> pl.Series:
        for mask, reason in problems:
            if mask.any():
                self.nulling.append((column, mask, reason))
                read = read.to_frame("value").select(pl.when(~mask).then("value")).to_series()
        return read

    def rejected(self) -> tuple[pl.Series, pl.DataFrame]:
        """Return the mask of rejected rows, and their report with each row's first problem."""
        refused = pl.repeat(value=False, n=self.raw.height, dtype=pl.Boolean, eager=True)
        frames = [no_rejections()]
        for column, mask, reason in self.rejecting:
            fresh = mask & ~refused
            if fresh.any():
                frames.append(self._report(fresh, column, reason))
                refused = refused | fresh
        return refused, pl.concat(frames)

    def nulled(self, left: pl.Series) -> pl.DataFrame:
        """Return the report of optional values that became null, in the rows of a mask."""
        frames = [self._report(mask & left, column, reason) for column, mask, reason in self.nulling]
        return pl.concat([no_rejections(), *frames])

    def _report(self, mask: pl.Series, column: str, reason: str) -> pl.DataFrame:
        rows = self.raw.filter(mask)
        shown = rows[column] if column in rows.columns else _joined_time([rows[c] for c in self.mapping.time_columns])
        return rejections(rows[LINE], column, reason, shown)


def convert(raw: pl.DataFrame, mapping: ColumnMapping, reading: Reading | None = None) -> Converted:
    """Return canonical events, and an account of all other rows.

    Args:
        raw: the columns that `mapping` names, as text or as Parquet types them, and `LINE`.
        mapping: which column is which field.
        reading: plausible times, and which ids are none; None: any time.
    """
    names = EventNames(mapping.events)
    rows_dropped = 0
    if mapping.drop and mapping.event_name is not None:
        dropped = values.text(raw[mapping.event_name]).is_in([canonical_text(name) for name in mapping.drop])
        rows_dropped = int(dropped.sum())
        raw = raw.filter(~dropped.fill_null(value=False))
    rows = _Rows(raw, mapping, reading or Reading())
    columns = {"session_id": rows.session_id(), "timestamp_ms": rows.time_ms()}
    columns["event_name"], counted = rows.event_name(names)
    for known, column in zip(FIELDS, mapping.event_fields(), strict=True):
        columns[known.name] = rows.field(known.name, known.kind, column)
    label_lost = pl.repeat(value=False, n=raw.height, dtype=pl.Boolean, eager=True)
    if mapping.outcome is None:
        columns["outcome"] = pl.repeat(None, raw.height, dtype=pl.Boolean, eager=True)
    else:
        columns["outcome"], label_lost = rows.outcome(mapping.outcome)
    columns[SOURCE_LINE] = raw[ORDER] if ORDER in raw.columns else raw[LINE]
    for declared in mapping.properties:
        columns[PROPERTY_PREFIX + declared.name] = rows.property(declared)
    if mapping.event_id is not None:
        columns[EVENT_ID] = rows.item_id(mapping.event_id)
    if mapping.date is not None:
        columns[SESSION_DAY_MS] = rows.day_ms(mapping.date)
    refused, rejected = rows.rejected()
    events = pl.DataFrame(columns).with_columns(pl.col(name).cast(dtype) for name, dtype in EVENT_COLUMNS.items())
    label_lost = label_lost | (refused & (columns["event_name"] == PURCHASE).fill_null(value=False))
    unknown = _valid_ids(rows, columns["session_id"]).filter(label_lost)
    return Converted(
        events=events.filter(~refused),
        rejected=rejected,
        nulled=rows.nulled(~refused),
        lost_labels=unknown.drop_nulls().unique(),
        lost_purchases=unknown.null_count(),
        rows_dropped=rows_dropped,
        names=counted,
        placeholders=rows.placeholders,
        warnings=tuple(rows.warnings),
        notes=tuple(rows.notes),
    )


def labels_of_broken(broken: BrokenRows | None, mapping: ColumnMapping) -> tuple[pl.Series, int]:
    """Return the sessions of lines that could not be split and that say purchase, and how many lines name no session.

    Where a line has too many or too few fields, its session is where the header says, counted from either end.
    """
    if broken is None:
        return pl.Series([], dtype=pl.String), 0
    names = EventNames(mapping.events)
    if mapping.event_name is None:
        says = [names.canonical(mapping.constant_event_name or "") == PURCHASE] * len(broken.fields)
    else:
        says = [any(names.canonical(value) == PURCHASE for value in fields) for fields in broken.fields]
    found = []
    for side in (broken.from_left, broken.from_right):
        rows = _Rows(side.with_columns(pl.lit(0).alias(LINE)), mapping, Reading())
        found.append(_valid_ids(rows, rows.session_id()).filter(pl.Series(says, dtype=pl.Boolean)))
    left, right = found
    return pl.concat(found).drop_nulls().unique(), int((left.is_null() & right.is_null()).sum())


def _valid_ids(rows: _Rows, ids: pl.Series) -> pl.Series:
    """Return session ids, null where a problem of the id itself rejects the row."""
    invalid = ids.is_null()
    for column, mask, _ in rows.rejecting:
        if column in rows.mapping.session_columns:
            invalid = invalid | mask
    return ids.to_frame("value").select(pl.when(~invalid).then("value")).to_series()


def _joined_key(parts: Sequence[pl.Series]) -> pl.Series:
    """Return the columns of a key as one text each row, such that different keys have different texts."""
    escaped = [
        part.str.replace_all("\\", "\\\\", literal=True).str.replace_all(":", "\\:", literal=True) for part in parts
    ]
    frame = pl.DataFrame({str(position): part for position, part in enumerate(escaped)})
    return frame.select(pl.concat_str(pl.all(), separator=":")).to_series()


def _joined_time(parts: Sequence[pl.Series]) -> pl.Series:
    """Return the texts of date and time joined by a blank; a date that has a midnight of its own loses it."""
    *dates, last = [values.text(part) for part in parts]
    frame = pl.DataFrame({str(position): part.str.replace(_MIDNIGHT, "") for position, part in enumerate(dates)})
    return frame.with_columns(last.alias("last")).select(pl.concat_str(pl.all(), separator=" ")).to_series()
