"""Warnings about a log's sessions, in plain words: ids that are not one visit, and rows that repeat."""

import statistics
from datetime import timedelta
from typing import Any, Final

from training.data.prepared import Counts
from training.data.sessions import MS_PER_DAY, SessionRules
from training.data.shards import ShardWriter
from training.data.sources import Source

# Share of duplicates that needs a reason.
_MANY_DUPLICATES: Final = 0.03
# A session is implausible with this share of all rows and this many rows, or with so many rows a second.
_LARGE_SHARE: Final = 0.05
_LARGE_ROWS: Final = 30
_LARGE_TIMES_MEDIAN: Final = 10
_ROWS_A_SECOND: Final = 5.0
# Steps back in time at other hours, where those on nights of a clock change are the fault of the clock.
_FEW_STEPS: Final = 0.1
_NAMED: Final = 5


def session_warnings(writer: ShardWriter, source: Source, counts: Counts, rules: SessionRules) -> list[str]:
    """Return what looks wrong after the second pass.

    Args:
        writer: of the sessions.
        source: of the log.
        counts: of all rows.
        rules: how events became sessions.
    """
    sessions, found = counts.sessions, []
    if sessions.sessions_without_label:
        found.append(
            f"{sessions.sessions_without_label:,} sessions are left out, since a row of theirs that says purchase "
            "could not be read: their label is unknown"
        )
    if _are_many(writer.equal_rows, counts):
        share = writer.equal_rows / max(counts.rows_read - counts.rows_lookup, 1)
        found.append(
            f"{writer.equal_rows:,} rows ({share:.0%}) agree with another in every column that is read, and "
            + (
                "count once. Were they logged twice? If times are too coarse, or a column that tells them apart is not "
                "mapped, --equal-rows keep keeps them"
                if rules.equal_rows_are_duplicates
                else "count as events of their own, as they would in the service. If they were logged twice, "
                "--equal-rows drop counts each once"
            )
        )
    if source.clock == "calendar" and not source.by_visitor and writer.longer_than_a_day:
        found.append(
            f"{writer.longer_than_a_day:,} session ids span more than a day: an id that several visitors or days share "
            "is not one session. --session-key VISITOR,SESSION joins columns to one key"
        )
    night, others = writer.backward
    if night and others <= _FEW_STEPS * night:
        found.append(
            f"times step back {night:,} times, and only on nights on which clocks are put back: are they local times? "
            "Then the events of that hour are out of order. Write the times in UTC, or with an offset such as +01:00"
        )
    suspects = _implausible(writer, counts, is_calendar=source.clock == "calendar")
    if suspects:
        found.append(f"sessions of an implausible size or rate: {'; '.join(suspects[:_NAMED])}")
    return found


def session_notes(writer: ShardWriter, counts: Counts, rules: SessionRules) -> list[str]:
    """Return what was done with equal rows, where they are too few for a warning; arguments as above."""
    if not writer.equal_rows or _are_many(writer.equal_rows, counts):
        return []
    done = "count once" if rules.equal_rows_are_duplicates else "count as events of their own"
    other = "keep" if rules.equal_rows_are_duplicates else "drop"
    return [f"{writer.equal_rows:,} rows agree with another in every column, and {done} (--equal-rows {other} if not)"]


def _are_many(equal_rows: int, counts: Counts) -> bool:
    return equal_rows > _MANY_DUPLICATES * max(counts.rows_read - counts.rows_lookup, 1)


def _implausible(writer: ShardWriter, counts: Counts, *, is_calendar: bool) -> list[str]:
    rows = writer.largest.to_dicts()
    total = max(counts.rows_read - counts.rows_lookup, 1)
    typical = statistics.median(entry["rows"] for entry in rows) if rows else 0
    return [_described(entry) for entry in rows if _is_implausible(entry, total, typical, is_calendar=is_calendar)]


def _is_implausible(entry: dict[str, Any], total: int, typical: float, *, is_calendar: bool) -> bool:
    if entry["rows"] < _LARGE_ROWS:
        return False
    span_s = (entry["last_ms"] - entry["first_ms"]) / 1000
    is_large = entry["rows"] > _LARGE_SHARE * total and entry["rows"] > _LARGE_TIMES_MEDIAN * typical
    is_long = is_calendar and entry["last_ms"] - entry["first_ms"] > MS_PER_DAY
    return is_large or is_long or (is_calendar and entry["rows"] > _ROWS_A_SECOND * (span_s + 1))


def _described(entry: dict[str, Any]) -> str:
    span = timedelta(milliseconds=entry["last_ms"] - entry["first_ms"])
    return f"{entry['session_id']!r} has {entry['rows']:,} rows over {span}"
