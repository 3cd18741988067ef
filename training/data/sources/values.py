"""Raw columns to typed values, with the problems of malformed ones.

Each function takes one column, as text or as typed by Parquet, and returns values and problems: pairs of a mask and a
reason. A value without a true mask is valid; null means "not given".
"""

from collections.abc import Callable, Collection
from typing import Final

import numpy as np
import polars as pl

from model.text_rules import (
    MAY_BE_NULL,
    MAY_CHANGE,
    PLACEHOLDER_IDS,
    canonical_text,
    category_text,
    currency_code,
    is_placeholder_id,
)
from model.vendors.table import EXPONENT_FORM
from training.data.sources.errors import SourceError
from training.data.sources.time_patterns import parsed_ms

Problem = tuple[pl.Series, str]

MS_PER_UNIT: Final = {
    "epoch_s": 1e3,
    "epoch_ms": 1.0,
    "epoch_us": 1e-3,
    "epoch_ns": 1e-6,
    "elapsed_s": 1e3,
    "elapsed_ms": 1.0,
}
MISSING: Final = "missing"
PLACEHOLDER: Final = "an id that stands for nothing"
NO_TIME: Final = "not a time"
NO_DATE: Final = "time before 1970, negative or past 9999"
SKIPPED: Final = "a time that clocks skip in its zone"
INEXACT: Final = "a number too large to be exact"
INEXPONENT_FORM: Final = "a number in exponent form, which has lost digits"
# The first millisecond of the year 10000, beyond the range of most tools.
END_OF_TIME_MS: Final = 253_402_300_800_000
_LONGEST_SPECIAL: Final = 26
_SHORT_PLACEHOLDERS: Final = [text for text in PLACEHOLDER_IDS if len(text) <= _LONGEST_SPECIAL]
_LONG_PLACEHOLDERS: Final = [
    spelt for text in PLACEHOLDER_IDS if len(text) > _LONGEST_SPECIAL for spelt in (text, text.upper())
]
# Floats count whole numbers one by one up to here.
_LARGEST_EXACT: Final = 2.0**53
_LARGEST_EXACT_32: Final = 2.0**24
_OFFSET: Final = r":\d\d(?:[.,]\d+)?\s*[+-]\d\d(?::?\d\d)?\s*$"
_SAYS_UTC: Final = r"(?:UTC|GMT|Z)\s*$"
_IN_UTC: Final = r"(?:UTC|GMT|Z|^)\s*$"
_DECIMAL_COMMA: Final = r"^-?[0-9.]*,[0-9]{1,2}$"
# Points between thousands or none, and at most one comma.
_WITH_COMMA: Final = r"^\s*[+-]?(?:[0-9]+|[0-9]{1,3}(?:\.[0-9]{3})+)(?:,[0-9]+)?\s*$"
_GROUPED: Final = r"^-?[0-9]{1,3}(\.[0-9]{3})+$"
_ISO_FORMATS: Final = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M%#z", "%Y-%m-%d")
_TRUE_OR_FALSE: Final = {
    **dict.fromkeys(("1", "true", "t", "yes", "y"), True),
    **dict.fromkeys(("0", "false", "f", "no", "n"), False),
}


def text(column: pl.Series, missing_values: Collection[str] = ()) -> pl.Series:
    """Return the column as `model.text_rules.canonical_text` has it, null where there is no value.

    Args:
        column: the values.
        missing_values: further texts that mean "no value".

    Raises:
        SourceError: the column holds structures instead of single values.
    """
    return _read(column, missing_values, MAY_CHANGE, canonical_text)


def category(column: pl.Series, missing_values: Collection[str] = ()) -> pl.Series:
    """Return the column as `model.text_rules.category_text` has it: as `text`, and null for words that mean no value.

    Raises:
        SourceError: the column holds structures instead of single values.
    """
    return _read(column, missing_values, MAY_BE_NULL, category_text)


def _read(
    column: pl.Series, missing_values: Collection[str], may_change: str, rule: Callable[[str], str | None]
) -> pl.Series:
    texts = _as_text(column)
    texts = _null_where(texts, texts == "")
    texts = _replaced(texts, texts.str.contains(may_change), rule)
    if missing_values:
        texts = _null_where(texts, texts.is_in([canonical_text(value) for value in missing_values]))
    return texts


def identifier(
    column: pl.Series, missing_values: Collection[str] = (), *, placeholders_count: bool = False
) -> tuple[pl.Series, list[Problem]]:
    """Return ids: texts that are no placeholder and have all their digits.

    Args:
        column: the values.
        missing_values: further texts that mean "no value".
        placeholders_count: whether `undefined` and its like are ids.
    """
    texts = text(column, missing_values)
    # Most ids are too long for either; a look at the length costs a tenth of the others.
    is_short = (texts.str.len_bytes() <= _LONGEST_SPECIAL).fill_null(value=False)
    short = texts.filter(is_short)
    problems = [(_spread(short.str.contains(EXPONENT_FORM), is_short), INEXPONENT_FORM)]
    if column.dtype.is_float():
        problems.append((_inexact(column), INEXACT))
    if not placeholders_count:
        problems.append((_placeholders(texts, is_short), PLACEHOLDER))
    return texts, problems


def _inexact(column: pl.Series) -> pl.Series:
    """Return which floats are beyond the whole numbers that their type counts one by one."""
    largest = _LARGEST_EXACT_32 if column.dtype == pl.Float32 else _LARGEST_EXACT
    return (column.is_finite() & (column.abs() > largest)).fill_null(value=False)


def required(texts: pl.Series) -> list[Problem]:
    """Return the problem of missing values."""
    return [(texts.is_null(), MISSING)]


def number(column: pl.Series, missing_values: Collection[str] = ()) -> tuple[pl.Series, list[Problem]]:
    """Return finite numbers."""
    if column.dtype.is_numeric() or column.dtype == pl.Boolean:
        values, given = column.cast(pl.Float64), column.is_not_null()
    else:
        texts = category(column, missing_values)
        values, given = texts.cast(pl.Float64, strict=False), texts.is_not_null()
        values = _without_grouped(values, texts)
    return values, [
        (given & values.is_null(), "not a number"),
        ((values.is_nan() | values.is_infinite()).fill_null(value=False), "not finite"),
    ]


def has_decimal_commas(texts: pl.Series) -> bool:
    """Return whether a text is a number with a decimal comma, such as `59,90`."""
    return bool(texts.str.contains(_DECIMAL_COMMA).any())


def with_decimal_points(texts: pl.Series) -> pl.Series:
    """Return numbers such as `1.299,50` as `1299.50`; a text with a decimal point is no number there."""
    text = pl.col(texts.name)
    with_point = text.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
    no_number = text.str.replace_all(".", ",", literal=True)
    return texts.to_frame().select(pl.when(text.str.contains(_WITH_COMMA)).then(with_point).otherwise(no_number))[
        texts.name
    ]


def _without_grouped(values: pl.Series, texts: pl.Series) -> pl.Series:
    """Return numbers, null for texts such as `1.299` in a column that has decimal commas: it is a thousand there."""
    if not has_decimal_commas(texts.filter(values.is_null())):
        return values
    return _null_where(values, texts.str.contains(_GROUPED))


def property_number(column: pl.Series, missing_values: Collection[str] = ()) -> tuple[pl.Series, list[Problem]]:
    """Return finite numbers, 1 and 0 for true and false, as `model.columns.number_value` has them."""
    if column.dtype == pl.String:
        column = category(column).replace({"true": "1", "false": "0"})
    return number(column, missing_values)


def amount(column: pl.Series, missing_values: Collection[str] = ()) -> tuple[pl.Series, list[Problem]]:
    """Return finite numbers that are not negative: prices and quantities."""
    values, problems = number(column, missing_values)
    return values, [*problems, ((values < 0).fill_null(value=False), "negative")]


def currency(texts: pl.Series) -> tuple[pl.Series, list[Problem]]:
    """Return ISO 4217 codes."""
    codes = {text: currency_code(text) for text in texts.unique().drop_nulls()}
    found = texts.replace_strict(codes, default=None, return_dtype=pl.String)
    return found, [(texts.is_not_null() & found.is_null(), "no ISO 4217 code")]


def boolean(column: pl.Series, missing_values: Collection[str] = ()) -> tuple[pl.Series, list[Problem]]:
    """Return truth values, of 1 and 0, true and false, yes and no in any case."""
    if column.dtype == pl.Boolean:
        return column, []
    texts = category(column, missing_values)
    values = texts.str.to_lowercase().replace_strict(_TRUE_OR_FALSE, default=None, return_dtype=pl.Boolean)
    return values, [(texts.is_not_null() & values.is_null(), "neither true nor false")]


def time_ms(
    column: pl.Series, time_format: str, missing_values: Collection[str] = ()
) -> tuple[pl.Series, list[Problem]]:
    """Return milliseconds, since 1970 or the session's start; `time_format` is one of a `ColumnMapping`.

    Columns that Parquet types as dates or times ignore the format. Times without an offset are UTC.
    """
    shortened = []
    if column.dtype.is_temporal():
        values, given = _epoch_ms(column), column.is_not_null()
        unreadable = given & values.is_null()
    elif time_format in MS_PER_UNIT:
        numbers, problems = number(column, missing_values)
        given = problems[0][0] | numbers.is_not_null()
        in_ms = numbers * MS_PER_UNIT[time_format]
        values = _null_where(in_ms, ~in_ms.is_between(0, END_OF_TIME_MS - 1)).round().cast(pl.Int64)
        unreadable = problems[0][0]
        if column.dtype == pl.String:
            in_exponent_form = column.str.strip_chars().str.contains(EXPONENT_FORM).fill_null(value=False)
            shortened = [(in_exponent_form, INEXPONENT_FORM)]
        elif column.dtype == pl.Float32:
            # Seconds since 1970 as 32-bit floats are multiples of 128.
            shortened = [(_inexact(column), INEXACT)]
    else:
        texts = text(column, missing_values)
        given = texts.is_not_null()
        values = _iso_ms(texts) if time_format == "iso" else parsed_ms(texts, time_format)
        unreadable = given & values.is_null()
    outside = ~values.is_between(0, END_OF_TIME_MS - 1).fill_null(value=False) & given & ~unreadable
    return values, [
        (~given, MISSING),
        *shortened,
        (unreadable, NO_TIME),
        (outside, NO_DATE),
    ]


def are_local(column: pl.Series, time_format: str) -> pl.Series:
    """Return which times have neither an offset nor a word for UTC; false for numbers."""
    if column.dtype.is_temporal():
        is_local = not (isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone)
    elif time_format in MS_PER_UNIT or "%z" in time_format or column.dtype != pl.String:
        is_local = False
    else:
        return ~(column.str.contains(_OFFSET) | column.str.contains(_SAYS_UTC)).fill_null(value=False)
    return pl.repeat(is_local, len(column), dtype=pl.Boolean, eager=True)


def mixes_offsets(column: pl.Series) -> bool:
    """Return whether some texts of ISO 8601 times have an offset and others have neither one nor `Z`."""
    if column.dtype != pl.String:
        return False
    has_offset = column.str.contains(_OFFSET)
    return bool(has_offset.any()) and bool((~has_offset & ~column.str.contains(_IN_UTC)).any())


def _as_text(column: pl.Series) -> pl.Series:
    dtype = column.dtype
    if dtype == pl.String:
        return column
    if dtype.is_float():
        is_whole = (column.abs() <= _LARGEST_EXACT) & (column == column.floor())
        whole = _null_where(column, ~is_whole.fill_null(value=False)).cast(pl.Int64).cast(pl.String)
        others = _null_where(column, is_whole)
        distinct = others.drop_nulls().unique()
        written = pl.Series([canonical_text(value) for value in distinct], dtype=pl.String)
        return whole.zip_with(
            whole.is_not_null(), others.replace_strict(distinct, written, default=None, return_dtype=pl.String)
        )
    if dtype.is_nested() or dtype == pl.Object:
        raise SourceError(f"column {column.name!r} holds {dtype}, not single values")
    return column.cast(pl.String)


def _placeholders(texts: pl.Series, is_short: pl.Series) -> pl.Series:
    """Return which texts are placeholders; `is_placeholder_id` judges the few that may be one."""
    may_be = texts.is_in(_LONG_PLACEHOLDERS) | texts.str.contains(r"^[{$%<]")
    listed = texts.filter(is_short).str.to_lowercase().is_in(_SHORT_PLACEHOLDERS)
    mask = may_be.fill_null(value=False) | _spread(listed, is_short)
    if not mask.any():
        return mask
    suspects = texts.filter(mask).unique()
    return mask & texts.is_in(suspects.filter(pl.Series([is_placeholder_id(value) for value in suspects])).implode())


def _spread(values: pl.Series, mask: pl.Series) -> pl.Series:
    """Return truth values of the rows of a mask as a column of all rows, false elsewhere."""
    if not values.any():
        return pl.repeat(value=False, n=len(mask), dtype=pl.Boolean, eager=True)
    spread = np.zeros(len(mask), dtype=bool)
    spread[mask.to_numpy()] = values.fill_null(value=False).to_numpy()
    return pl.Series(spread)


def _iso_ms(texts: pl.Series) -> pl.Series:
    """Read ISO 8601 dates and times, with `T` or a space, with `Z`, `UTC`, an offset or none."""
    # Most columns have one of two spellings throughout, which need no regular expression.
    values = _datetime_ms(texts.str.strip_suffix(" UTC").str.strip_suffix("Z"), "%Y-%m-%d %H:%M:%S%.f")
    open_ones = values.is_null() & texts.is_not_null()
    if not open_ones.any():
        return values
    texts = _null_where(texts, ~open_ones)
    return values.zip_with(~open_ones, _rarer_iso_ms(texts))


def _rarer_iso_ms(texts: pl.Series) -> pl.Series:
    plain = texts.str.replace(r"\s*(UTC|GMT|Z)$", "").str.replace(r"^(\S+)\s+", "${1}T")
    values = _datetime_ms(plain, "%Y-%m-%dT%H:%M:%S%.f")
    if (values.is_null() & plain.is_not_null()).any():
        # Rarer spellings: a comma before the fraction, slashes in the date.
        plain = plain.str.replace(r"(:\d\d),(\d)", "${1}.${2}").str.replace(
            r"^(\d{4})/(\d\d?)/(\d\d?)", "${1}-${2}-${3}"
        )
        values = _datetime_ms(plain, "%Y-%m-%dT%H:%M:%S%.f")
    for time_format in _ISO_FORMATS:
        open_ones = values.is_null() & plain.is_not_null()
        if not open_ones.any():
            break
        values = values.zip_with(~open_ones, _datetime_ms(_null_where(plain, ~open_ones), time_format))
    return values


def _datetime_ms(texts: pl.Series, time_format: str) -> pl.Series:
    return _epoch_ms(texts.str.to_datetime(time_format, time_unit="ms", strict=False))


def _epoch_ms(times: pl.Series) -> pl.Series:
    if times.dtype == pl.Date:
        times = times.cast(pl.Datetime("ms"))
    if not isinstance(times.dtype, pl.Datetime):
        raise SourceError(f"column {times.name!r} holds {times.dtype}, not dates or times")
    return times.dt.timestamp("ms")


def _replaced(texts: pl.Series, mask: pl.Series, change: Callable[[str], str | None]) -> pl.Series:
    """Return texts with `change` applied, once for each distinct text of the mask."""
    odd = texts.filter(mask).unique()
    if not len(odd):
        return texts
    changed = pl.Series([change(value) for value in odd], dtype=pl.String)
    return texts.replace_strict(odd, changed, default=texts, return_dtype=pl.String)


def _null_where(values: pl.Series, mask: pl.Series) -> pl.Series:
    return values.to_frame("value").select(pl.when(mask.not_()).then("value").otherwise(None)).to_series()
