"""Sources of logged events: files, their column mappings, and batches of canonical events.

The canonical event table is described in docs/event-table.md. A source yields it in batches of bounded size, so that a
log may be larger than memory, together with every rejected row.
"""

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import polars as pl

from model.text_rules import stripped
from training.data.sources.blocks import LINE, Block
from training.data.sources.conversion import Converted, Reading, convert, event_schema, labels_of_broken
from training.data.sources.errors import SourceError
from training.data.sources.files import every_table, matching, partition_values, table_files
from training.data.sources.json_lines import Records
from training.data.sources.mapping import Changes, Clock, ColumnMapping, PropertyColumn
from training.data.sources.tables import BLOCK_BYTES, column_names, is_parquet, parquet_schema, read_table
from training.data.sources.values import NO_TIME

MAPPING: Final = "mapping"
"""The format of a log that a `ColumnMapping` describes."""


def unchanged(rows: pl.DataFrame) -> pl.DataFrame:
    """Return `rows` unchanged: the default refinement."""
    return rows


@dataclass(frozen=True, slots=True)
class EventFile:
    """One file of events.

    Attributes:
        path: text or Parquet, compressed or not.
        mapping: which column is which field.
        column_names: the columns of a file without a header, where the format fixes them.
        refine: corrects raw values (a zero that means "unknown") before they are converted, and may leave out rows
            that are no events.
        given: the value of each column of the mapping that this file lacks: a folder's name gives it
            (`country=de`), or only other files of the log have the column (None, read as nulls).
        records: makes several events of one JSON object.
        may_lack: whether columns of the mapping may have no value in the whole log.
    """

    path: Path
    mapping: ColumnMapping
    column_names: tuple[str, ...] | None = None
    refine: Callable[[pl.DataFrame], pl.DataFrame] = unchanged
    given: Mapping[str, str | None] = field(default_factory=dict)
    records: Records | None = None
    may_lack: bool = False

    def needed_columns(self) -> dict[str, str]:
        """Return the columns that must be there, each with the field that needs it."""
        return {column: of for column, of in self.mapping.needed_columns().items() if column not in self.given}

    def completed(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return refined rows, with the columns that this file lacks."""
        lacking = self.mapping.needed_columns().keys() & self.given.keys()
        return self.refine(
            rows.with_columns(pl.lit(self.given[column], pl.String).alias(column) for column in sorted(lacking))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Converted):
    """Some rows of one file, converted.

    Attributes:
        file: the file's name in reports.
        file_index: its position in the source, which orders events of equal time.
        rows_read: data rows of this batch.
        rows_lookup: those of them that are no events: they describe items or visitors.
        bytes_done: position in the file on disk.
    """

    file: str
    file_index: int
    rows_read: int
    rows_lookup: int
    bytes_done: int


Enrichment = Callable[[pl.DataFrame], pl.DataFrame]
# Yields batches without events, which count its rows, and returns a function that completes events.
Lookup = Callable[[int], Generator[Batch, None, Enrichment]]


@dataclass(frozen=True, slots=True)
class Source:
    """A log in one of the known formats, opened.

    Attributes:
        format: its name in `training.data.sources.FORMATS`.
        clock: meaning of its times, see `Clock`.
        event_files: the files with events; all declare the same properties and the same session key.
        lookup: reads files that describe items, before the events.
        lookup_paths: those files.
    """

    format: str
    clock: Clock
    event_files: tuple[EventFile, ...]
    lookup: Lookup | None = None
    lookup_paths: tuple[Path, ...] = ()

    @property
    def properties(self) -> tuple[PropertyColumn, ...]:
        """Declared properties."""
        return self.event_files[0].mapping.properties

    @property
    def by_visitor(self) -> bool:
        """Whether `session_id` holds a visitor, whose events must be split into sessions."""
        return self.event_files[0].mapping.by_visitor

    @property
    def equal_rows_are_duplicates(self) -> bool | None:
        """Whether two equal rows are one event logged twice; None: the format does not say."""
        return self.event_files[0].mapping.equal_rows_are_duplicates

    @property
    def has_event_ids(self) -> bool:
        """Whether a column is the event's id."""
        return self.event_files[0].mapping.event_id is not None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file that will be read."""
        return (*self.lookup_paths, *(file.path for file in self.event_files))

    @property
    def event_renames(self) -> dict[str, str]:
        """Event names that the log has other than by aliases, each with the name that it means."""
        return {theirs: ours for file in self.event_files for theirs, ours in file.mapping.events.items()}

    @property
    def must_occur(self) -> tuple[str, ...]:
        """Event names of the options, so that one which never occurs is a mistake."""
        return tuple(dict.fromkeys(name for file in self.event_files for name in file.mapping.must_occur))

    def changed(self, changes: Changes) -> "Source":
        """Return the source with other readings of its columns; raise `SourceError` where one does not fit."""
        files = tuple(replace(file, mapping=changes.of(file.mapping)) for file in self.event_files)
        return replace(self, event_files=files)

    def batches(
        self, block_bytes: int = BLOCK_BYTES, reading: Reading | None = None, rows: int | None = None
    ) -> Iterator[Batch]:
        """Yield everything the source holds, reading about `block_bytes` at a time.

        Args:
            block_bytes: text held at a time.
            reading: plausible times, and which ids are none; None: any time.
            rows: about how many rows of events to read, the first of each file; None: all.

        Raises:
            SourceError: a file is missing, empty, damaged or lacks a column, or holds values of a kind without meaning.
        """
        if reading is not None and self.clock == "session":
            reading = replace(reading, earliest_ms=None, latest_ms=None)
        enrich: Enrichment = unchanged
        if self.lookup is not None:
            enrich = yield from self.lookup(block_bytes)
        first_index = len(self.lookup_paths)
        absent = frozenset(self.event_files[0].needed_columns())
        enough = math.inf if rows is None else math.ceil(rows / len(self.event_files))
        for index, file in enumerate(self.event_files, start=first_index):
            columns = file.needed_columns()
            layout = file.mapping.layout(file.column_names)
            read = 0
            for block in read_table(file.path, columns, layout, block_bytes, file.records):
                absent &= block.absent
                read += block.rows_read
                try:
                    yield _batch(file, index, block, enrich, reading, is_known=self.format != MAPPING)
                except pl.exceptions.PolarsError as exc:
                    raise SourceError(f"{file.path}: values that cannot be read: {exc}") from exc
                if read >= enough:
                    break
        if absent and rows is None and not self.event_files[0].may_lack:
            raise SourceError(f"{file.path}: no row has what is called {', '.join(sorted(absent))}")


def _batch(
    file: EventFile, index: int, block: Block, enrich: Enrichment, reading: Reading | None, *, is_known: bool
) -> Batch:
    rows = file.completed(block.rows)
    read = convert(rows, file.mapping, reading)
    _refuse_other_headers(file, rows, read.rejected)
    broken_labels, broken_purchases = labels_of_broken(block.broken, file.mapping)
    return Batch(
        file=file.path.name,
        file_index=index,
        events=enrich(read.events),
        rejected=pl.concat([block.rejected, read.rejected]),
        rows_read=block.rows_read,
        rows_lookup=block.rows_lookup + block.rows.height - rows.height,
        bytes_done=block.bytes_done,
        nulled=pl.concat([block.shortened, read.nulled]),
        lost_labels=pl.concat([read.lost_labels, broken_labels]),
        lost_purchases=read.lost_purchases + broken_purchases,
        rows_dropped=read.rows_dropped,
        names=read.names,
        placeholders=read.placeholders,
        # What the times of a known format mean is known as well.
        notes=block.notes if is_known else (*block.notes, *read.notes),
        warnings=read.warnings,
    )


def _refuse_other_headers(file: EventFile, rows: pl.DataFrame, rejected: pl.DataFrame) -> None:
    """Raise `SourceError` where a row has other columns' names: from there on the columns have another order."""
    names = file.mapping.needed_columns().keys() & set(rows.columns)
    suspects = rejected.filter((pl.col("reason") == NO_TIME) & pl.col("value").is_in(list(names)))
    if not suspects.height or not file.mapping.has_header:
        return
    for row in rows.filter(pl.col(LINE).is_in(suspects["line"].implode())).iter_rows(named=True):
        given = {name: stripped(str(row[name])) for name in names}
        if any(value != name for name, value in given.items()) and sum(value in names for value in given.values()) > 1:
            raise SourceError(
                f"{file.path}: line {row[LINE]} has the names of columns in another order: files of different columns "
                "were joined. Give them as separate files of one folder"
            )


def lookup_batch(path: Path, index: int, rejected: pl.DataFrame, *, rows_read: int, bytes_done: int) -> Batch:
    """Return a batch that counts rows which describe items."""
    return Batch(
        file=path.name,
        file_index=index,
        events=pl.DataFrame(schema=event_schema(())),
        rejected=rejected,
        rows_read=rows_read,
        rows_lookup=rows_read - rejected.height,
        bytes_done=bytes_done,
    )


@dataclass(frozen=True, slots=True)
class Adapter:
    """A known log format.

    Attributes:
        description: one line for help texts.
        recognises: whether a path holds this format; never raises for a path that exists.
        open: makes the source, or raises `SourceError`.
    """

    description: str
    recognises: Callable[[Path], bool]
    open: Callable[[Path], Source]


def adapter_of_tables(
    format: str,  # noqa: A002 - as `Source.format`
    description: str,
    is_ours: Callable[[Path], bool],
    refusal: str,
    event_file: Callable[[Path], EventFile],
) -> Adapter:
    """Return the adapter of a format that is a file, or a folder in which every table is of that format.

    Args:
        format: the format's name.
        description: see `Adapter`.
        is_ours: whether a table is of the format.
        refusal: message of the error for a table that is not.
        event_file: returns how a table is read.
    """

    def open_(path: Path) -> Source:
        files = table_files(path)
        for file in files:
            if not is_ours(file):
                raise SourceError(f"{file}: {refusal}")
        return Source(format=format, clock="calendar", event_files=tuple(map(event_file, files)))

    return Adapter(description, lambda path: every_table(path, is_ours), open_)


def one_file(folder: Path, pattern: str) -> Path:
    """Return the one file of `folder` that matches `pattern`, which may be compressed.

    Raises:
        SourceError: there is none, or there are several.
    """
    found = matching(folder, pattern)
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found)
        raise SourceError(f"{folder}: one file must match {pattern}, also compressed; found {names}")
    if not found:
        present = ", ".join(sorted(path.name for path in folder.iterdir())[:20]) or "nothing"
        raise SourceError(f"{folder}: no file matches {pattern}, also compressed; found {present}")
    return found[0]


def open_mapped(path: Path, mapping: ColumnMapping) -> Source:
    """Open a file, or every table of a folder, with `mapping`.

    Raises:
        SourceError: the folder has no table.
    """
    files = table_files(path)
    if all(file.is_file() and is_parquet(file) for file in files):
        mapping = replace(mapping, properties=parquet_property_kinds(files, mapping.properties))
    return Source(
        format=MAPPING,
        clock=mapping.clock,
        event_files=tuple(EventFile(file, mapping, given=_given(file, path, mapping)) for file in files),
    )


def _given(file: Path, root: Path, mapping: ColumnMapping) -> dict[str, str | None]:
    """Return the values that the names of folders give to columns which the file lacks."""
    values = partition_values(file, root)
    found = column_names(file, mapping.separator) if values else ()
    return {name: value for name, value in values.items() if name not in found}


def parquet_property_kinds(files: Sequence[Path], properties: tuple[PropertyColumn, ...]) -> tuple[PropertyColumn, ...]:
    """Return the properties with kinds: number where every file with the column types it as number or Boolean."""
    schemas = [parquet_schema(file) for file in files]
    resolved = []
    for declared in properties:
        types = [schema[declared.column] for schema in schemas if declared.column in schema] or [pl.String()]
        numeric = all(dtype.is_numeric() or dtype == pl.Boolean for dtype in types)
        resolved.append(replace(declared, kind=declared.kind or ("number" if numeric else "category")))
    return tuple(resolved)
