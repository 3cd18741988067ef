"""Reading a text table block by block, with the line number of every row and of every malformed one.

Text is read as lines, never as one CSV document. So a truncated row, a stray quote or invalid UTF-8 affects one row
only, and its line number is exact. The drawback: a quoted field cannot contain a line break.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Final

import polars as pl

from training.data.sources.errors import SourceError
from training.data.sources.files import opened

# Begins with a space, which column names of text tables never do, so that it cannot clash with one.
LINE: Final = " line"
REJECTED_SCHEMA: Final = {"line": pl.Int64, "field": pl.String, "reason": pl.String, "value": pl.String}
MAX_REPORTED_CHARACTERS: Final = 100


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a table.

    Attributes:
        rows: the needed columns, as text or as Parquet types them, and `LINE`: the row's line number.
        rejected: `line`, `field`, `reason`, `value` of rows that could not be split into fields.
        rows_read: data rows in the block, blank lines not counted.
        bytes_done: position in the file as it lies on disk.
        absent: needed columns that no row has, where no header says which columns there are.
    """

    rows: pl.DataFrame
    rejected: pl.DataFrame
    rows_read: int
    bytes_done: int
    absent: frozenset[str] = frozenset()


def rejections(lines: pl.Series, fields: str | Sequence[str], reason: str, values: pl.Series) -> pl.DataFrame:
    """Return rejected rows with one reason; `fields` is one for all rows or one for each; values are shortened."""
    field = pl.lit(fields) if isinstance(fields, str) else pl.Series(fields, dtype=pl.String)
    return pl.DataFrame({"line": lines, "value": values}).select(
        pl.col("line").cast(pl.Int64),
        field=field,
        reason=pl.lit(reason),
        value=pl.col("value").cast(pl.String).str.slice(0, MAX_REPORTED_CHARACTERS),
    )


def no_rejections() -> pl.DataFrame:
    """Return an empty table of rejected rows."""
    return pl.DataFrame(schema=REJECTED_SCHEMA)


MAX_LINE_BYTES: Final = 16 * 1024 * 1024
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class TextLayout:
    """How a text table is laid out; `column_names` are those of a file without a header, where they are known."""

    separator: str = ","
    has_header: bool = True
    column_names: tuple[str, ...] | None = None


def header(path: Path, separator: str) -> list[str]:
    """Return the fields of the first line; raises decoding errors where the file is not text."""
    with opened(path) as (stream, _):
        first = stream.readline(MAX_LINE_BYTES).decode("utf-8-sig")
    return [name.strip() for name in split_quoted(first.rstrip("\r\n"), separator) or ()]


def check_columns(path: Path, found: Sequence[str], needed: Mapping[str, str]) -> None:
    """Raise `SourceError` unless every needed column is there once."""
    for column, field in needed.items():
        if found.count(column) != 1:
            problem = "two columns are" if column in found else "no column is"
            raise SourceError(f"{path}: {problem} called {column!r} (for {field}); found: {', '.join(found)}")


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


def read_text(path: Path, needed: Mapping[str, str], layout: TextLayout, block_bytes: int) -> Iterator[Block]:
    """Yield the rows of a text table; see `training.data.sources.tables.read_table`."""
    names: Sequence[str] | None = layout.column_names
    next_line = 1
    with opened(path) as (stream, file):
        for block in line_blocks(path, stream, block_bytes):
            lines, damaged = _lines(block.removeprefix(_BYTE_ORDER_MARK) if next_line == 1 else block)
            numbers = pl.int_range(next_line, next_line + len(lines), eager=True)
            next_line += len(lines)
            table = pl.DataFrame({LINE: numbers, "text": lines, "damaged": damaged}).filter(
                pl.col("text").str.strip_chars() != ""
            )
            if names is None and table.height:
                first = split_quoted(table["text"][0], layout.separator) or []
                if layout.has_header:
                    names, table = [name.strip() for name in first], table[1:]
                else:
                    names = [f"column_{position}" for position in range(1, len(first) + 1)]
                check_columns(path, names, needed)
            if names is not None:
                rows, rejected = _split(table, names, list(needed), layout.separator)
                yield Block(rows, rejected, table.height, file.tell())
    if names is None:
        raise SourceError(f"{path}: the file is empty")


def _lines(block: bytes) -> tuple[pl.Series, pl.Series]:
    """Return the block's lines without their ends, and which of them are not UTF-8."""
    try:
        texts = block.decode("utf-8").removesuffix("\n").split("\n")
        damaged = pl.repeat(value=False, n=len(texts), eager=True, dtype=pl.Boolean)
    except UnicodeDecodeError:
        raw = block.removesuffix(b"\n").split(b"\n")
        texts = [line.decode("utf-8", "replace") for line in raw]
        damaged = pl.Series([not _is_utf8(line) for line in raw], dtype=pl.Boolean)
    return pl.Series(texts, dtype=pl.String).str.strip_suffix("\r"), damaged


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _split(
    table: pl.DataFrame, names: Sequence[str], needed: Sequence[str], separator: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split lines into the needed columns; return the rows and those that are rejected."""
    text, damaged, quoted = pl.col("text"), pl.col("damaged"), pl.col("text").str.contains('"', literal=True)
    last = len(names) - 1
    plain = table.filter(~damaged & ~quoted).with_columns(
        separators=text.str.count_matches(separator, literal=True).cast(pl.Int64)
    )
    whole = plain.filter(pl.col("separators") == last)
    fields = whole["text"].str.split_exact(separator, last).struct.unnest()
    columns = {name: fields[f"field_{names.index(name)}"] for name in needed}
    few, many = plain.filter(pl.col("separators") < last), plain.filter(pl.col("separators") > last)
    first_missing = [names[count + 1] for count in few["separators"]]
    not_text = table.filter(damaged)
    quoted_rows, quoted_rejected = _split_quoted_lines(table.filter(~damaged & quoted), names, needed, separator)
    rows = pl.concat([pl.DataFrame({LINE: whole[LINE], **columns}), quoted_rows])
    rejected = [
        rejections(not_text[LINE], "", "not valid UTF-8", not_text["text"]),
        rejections(few[LINE], first_missing, "too few fields", few["text"]),
        rejections(many[LINE], "", "too many fields", many["text"]),
        quoted_rejected,
    ]
    return rows, pl.concat(rejected)


def _split_quoted_lines(
    quoted: pl.DataFrame, names: Sequence[str], needed: Sequence[str], separator: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    accepted: list[tuple[object, ...]] = []
    refused: list[tuple[int, str, str, str]] = []
    positions = [names.index(name) for name in needed]
    for line, text in quoted.select(LINE, "text").iter_rows():
        values = split_quoted(text, separator)
        if values is None:
            refused.append((line, "", "quotes do not match", text[:MAX_REPORTED_CHARACTERS]))
        elif len(values) < len(names):
            refused.append((line, names[len(values)], "too few fields", text[:MAX_REPORTED_CHARACTERS]))
        elif len(values) > len(names):
            refused.append((line, "", "too many fields", text[:MAX_REPORTED_CHARACTERS]))
        else:
            accepted.append((line, *(values[position] for position in positions)))
    schema = {LINE: pl.Int64, **dict.fromkeys(needed, pl.String)}
    return (
        pl.DataFrame(accepted, schema=schema, orient="row"),
        pl.DataFrame(refused, schema=REJECTED_SCHEMA, orient="row"),
    )


def split_quoted(text: str, separator: str) -> list[str] | None:
    """Split one line as CSV; None where its quotes do not match."""
    try:
        return list(chain.from_iterable(csv.reader([text], delimiter=separator, strict=True)))
    except csv.Error:
        return None
