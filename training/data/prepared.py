"""Prepared sessions on disk: `prepare` writes them, and every later step reads them.

A directory of `dataset.json`, `events-0000.parquet` and so on, and `rejected.csv`; see docs/event-table.md.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from model.properties import PropertySpec
from training.data.sessions import SessionCounts
from training.data.sources.mapping import Clock

FORMAT_VERSION: Final = 1
KIND: Final = "willbuy prepared sessions"
DATASET_FILE: Final = "dataset.json"
REJECTED_FILE: Final = "rejected.csv"
NULLED_FILE: Final = "nulled.csv"
LOG_PAGE: Final = "log.html"
# Counts that earlier releases do not write; they stay out of `dataset.json` while they are zero.
_LATER_COUNTS: Final = ("rows_dropped", "rows_without_label", "sessions_without_label")


class PreparedDatasetError(ValueError):
    """A directory does not hold prepared sessions that this release reads, or must not be replaced by some."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of all rows.

    `rows_read` is the sum of `rows_lookup`, `rows_rejected`, `rows_dropped`, and of the rows and events of `sessions`.

    Attributes:
        rows_read: data rows of all files.
        rows_lookup: rows that describe items.
        rejected: malformed rows by reason; `rejected.csv` has each.
        sessions: counts of events and sessions.
        rows_dropped: rows of event names that the mapping leaves out.
    """

    rows_read: int
    rows_lookup: int
    rejected: dict[str, int]
    sessions: SessionCounts
    rows_dropped: int = 0

    @property
    def rows_rejected(self) -> int:
        """Malformed rows."""
        return sum(self.rejected.values())


@dataclass(frozen=True, slots=True)
class PreparedDataset:
    """Prepared sessions, as `dataset.json` describes them.

    Attributes:
        path: the directory.
        shards: its Parquet files; every session is whole in one, its rows adjacent and in order.
        source_format: the format that the log was in.
        clock: meaning of the times.
        properties: the properties, in columns `property.<name>`.
        counts: of all rows.
        first_time_ms, last_time_ms: of the prepared events; None without calendar time.
        settings: of `prepare`.
        report: what the log looked like, for people: `warnings`, `notes`, event `names` with what each was read as,
            `purchase_names`, `event_renames`, `nulled` values, `rows_by_hour` and `largest_sessions`.
    """

    path: Path
    shards: list[Path]
    source_format: str
    clock: Clock
    properties: tuple[PropertySpec, ...]
    counts: Counts
    first_time_ms: int | None
    last_time_ms: int | None
    settings: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    def scan(self) -> pl.LazyFrame:
        """Return all events, lazily, shard after shard."""
        return pl.scan_parquet(self.shards, glob=False)

    def sessions(self) -> pl.DataFrame:
        """Return one row a session: `session_id`, `session_start_ms`, `outcome`, `events`."""
        by_session = self.scan().group_by("session_id", "session_start_ms", "outcome").agg(events=pl.len())
        return by_session.sort("session_start_ms", "session_id").collect(engine="streaming")

    def facts(self) -> dict[str, Any]:
        """Return format, clock, counts and properties as a report shows them."""
        described = self.to_dict()
        counts = {name: value for name, value in described["counts"].items() if name != "rejected" and value}
        return {
            "format": self.source_format,
            "times": self.clock,
            **counts,
            "properties": ", ".join(f"{spec.name} ({spec.kind})" for spec in self.properties) or "none",
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `dataset.json`."""
        counts = {
            "rows_read": self.counts.rows_read,
            "rows_lookup": self.counts.rows_lookup,
            "rows_rejected": self.counts.rows_rejected,
            "rows_dropped": self.counts.rows_dropped,
            **asdict(self.counts.sessions),
            "rejected": self.counts.rejected,
        }
        return {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "source_format": self.source_format,
            "clock": self.clock,
            "first_time_ms": self.first_time_ms,
            "last_time_ms": self.last_time_ms,
            "shards": [shard.name for shard in self.shards],
            "properties": [asdict(declared) for declared in self.properties],
            "counts": {name: count for name, count in counts.items() if count or name not in _LATER_COUNTS},
            "settings": self.settings,
            "report": self.report,
        }


def is_prepared(path: Path) -> bool:
    """Return whether the directory holds prepared sessions, of any format version."""
    try:
        document = json.loads((path / DATASET_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("kind") == KIND


def read_prepared(path: Path) -> PreparedDataset:
    """Open prepared sessions.

    Raises:
        PreparedDatasetError: there are none, they are incomplete, or of another format version.
    """
    if not is_prepared(path):
        raise PreparedDatasetError(f"{path}: no prepared sessions here; `willbuy prepare` makes them of a log")
    document = json.loads((path / DATASET_FILE).read_text("utf-8"))
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise PreparedDatasetError(
            f"{path}: prepared sessions of format version {version}; this release reads {FORMAT_VERSION}: prepare again"
        )
    try:
        dataset = _from_document(path, document)
    except (KeyError, TypeError, AttributeError) as exc:
        raise PreparedDatasetError(f"{path}: {DATASET_FILE} is damaged: {exc!r}") from exc
    for shard in dataset.shards:
        if not shard.is_file():
            raise PreparedDatasetError(f"{path}: the shard {shard.name} is missing: prepare again")
    return dataset


def write_description(dataset: PreparedDataset) -> None:
    """Write `dataset.json` into the folder of the shards."""
    text = json.dumps(dataset.to_dict(), indent=2, ensure_ascii=False)
    (dataset.path / DATASET_FILE).write_text(text + "\n", "utf-8")


def _from_document(path: Path, document: dict[str, Any]) -> PreparedDataset:
    counts = dict(document["counts"])
    counts.pop("rows_rejected")
    rows_dropped = counts.pop("rows_dropped", 0)
    rows_read, rows_lookup, rejected = (counts.pop(name) for name in ("rows_read", "rows_lookup", "rejected"))
    return PreparedDataset(
        path=path,
        shards=[path / name for name in document["shards"]],
        source_format=document["source_format"],
        clock=document["clock"],
        properties=tuple(PropertySpec(**declared) for declared in document["properties"]),
        counts=Counts(rows_read, rows_lookup, rejected, SessionCounts(**counts), rows_dropped),
        first_time_ms=document["first_time_ms"],
        last_time_ms=document["last_time_ms"],
        settings=document["settings"],
        report=document.get("report", {}),
    )
