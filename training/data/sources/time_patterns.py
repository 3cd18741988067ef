"""Times written in a strptime pattern, with the meaning that Python's `datetime.strptime` gives them.

polars' own directives differ: its `%f` counts nanoseconds. So polars reads only the patterns whose meaning is the same
in both; Python reads all others, once for each distinct text.
"""

import re
from datetime import UTC, datetime
from typing import Final

import polars as pl

from training.data.sources.errors import SourceError

_DIRECTIVE: Final = re.compile(r"%(.)")
_DATE: Final = frozenset("YyGcx")
_TIME_OF_DAY: Final = frozenset("HIcX")
# Without `%p`, Python takes `01:30` of the afternoon for the night.
_HALF_DAY: Final = "I"
_PYTHON: Final = frozenset("aAwdbBmyYHIMSfpjzZUWcxXGuV%")
_SAME_IN_POLARS: Final = frozenset("YmdHMSz")
_SWAPPED: Final = {"d": "m", "m": "d"}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ZONES: Final = re.compile(r"\b(?:UTC|GMT)\b|Z$", re.IGNORECASE)


def check_pattern(pattern: str) -> None:
    """Raise `SourceError` unless a pattern gives calendar times: a date and a time of day."""
    directives = _DIRECTIVE.findall(pattern.replace("%%", ""))
    unknown = [directive for directive in directives if directive not in _PYTHON]
    if unknown or pattern.replace("%%", "").endswith("%"):
        wrong = f"%{unknown[0]}" if unknown else "% at its end"
        raise SourceError(
            f"time_format {pattern!r}: {wrong} is no directive of Python's strptime; those are "
            f"{', '.join('%' + known for known in sorted(_PYTHON - {'%'}))}"
        )
    if not _DATE & set(directives):
        raise SourceError(f"time_format {pattern!r} has no date: a column with times of day alone has no order")
    if not _TIME_OF_DAY & set(directives):
        raise SourceError(
            f"time_format {pattern!r} has no time of day: a purchase would have the same time as the pages before it. "
            "Map the column of the time too, as in timestamp=Date+Time"
        )
    if _HALF_DAY in directives and "p" not in directives:
        raise SourceError(f"time_format {pattern!r}: %I counts to 12 and needs %p; %H counts to 23")


def check_time_zone(name: str) -> None:
    """Raise `SourceError` unless the name is that of a time zone."""
    try:
        in_utc(pl.Series([0]), name)
    except pl.exceptions.ComputeError as exc:
        raise SourceError(f"unknown time zone {name!r}; expected a name such as Europe/Berlin") from exc


def in_utc(local_ms: pl.Series, zone: str) -> pl.Series:
    """Return times in a zone, which were read as UTC, as milliseconds since 1970.

    Of a time that occurs twice, when clocks are put back, the first is taken; one that they skip is null.
    """
    local = local_ms.cast(pl.Int64).cast(pl.Datetime("ms"))
    return local.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").dt.timestamp("ms")


def swapped_day_and_month(pattern: str) -> str | None:
    """Return the pattern with `%d` and `%m` in each other's place; None where it does not have both."""
    if "%" not in pattern or not {"d", "m"} <= set(_DIRECTIVE.findall(pattern)):
        return None
    return _DIRECTIVE.sub(lambda found: "%" + _SWAPPED.get(found[1], found[1]), pattern)


def parsed_ms(texts: pl.Series, pattern: str) -> pl.Series:
    """Return milliseconds since 1970 of stripped texts, null where one does not fit the pattern."""
    polars_pattern = _polars_pattern(pattern)
    if polars_pattern is not None:
        times = texts.str.to_datetime(polars_pattern, time_unit="ms", strict=False)
        return times.dt.timestamp("ms")
    distinct = texts.drop_nulls().unique()
    read = [_python_ms(text, pattern) for text in distinct]
    return texts.replace_strict(distinct, pl.Series(read, dtype=pl.Int64), default=None, return_dtype=pl.Int64)


def _polars_pattern(pattern: str) -> str | None:
    """Return the pattern as polars writes it; None where polars would read something else."""
    rest = pattern.replace(".%f", "")
    directives = _DIRECTIVE.findall(rest)
    if not set("YmdHM") <= set(directives) <= _SAME_IN_POLARS or len(set(directives)) != len(directives):
        return None
    if pattern.count("%f") > 1 or (".%f" in pattern and "%S.%f" not in pattern):
        return None
    return pattern.replace(".%f", "%.f").replace("%z", "%#z")


def _python_ms(text: str, pattern: str) -> int | None:
    try:
        time = datetime.strptime(text, pattern)  # noqa: DTZ007 - without an offset it is UTC, as documented
    except ValueError:
        return None
    if time.tzinfo is None:
        if "%Z" in pattern and not _ZONES.search(text):
            return None  # a zone's name does not tell its offset
        time = time.replace(tzinfo=UTC)
    delta = time - _EPOCH
    return delta.days * 86_400_000 + delta.seconds * 1000 + delta.microseconds // 1000
