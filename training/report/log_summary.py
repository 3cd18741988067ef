"""What became of a log, for a person to check at a glance: the content of the page and of the terminal's tables."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import polars as pl

from model.clock import utc
from training.data.prepared import REJECTED_FILE, PreparedDataset

PROPERTY_PREFIX: Final = "property."
_LINES_SHOWN: Final = 5
# Upper ends of the groups of sessions by their number of events; the last group has no end.
_LENGTHS: Final = (1, 2, 3, 5, 10, 20, 50, 100)
_MANY_OPEN: Final = 0.2
_MANY_REJECTED: Final = 0.01
_MANY_LONELY_PURCHASES: Final = 0.1
_FEW_BUYERS: Final = 100
_RARE, _FREQUENT = 0.001, 0.3


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of some rows.

    Attributes:
        name: in a word or two.
        rows: how many.
        meaning: why.
        share: of all rows.
    """

    name: str
    rows: int
    meaning: str
    share: float


@dataclass(frozen=True, slots=True)
class Rejection:
    """Rows that were rejected for one reason, and where the first of them are."""

    reason: str
    rows: int
    where: str


@dataclass(frozen=True, slots=True)
class LogSummary:
    """The content of a page on a prepared log.

    Attributes:
        dataset: what was prepared.
        created: when.
        fates: rows by fate; they add up to all rows.
        rejections: rejected rows by reason, most frequent first.
        lengths: sessions by their number of events before the purchase: label and number.
        median_length: of the events of a session.
        names: `name`, `read_as`, `rows` of event names.
        hours: rows by hour of the day, UTC; empty without calendar time.
        largest: `session_id`, `rows`, `first`, `last`, `length` of the largest sessions.
        warnings: in plain words.
        notes: what was found out about the log, and is no reason for concern.
    """

    dataset: PreparedDataset
    created: datetime
    fates: list[Fate]
    rejections: list[Rejection]
    lengths: list[tuple[str, int]]
    median_length: int
    names: list[dict[str, Any]]
    hours: list[int]
    largest: list[dict[str, str]]
    warnings: list[str]
    notes: list[str]

    @property
    def buyer_share(self) -> float:
        """Share of sessions that bought."""
        sessions = self.dataset.counts.sessions
        return sessions.buyers / max(sessions.sessions, 1)

    @property
    def span(self) -> tuple[str, str, str] | None:
        """First time, last time and their distance; None without calendar time."""
        first, last = self.dataset.first_time_ms, self.dataset.last_time_ms
        if first is None or last is None:
            return None
        return time_text(first), time_text(last), duration_text(last - first)


def summarise(dataset: PreparedDataset) -> LogSummary:
    """Return the summary of prepared sessions."""
    lengths, median = _lengths(dataset)
    report = dataset.report
    return LogSummary(
        dataset=dataset,
        created=datetime.now(UTC),
        fates=_fates(dataset),
        rejections=_rejections(dataset.path / REJECTED_FILE),
        lengths=lengths,
        median_length=median,
        names=list(report.get("names", [])),
        hours=list(report.get("rows_by_hour", [])),
        largest=[_largest(entry, dataset) for entry in report.get("largest_sessions", [])],
        warnings=[*report.get("warnings", []), *_warnings(dataset)],
        notes=list(report.get("notes", [])),
    )


def time_text(milliseconds: int) -> str:
    """Return a time as a person reads it."""
    return f"{utc(milliseconds):%Y-%m-%d %H:%M:%S}"


def duration_text(milliseconds: int) -> str:
    """Return a duration in its two largest units."""
    whole = timedelta(milliseconds=milliseconds)
    hours, seconds = divmod(whole.seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    parts = [(whole.days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s")]
    given = [f"{amount} {unit}" for amount, unit in parts if amount]
    return " ".join(given[:2]) or "0 s"


def _fates(dataset: PreparedDataset) -> list[Fate]:
    counts, sessions = dataset.counts, dataset.counts.sessions
    rows = [
        ("kept", sessions.events, "events of sessions, before any purchase"),
        ("at a purchase or later", sessions.rows_at_or_after_purchase, "they decide the label and are no input"),
        ("in open sessions", sessions.rows_in_open_sessions, "the log ends before the session's outcome is known"),
        ("duplicate", sessions.rows_duplicate, "equal to another row in every column that is read"),
        ("without a label", sessions.rows_without_label, "in sessions whose purchase could not be read"),
        ("rejected", counts.rows_rejected, "without a readable session, time or name"),
        ("left out by name", counts.rows_dropped, "named by --drop"),
        ("no events", counts.rows_lookup, "they describe items or visitors"),
    ]
    return [Fate(name, count, why, count / max(counts.rows_read, 1)) for name, count, why in rows if count]


def _rejections(path: Path) -> list[Rejection]:
    if not path.is_file():
        return []
    rows = pl.scan_csv(path, infer_schema=False).with_columns(
        reason=pl.when(pl.col("field").fill_null("") != "")
        .then(pl.format("{}: {}", "field", "reason"))
        .otherwise("reason"),
        where=pl.format("{}:{}", "file", "line"),
    )
    grouped = rows.group_by("reason").agg(rows=pl.len(), where=pl.col("where").head(_LINES_SHOWN))
    found = grouped.sort("rows", "reason", descending=[True, False]).collect(engine="streaming")
    return [
        Rejection(reason, count, ", ".join(where) + (", …" if count > len(where) else ""))
        for reason, count, where in found.iter_rows()
    ]


def _lengths(dataset: PreparedDataset) -> tuple[list[tuple[str, int]], int]:
    """Return sessions by their number of events, and the median; one shard at a time, as a log may exceed memory."""
    counts: Counter[int] = Counter()
    for shard in dataset.shards:
        events = pl.scan_parquet(shard, glob=False).group_by("session_id").agg(events=pl.len()).select("events")
        counts.update(dict(events.collect()["events"].value_counts().iter_rows()))
    groups, low = [], 1
    for high in _LENGTHS:
        label = f"{low}" if low == high else f"{low} to {high}"
        groups.append((label, sum(number for events, number in counts.items() if low <= events <= high)))
        low = high + 1
    groups.append((f"over {_LENGTHS[-1]}", sum(number for events, number in counts.items() if events > _LENGTHS[-1])))
    while len(groups) > 1 and not groups[-1][1]:
        groups.pop()
    return groups, _median(counts)


def _median(counts: Counter[int]) -> int:
    seen, half = 0, counts.total() / 2
    for events in sorted(counts):
        seen += counts[events]
        if seen >= half:
            return events
    return 0


def _largest(entry: dict[str, Any], dataset: PreparedDataset) -> dict[str, str]:
    is_dated = dataset.clock != "session"
    return {
        "session_id": str(entry["session_id"]),
        "rows": f"{entry['rows']:,}",
        "first": time_text(entry["first_ms"]) if is_dated else "",
        "length": duration_text(entry["last_ms"] - entry["first_ms"]),
    }


def _warnings(dataset: PreparedDataset) -> list[str]:
    """Return what the counts alone show; `training.data` adds what it saw while it read."""
    counts, sessions = dataset.counts, dataset.counts.sessions
    found = []
    if counts.rows_rejected > _MANY_REJECTED * counts.rows_read:
        share = counts.rows_rejected / counts.rows_read
        found.append(f"{counts.rows_rejected:,} rows ({share:.1%}) could not be used; {REJECTED_FILE} lists each")
    if sessions.sessions_open > _MANY_OPEN * sessions.sessions:
        found.append(
            f"{sessions.sessions_open:,} sessions were still open at the log's end, so that their outcome is unknown; "
            "they are left out. --keep-open-sessions keeps them"
        )
    lonely = sessions.sessions_without_event_before_purchase
    if lonely > _MANY_LONELY_PURCHASES * max(sessions.buyers, 1):
        found.append(
            f"{lonely:,} purchases have no event before them in their session: does a server log them under another "
            "id? Then the visitors who bought count as if they had not"
        )
    if 0 < sessions.buyers < _FEW_BUYERS:
        found.append(f"{sessions.buyers:,} buyers are few to learn from; a few hundred make a model")
    share = sessions.buyers / max(sessions.sessions, 1)
    if sessions.buyers and not _RARE < share < _FREQUENT:
        found.append(f"{share:.2%} of the sessions bought, where shops have 0.5 to 10 %: is the right name a purchase?")
    empty = _empty_properties(dataset)
    if empty:
        found.append(f"no row has a value of the properties {', '.join(empty)}")
    return found


def _empty_properties(dataset: PreparedDataset) -> list[str]:
    names = [spec.name for spec in dataset.properties]
    if not names:
        return []
    given = dataset.scan().select(pl.col(f"{PROPERTY_PREFIX}{name}").count() for name in names)
    return [name for name, count in zip(names, given.collect(engine="streaming").row(0), strict=True) if not count]
