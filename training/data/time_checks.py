"""What times that look wrong are likely to be: another unit, another pattern, a clock that was read wrongly."""

import re
import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Final

from training.data.sources.conversion import Reading
from training.data.sources.time_patterns import swapped_day_and_month
from training.data.sources.values import MS_PER_UNIT

UNIT_WORDS: Final = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_DATES: Final = tuple(
    sign.join(order) for sign, order in product("./-", (("%d", "%m", "%Y"), ("%m", "%d", "%Y"), ("%Y", "%m", "%d")))
)
_CLOCKS: Final = (
    *("%H:%M", "%H:%M:%S", "%H:%M:%S.%f", "%H:%M:%S %z", "%H:%M:%S%z"),
    *("%I:%M %p", "%I:%M:%S %p", "%I:%M:%S.%f %p"),
)
_PATTERNS: Final = (
    *(f"{date} {clock}" for date, clock in product(_DATES, _CLOCKS)),
    *(f"{date}, {clock}" for date, clock in product(_DATES, _CLOCKS)),
    *("%d/%b/%Y:%H:%M:%S %z", "%a, %d %b %Y %H:%M:%S %z", "%a, %d %b %Y %H:%M:%S GMT", "%Y%m%d%H%M%S"),
    *("%Y%m%dT%H%M%SZ", "%Y-%m-%d-%H.%M.%S.%f", "%d-%b-%Y %H:%M:%S", "%d %b %Y %H:%M:%S", "%b %d, %Y %I:%M:%S %p"),
    *("%a %b %d %H:%M:%S %Y", "%a %b %d %Y %H:%M:%S GMT%z"),
)
# A zone's name after a time, and what browsers write after an offset.
_ZONE: Final = re.compile(r"(?<=[\d:])\s+([A-Z]{2,5})$")
_ZONE_AFTER_OFFSET: Final = re.compile(r"\s*\([^()]*\)$")
# Days since 1899-12-30, as spreadsheets count them.
_SPREADSHEET_DAYS: Final = (32_874.0, 73_050.0)
_MOST: Final = 0.9
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ENOUGH_ROWS: Final = 100
_ENOUGH_HOURS: Final = 8


def hint(texts: Sequence[str], reading: Reading, time_format: str) -> str:
    """Return what texts that could not be read as times are likely to be, as a sentence with the option to use.

    Args:
        texts: some of them, as the log has them.
        reading: the plausible times.
        time_format: how they were read.
    """
    unit = likely_unit(texts, reading)
    if unit:
        return f" The times look like {UNIT_WORDS[unit]}: --time-unit {unit}."
    middle = _middle(texts)
    if middle is not None and _SPREADSHEET_DAYS[0] <= middle <= _SPREADSHEET_DAYS[1]:
        return (
            " The times look like a spreadsheet's count of days: format the column as yyyy-mm-dd hh:mm:ss, and save it "
            "again."
        )
    patterns = likely_patterns(texts, reading, time_format)
    if patterns:
        return f" The times look like {' or '.join(f'--time-format {pattern!r}' for pattern in patterns)}."
    zones = sorted({found[1] for text in texts if (found := _ZONE.search(text.strip()))} - {"AM", "PM"})
    if zones:
        return (
            f" A zone's name does not tell its offset ({', '.join(zones)}): write the times in UTC, or with an offset "
            "such as +01:00."
        )
    return ""


def likely_unit(texts: Sequence[str], reading: Reading) -> str | None:
    """Return the unit in which most of the texts are times in the plausible range; None if there is none."""
    middle = _middle(texts)
    if middle is None or reading.earliest_ms is None or reading.latest_ms is None:
        return None
    for unit in UNIT_WORDS:
        if reading.earliest_ms <= middle * MS_PER_UNIT[f"epoch_{unit}"] <= reading.latest_ms:
            return unit
    return None


def likely_patterns(texts: Sequence[str], reading: Reading, time_format: str = "") -> list[str]:
    """Return the patterns that read nearly all of the texts as plausible times; two where day and month may be either.

    Where the times were read by a pattern and day and month changed places, that comes first.
    """
    given = [text.strip() for text in texts]
    if not given:
        return []
    swapped = swapped_day_and_month(time_format)
    if swapped and _share(given, swapped, reading) >= _MOST:
        return [swapped]
    return [pattern for pattern in _PATTERNS if _share(given, pattern, reading) >= _MOST][:2]


def clock_warnings(days: Iterable[int], hours: Sequence[int], time_format: str) -> list[str]:
    """Return warnings about times that were read, and seem to mean something else.

    Args:
        days: since 1970, those with rows.
        hours: rows of each hour of the day.
        time_format: how the times were read.
    """
    found = []
    dates = [_EPOCH + timedelta(days=day) for day in days]
    swapped = swapped_day_and_month(time_format)
    if swapped and len(dates) > 1 and len({date.day for date in dates}) == 1:
        found.append(
            f"all rows are on day {dates[0].day} of a month, in {len(dates)} months: have day and month changed "
            f"places? --time-format {swapped!r} reads them the other way round"
        )
    is_half = not hours[0] and not any(hours[13:]) and all(hours[hour] for hour in (1, 11, 12))
    if is_half and sum(hours) >= _ENOUGH_ROWS and sum(map(bool, hours)) >= _ENOUGH_HOURS:
        found.append(
            "no row is after 12:59 or before 01:00: does the clock count to 12, and the column lack AM and PM? Then "
            "the afternoon is read as the morning, and events are out of order"
        )
    return found


def _middle(texts: Sequence[str]) -> float | None:
    """Return the median of the numbers, where most of the texts are some."""
    numbers = []
    for text in texts:
        try:
            numbers.append(float(text))
        except ValueError:
            continue
    return statistics.median(numbers) if 2 * len(numbers) > len(texts) else None


def _share(texts: Sequence[str], pattern: str, reading: Reading) -> float:
    return sum(_is_time(_ZONE_AFTER_OFFSET.sub("", text), pattern, reading) for text in texts) / len(texts)


def _is_time(text: str, pattern: str, reading: Reading) -> bool:
    try:
        time = datetime.strptime(text, pattern)  # noqa: DTZ007 - without an offset it is UTC, as documented
    except ValueError:
        return False
    if reading.earliest_ms is None or reading.latest_ms is None:
        return True
    moment_ms = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000
    return reading.earliest_ms <= moment_ms <= reading.latest_ms
