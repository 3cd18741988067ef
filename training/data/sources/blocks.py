"""Blocks of raw rows, and the table of rows that had to be rejected."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

# Begins with a space, which names of columns in text tables never do, so that it hides none of theirs.
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
    """

    rows: pl.DataFrame
    rejected: pl.DataFrame
    rows_read: int
    bytes_done: int


def rejections(lines: pl.Series, fields: str | Sequence[str], reason: str, values: pl.Series) -> pl.DataFrame:
    """Return rejected rows, one reason for all; `fields` is one for all or one each; values are shortened."""
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
