"""Raw columns to typed values, with the problems of malformed ones.

Each function takes one column, as text or as typed by Parquet, and returns values and problems: pairs of a mask and a
reason. A value without a true mask is valid; null means "not given".
"""

from collections.abc import Collection
from typing import Final

import polars as pl

from training.data.sources.errors import SourceError

Problem = tuple[pl.Series, str]

MS_PER_UNIT: Final = {"epoch_s": 1000, "epoch_ms": 1, "elapsed_s": 1000, "elapsed_ms": 1}
# The first millisecond of the year 10000, beyond the range of most tools.
END_OF_TIME_MS: Final = 253_402_300_800_000
_ISO_FORMATS: Final = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M", "%Y-%m-%d")
_TRUE_OR_FALSE: Final = {"1": True, "true": True, "0": False, "false": False}


def text(column: pl.Series, missing_values: Collection[str] = ()) -> pl.Series:
    """Return the column as text, null where it is blank or one of `missing_values`."""
    texts = column.cast(pl.String)
    if column.dtype.is_float():
        # A whole number has the same text as in the service (`model.columns.category_text`).
        texts = texts.str.replace(r"\.0$", "")
    blank = texts.str.strip_chars() == ""
    if missing_values:
        blank = blank | texts.is_in(list(missing_values))
    return _null_where(texts, blank)


def required(texts: pl.Series) -> list[Problem]:
    """Return the problem of missing values."""
    return [(texts.is_null(), "missing")]


def number(column: pl.Series, missing_values: Collection[str] = ()) -> tuple[pl.Series, list[Problem]]:
    """Return finite numbers."""
    if column.dtype.is_numeric() or column.dtype == pl.Boolean:
        values, given = column.cast(pl.Float64), column.is_not_null()
    else:
        texts = text(column, missing_values)
        values, given = texts.str.strip_chars().cast(pl.Float64, strict=False), texts.is_not_null()
    return values, [
        (given & values.is_null(), "not a number"),
        ((values.is_nan() | values.is_infinite()).fill_null(value=False), "not finite"),
    ]


def amount(column: pl.Series, missing_values: Collection[str] = ()) -> tuple[pl.Series, list[Problem]]:
    """Return finite numbers that are not negative: prices and quantities."""
    values, problems = number(column, missing_values)
    return values, [*problems, ((values < 0).fill_null(value=False), "negative")]


def boolean(column: pl.Series, missing_values: Collection[str] = ()) -> tuple[pl.Series, list[Problem]]:
    """Return truth values, of 1 and 0, true and false in any case."""
    if column.dtype == pl.Boolean:
        return column, []
    texts = text(column, missing_values)
    values = (
        texts.str.strip_chars().str.to_lowercase().replace_strict(_TRUE_OR_FALSE, default=None, return_dtype=pl.Boolean)
    )
    return values, [(texts.is_not_null() & values.is_null(), "neither true nor false")]


def time_ms(
    column: pl.Series, time_format: str, missing_values: Collection[str] = ()
) -> tuple[pl.Series, list[Problem]]:
    """Return milliseconds, since 1970 or the session's start; `time_format` is one of a `ColumnMapping`.

    Columns that Parquet types as dates or times ignore the format. Times without an offset are UTC.
    """
    if column.dtype.is_temporal():
        values, given = _epoch_ms(column), column.is_not_null()
        unreadable = given & values.is_null()
    elif time_format in MS_PER_UNIT:
        numbers, problems = number(column, missing_values)
        given = problems[0][0] | numbers.is_not_null()
        in_ms = numbers * MS_PER_UNIT[time_format]
        values = _null_where(in_ms, ~in_ms.is_between(0, END_OF_TIME_MS - 1)).round().cast(pl.Int64)
        unreadable = problems[0][0]
    else:
        texts = text(column, missing_values)
        given = texts.is_not_null()
        stripped = texts.str.strip_chars()
        values = _iso_ms(stripped) if time_format == "iso" else _parsed_ms(stripped, time_format)
        unreadable = given & values.is_null()
    outside = ~values.is_between(0, END_OF_TIME_MS - 1).fill_null(value=False) & given & ~unreadable
    return values, [
        (~given, "missing"),
        (unreadable, "not a time"),
        (outside, "time before 1970, negative or past 9999"),
    ]


def _iso_ms(texts: pl.Series) -> pl.Series:
    """Read ISO 8601 dates and times, with `T` or a space, with `Z`, `UTC`, an offset or none."""
    plain = texts.str.replace(r"\s*(UTC|Z)$", "").str.replace(r"^(\S+)\s+", "${1}T")
    values = _parsed_ms(plain, "%Y-%m-%dT%H:%M:%S%.f")
    for time_format in _ISO_FORMATS:
        open_ones = values.is_null() & plain.is_not_null()
        if not open_ones.any():
            break
        values = values.zip_with(~open_ones, _parsed_ms(_null_where(plain, ~open_ones), time_format))
    return values


def _parsed_ms(texts: pl.Series, time_format: str) -> pl.Series:
    return _epoch_ms(texts.str.to_datetime(time_format, time_unit="ms", strict=False))


def _epoch_ms(times: pl.Series) -> pl.Series:
    if times.dtype == pl.Date:
        times = times.cast(pl.Datetime("ms"))
    if not isinstance(times.dtype, pl.Datetime):
        raise SourceError(f"column {times.name!r} holds {times.dtype}, not dates or times")
    return times.dt.timestamp("ms")


def _null_where(values: pl.Series, mask: pl.Series) -> pl.Series:
    return values.to_frame("value").select(pl.when(mask.not_()).then("value").otherwise(None)).to_series()
