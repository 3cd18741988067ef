"""Reading a table from text, compressed text or Parquet in blocks of bounded size."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import polars as pl

from training.data.sources.blocks import DAMAGED, LINE, Block, no_rejections
from training.data.sources.errors import SourceError
from training.data.sources.files import compression
from training.data.sources.json_lines import Records, is_json, keys, read_json
from training.data.sources.nested import expression
from training.data.sources.text import TextLayout, check_columns, header, read_text

BLOCK_BYTES: Final = 32 * 1024 * 1024
ROWS_PER_PARQUET_BLOCK: Final = 250_000
# About what a row holds as text.
_BYTES_PER_ROW: Final = 128
_PARQUET_MAGIC: Final = b"PAR1"
# A damaged file may also make the reader panic.
PARQUET_ERRORS: Final = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)


def is_parquet(path: Path) -> bool:
    """Return whether the file begins as Parquet does."""
    with path.open("rb") as file:
        return file.read(4) == _PARQUET_MAGIC


def parquet_schema(path: Path) -> pl.Schema:
    """Return a Parquet file's columns.

    Raises:
        SourceError: the file is damaged.
    """
    try:
        # Opened here, as polars would interpret `[` or `*` in a path as a pattern.
        with path.open("rb") as file:
            return pl.Schema(pl.read_parquet_schema(file))
    except PARQUET_ERRORS as exc:
        raise SourceError(f"{path}: not a readable Parquet file: {exc}") from exc


def parquet_head(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """Return some columns of a Parquet file's first row; raise `SourceError` if it is damaged."""
    try:
        return pl.scan_parquet(path, glob=False).select(columns).head(1).collect()
    except PARQUET_ERRORS as exc:
        raise SourceError(f"{path}: not a readable Parquet file: {exc}") from exc


def is_compressed(path: Path) -> bool:
    """Return whether a file is compressed, so that its text is several times as large."""
    return compression(path) is not None or is_parquet(path)


def column_names(path: Path, separator: str | None = None) -> tuple[str, ...]:
    """Return the file's column names, or none where it is not a table; for format detection."""
    try:
        if is_parquet(path):
            return tuple(parquet_schema(path))
        return keys(path) if is_json(path) else tuple(header(path, separator))
    except (OSError, UnicodeDecodeError, SourceError):
        return ()


def read_table(
    path: Path,
    needed: Mapping[str, str],
    layout: TextLayout,
    block_bytes: int = BLOCK_BYTES,
    records: Records | None = None,
) -> Iterator[Block]:
    """Yield the table's rows in order, blocks of about `block_bytes` of text or of a bounded number of Parquet rows.

    Args:
        path: text, compressed text or Parquet; detected by its first bytes.
        needed: the columns wanted, each with the field that needs it, for messages.
        layout: how text is laid out.
        block_bytes: how much text to hold at a time.
        records: makes several records of one JSON object.

    Raises:
        SourceError: the file is missing, empty, damaged or lacks a needed column.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise SourceError(f"{path}: the file is empty")
    if is_parquet(path):
        yield from _read_parquet(path, needed, min(ROWS_PER_PARQUET_BLOCK, max(1, block_bytes // _BYTES_PER_ROW)))
        return
    if is_json(path):
        yield from read_json(path, needed, records, block_bytes)
        return
    yield from read_text(path, needed, layout, block_bytes)


def _read_parquet(path: Path, needed: Mapping[str, str], block_rows: int) -> Iterator[Block]:
    schema = parquet_schema(path)
    try:
        height = pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
    except PARQUET_ERRORS as exc:
        raise SourceError(f"{path}: not a readable Parquet file: {exc}") from exc
    selected = {column: expression(column, schema) for column in needed}
    check_columns(
        path, [*schema, *(column for column in needed if column not in schema and selected[column] is not None)], needed
    )
    wanted = [each for each in selected.values() if each is not None]
    size = path.stat().st_size
    for start in range(0, height, block_rows):
        try:
            rows = pl.scan_parquet(path, glob=False).slice(start, block_rows).select(wanted).collect()
        except PARQUET_ERRORS as exc:
            raise SourceError(f"{path}: not a readable Parquet file: {exc}") from exc
        for name, dtype in rows.schema.items():
            if dtype.is_nested():
                raise SourceError(f"{path}: column {name!r} holds {dtype}, not single values; name a value inside it")
        rows = rows.with_row_index(LINE, start + 1).with_columns(pl.col(LINE).cast(pl.Int64))
        done = size * (start + rows.height) // height
        yield Block(_without_binary(rows), no_rejections(), rows.height, done)


def _without_binary(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows with binary columns as text; `DAMAGED` marks those with bytes that are none."""
    damaged = pl.repeat(value=False, n=rows.height, dtype=pl.Boolean, eager=True)
    for name, dtype in rows.schema.items():
        if dtype != pl.Binary:
            continue
        texts = [None if value is None else value.decode("utf-8", "replace") for value in rows[name]]
        lossy = [text is not None and text.encode() != value for text, value in zip(texts, rows[name], strict=True)]
        damaged = damaged | pl.Series(lossy, dtype=pl.Boolean)
        rows = rows.with_columns(pl.Series(name, texts, dtype=pl.String))
    return rows.with_columns(damaged.alias(DAMAGED)) if damaged.any() else rows
