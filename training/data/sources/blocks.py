"""Blocks of rows, as every kind of table is read, and rows that were rejected with their line number and reason."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

import polars as pl

from training.data.sources.errors import SourceError

# Begins with a space, which column names of text tables never do, so that it cannot clash with one.
LINE: Final = " line"
# Marks the rows of a block whose line was not valid UTF-8; only blocks that have such lines have the column.
DAMAGED: Final = " damaged"
REJECTED_SCHEMA: Final = {"line": pl.Int64, "field": pl.String, "reason": pl.String, "value": pl.String}
MAX_REPORTED_CHARACTERS: Final = 100
MAX_LINE_BYTES: Final = 16 * 1024 * 1024


def rejections(lines: pl.Series, fields: str | Sequence[str], reason: str, values: pl.Series) -> pl.DataFrame:
    """Return rejected rows with one reason; `fields` is one for all rows or one for each; values are shortened."""
    named = pl.lit(fields) if isinstance(fields, str) else pl.Series(fields, dtype=pl.String)
    return pl.DataFrame({"line": lines, "value": values}).select(
        pl.col("line").cast(pl.Int64),
        field=named,
        reason=pl.lit(reason),
        value=pl.col("value").cast(pl.String).str.slice(0, MAX_REPORTED_CHARACTERS),
    )


def no_rejections() -> pl.DataFrame:
    """Return an empty table of rejected rows."""
    return pl.DataFrame(schema=REJECTED_SCHEMA)


@dataclass(frozen=True, slots=True)
class BrokenRows:
    """Lines that could not be split as their header says.

    Attributes:
        fields: all fields of each line.
        from_left, from_right: the needed columns, counted from the line's start, and from its end.
    """

    fields: list[list[str]]
    from_left: pl.DataFrame
    from_right: pl.DataFrame


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a table.

    Attributes:
        rows: the needed columns, as text or as Parquet types them, and `LINE`: the row's line number.
        rejected: `line`, `field`, `reason`, `value` of rows that could not be split into fields.
        rows_read: data rows in the block, blank lines not counted.
        bytes_done: position in the file as it lies on disk.
        absent: needed columns that no row has, where no header says which columns there are.
        broken: what can be made of the lines that could not be split.
        shortened: `line`, `field`, `reason`, `value` of accepted rows that lack fields at their end.
        notes: what was found out about the file, for people.
        rows_lookup: rows that are no events.
    """

    rows: pl.DataFrame
    rejected: pl.DataFrame
    rows_read: int
    bytes_done: int
    absent: frozenset[str] = frozenset()
    broken: BrokenRows | None = None
    shortened: pl.DataFrame = field(default_factory=no_rejections)
    notes: tuple[str, ...] = ()
    rows_lookup: int = 0


def line_blocks(path: Path, stream: IO[bytes], block_bytes: int) -> Iterator[bytes]:
    """Yield whole lines, about `block_bytes` at a time."""
    rest = b""
    while chunk := stream.read(block_bytes):
        text = rest + chunk
        end = text.rfind(b"\n") + 1
        if len(text) - end > max(MAX_LINE_BYTES, block_bytes):
            raise SourceError(f"{path}: a line is longer than {MAX_LINE_BYTES} bytes; this is no text table")
        if end:
            yield text[:end]
        rest = text[end:]
    if rest:
        yield rest
