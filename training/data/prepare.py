"""From a raw log to prepared sessions, in two passes with bounded memory.

The first pass converts the log block by block and scatters its events over shards, by session. The second takes one
shard at a time: drops duplicates, orders, splits visitors into sessions, cuts each before its first purchase.
"""

import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, Protocol

import polars as pl

from training.config import DAYS_AHEAD, EARLIEST, IDLE_TIMEOUT_S, AfterPurchase
from training.data.log_account import LogAccount
from training.data.prepared import (
    NULLED_FILE,
    REJECTED_FILE,
    Counts,
    PreparedDataset,
    PreparedDatasetError,
    is_prepared,
    read_prepared,
    write_description,
)
from training.data.session_warnings import session_notes, session_warnings
from training.data.sessions import SOURCE_FILE, SessionRules, make_sessions
from training.data.shards import Partition, RejectedRows, ShardWriter
from training.data.sources import AUTO, Changes, ColumnMapping, Source, SourceError, open_source
from training.data.sources.conversion import PROPERTY_PREFIX, Reading
from training.data.sources.mapping import PropertyKind
from training.data.sources.session_tables import REFUSAL
from training.data.sources.tables import BLOCK_BYTES, is_compressed

__all__ = ["PreparedDataset", "PreparedDatasetError", "Progress", "prepare", "read_prepared"]

SHARD_BYTES: Final = 100_000_000
MAX_SHARDS: Final = 1024
# Assumed ratio of a log's text to its compressed size.
_COMPRESSION_RATIO: Final = 6
# From so many on, sessions of one row each are no chance.
_ENOUGH_SESSIONS: Final = 100


class Progress(Protocol):
    """Progress callback: bytes of the log read, then shards of sessions made."""

    def __call__(self, stage: Literal["reading", "sessions"], done: int, total: int) -> None:
        """Show the progress of a stage."""


def _no_progress(stage: Literal["reading", "sessions"], done: int, total: int) -> None:
    """Ignore the progress."""


def prepare(
    source_path: Path,
    out_dir: Path,
    *,
    format: str = AUTO,  # noqa: A002 - as the option
    mapping: ColumnMapping | None = None,
    idle_timeout_s: float = IDLE_TIMEOUT_S,
    keep_open_sessions: bool = False,
    changes: Changes | None = None,
    time_unit: str | None = None,
    time_zone: str | None = None,
    earliest: str = EARLIEST,
    days_ahead: float = DAYS_AHEAD,
    keep_placeholder_ids: bool = False,
    after_purchase: AfterPurchase = "ignore",
    equal_rows: str | None = None,
    needs_buyers: bool = True,
    first_rows: int | None = None,
    shard_bytes: int = SHARD_BYTES,
    block_bytes: int = BLOCK_BYTES,
    progress: Progress | None = None,
) -> PreparedDataset:
    """Turn a log into prepared sessions under `out_dir`, whole or not at all.

    Args:
        source_path: the log's file or folder.
        out_dir: output folder; a prepared dataset there is replaced, anything else is an error.
        format: a name in `training.data.sources.FORMATS`, `"mapping"` or `"auto"`.
        mapping: the columns of a log in none of the known formats.
        idle_timeout_s: splits a visitor's events into sessions; a session younger than that at the log's end is open.
        keep_open_sessions: keep open sessions, although a purchase may follow after the log's end.
        changes: what is read otherwise than the format or the mapping says.
        time_unit: s, ms, us or ns, of times that are numbers; None: as the format or the mapping says.
        time_zone: zone of times without an offset, such as `Europe/Berlin`; None: as the mapping says, else UTC.
        earliest: the earliest plausible time, ISO 8601; rows before it are rejected.
        days_ahead: days by which times may be later than now.
        keep_placeholder_ids: take `undefined` and its like for session ids.
        after_purchase: whether rows after a purchase are left out, or begin another session as in the service.
        equal_rows: `keep` or `drop` rows that agree in every column; None: as the format says, and a mapped log drops
            them where it has an event id or a time below the second.
        needs_buyers: whether a log without a buyer is an error.
        first_rows: about how many rows to read, for a first look; None: all.
        shard_bytes: approximate text of one shard, which must fit into memory several times.
        block_bytes: text read at a time.
        progress: called after each block and each shard.

    Raises:
        SourceError: the log cannot be read, or no session is left of it.
        PreparedDatasetError: `out_dir` holds anything but prepared sessions.
    """
    if not (math.isfinite(idle_timeout_s) and idle_timeout_s > 0):
        raise ValueError(f"idle_timeout_s must be positive, not {idle_timeout_s}")
    if equal_rows not in (None, "keep", "drop"):
        raise ValueError(f"equal_rows must be keep or drop, not {equal_rows!r}")
    show = progress or _no_progress
    reading = _reading(earliest, days_ahead, placeholders_count=keep_placeholder_ids)
    changes = replace(changes or Changes(), time_unit=time_unit, time_zone=time_zone)
    source = open_source(source_path, format, mapping, changes)
    names = [_name(path, source_path) for path in source.paths]
    settings = {
        "source": str(source_path),
        "files": names,
        "idle_timeout_s": idle_timeout_s,
        "keep_open_sessions": keep_open_sessions,
        "time_unit": time_unit,
        "time_zone": time_zone,
        "earliest": earliest,
        "days_ahead": days_ahead,
        "keep_placeholder_ids": keep_placeholder_ids,
        "after_purchase": after_purchase,
    } | ({} if first_rows is None else {"first_rows": first_rows})
    with (
        _replacing(out_dir) as folder,
        RejectedRows(folder / REJECTED_FILE, names) as rejected,
        RejectedRows(folder / NULLED_FILE, names) as nulled,
    ):
        partition = Partition(folder / "partition", _shard_count(source.paths, shard_bytes))
        log = _Log(source, reading, first_rows)
        log.scatter(partition, rejected, nulled, block_bytes, show)
        account = log.account
        account.check(is_whole=first_rows is None)
        if needs_buyers:
            account.check_purchases()
        end_ms, stray = account.end_ms()
        rules = SessionRules(
            clock=source.clock,
            by_visitor=source.by_visitor,
            idle_timeout_ms=round(idle_timeout_s * 1000),
            keep_open_sessions=keep_open_sessions,
            equal_rows_are_duplicates=account.drops_equal_rows(equal_rows),
            log_end_ms=end_ms,
            restarts_after_purchase=after_purchase == "restart",
            lost_labels=account.lost_labels,
        )
        writer = ShardWriter(folder, source.clock, log.property_kinds())
        for number in range(partition.shard_count):
            for events in partition.read(number):
                _write_sessions(events, rules, rejected, writer)
                del events
            show("sessions", number + 1, partition.shard_count)
        partition.remove()
        counts = Counts(
            account.rows_read,
            account.rows_lookup,
            dict(rejected.by_reason.most_common()),
            writer.counts,
            account.rows_dropped,
        )
        _refuse_rows_of_sessions(source_path, writer)
        if not writer.names:
            raise SourceError(f"{source_path}: no session is left: {_account(counts)}.{account.time_hint()}")
        if needs_buyers and not writer.counts.buyers:
            raise account.no_buyers(_account(counts))
        dataset = PreparedDataset(
            path=folder,
            shards=[folder / name for name in writer.names],
            source_format=source.format,
            clock=source.clock,
            properties=writer.properties(),
            counts=counts,
            first_time_ms=None if source.clock == "session" else writer.first_time_ms,
            last_time_ms=None if source.clock == "session" else writer.last_time_ms,
            settings=settings | {"equal_rows": "drop" if rules.equal_rows_are_duplicates else "keep"},
            report={
                "warnings": [
                    *account.warnings(),
                    *([stray] if stray else []),
                    *session_warnings(writer, source, counts, rules),
                ],
                "notes": [*account.notes(), *session_notes(writer, counts, rules)],
                "names": account.names(),
                "purchase_names": account.purchase_names,
                "event_renames": source.event_renames,
                "nulled": dict(account.nulled.most_common()),
                "rows_by_hour": account.hours() if source.clock == "calendar" else [],
                "largest_sessions": writer.largest.to_dicts(),
            },
        )
        write_description(dataset)
    return read_prepared(out_dir)


def _reading(earliest: str, days_ahead: float, *, placeholders_count: bool) -> Reading:
    """Return which times and ids are plausible; raise `ValueError` for a time that is none."""
    try:
        first = datetime.fromisoformat(earliest)
    except ValueError as exc:
        raise ValueError(f"earliest must be a time such as {EARLIEST}, not {earliest!r}") from exc
    if first.tzinfo is None:
        first = first.replace(tzinfo=UTC)
    latest_ms = round((time.time() + days_ahead * 86_400) * 1000)
    return Reading(round(first.timestamp() * 1000), latest_ms, placeholders_count)


def _refuse_rows_of_sessions(source_path: Path, writer: ShardWriter) -> None:
    """Raise `SourceError` where no session has a second row."""
    if writer.largest.height and writer.largest["rows"].max() == 1 and writer.sessions_seen >= _ENOUGH_SESSIONS:
        raise SourceError(
            f"{source_path}: {REFUSAL}; none of {writer.sessions_seen:,} sessions has a second row. If there are "
            "events, another column is the session or the visitor"
        )


def _write_sessions(events: pl.DataFrame, rules: SessionRules, rejected: RejectedRows, writer: ShardWriter) -> None:
    """Make and write sessions; a separate function, so that its memory is free before more events are read."""
    sessions = make_sessions(events, rules)
    rejected.add_contradictory(sessions.contradictory)
    writer.write(sessions)


class _Log:
    """The first pass: scatters a source's events and collects the facts of the whole log."""

    def __init__(self, source: Source, reading: Reading, first_rows: int | None) -> None:
        self.account = LogAccount(source, reading)
        self._first_rows = first_rows
        self._reading = reading
        self._source = source
        self._undeclared = {declared.name: "" for declared in source.properties if declared.kind is None}

    def scatter(
        self,
        partition: Partition,
        rejected: RejectedRows,
        nulled: RejectedRows,
        block_bytes: int,
        progress: Progress,
    ) -> None:
        sizes = [path.stat().st_size for path in self._source.paths]
        for batch in self._source.batches(block_bytes, self._reading, self._first_rows):
            rejected.add(batch.file_index, batch.rejected)
            nulled.add(batch.file_index, batch.nulled)
            self.account.add(batch)
            if batch.events.height:
                self._note_kinds(batch.events)
                position = pl.lit(batch.file_index, pl.Int64).alias(SOURCE_FILE)
                partition.append(batch.events.with_columns(position))
            progress("reading", sum(sizes[: batch.file_index]) + batch.bytes_done, sum(sizes))
        partition.flush()

    def property_kinds(self) -> dict[str, PropertyKind]:
        """Return the kind of every property: as declared, else number where every value is one."""
        return {
            declared.name: declared.kind or ("number" if self._undeclared[declared.name] == "number" else "category")
            for declared in self._source.properties
        }

    def _note_kinds(self, events: pl.DataFrame) -> None:
        for name, seen in self._undeclared.items():
            given = events[PROPERTY_PREFIX + name].drop_nulls()
            if seen != "category" and given.len():
                finite = given.cast(pl.Float64, strict=False).is_finite().fill_null(value=False)
                self._undeclared[name] = "number" if finite.all() else "category"


def _name(file: Path, source_path: Path) -> str:
    """Return a file's name in reports: parts of a partitioned log may have one name in many folders."""
    return str(file.relative_to(source_path)) if source_path.is_dir() else file.name


def _shard_count(paths: tuple[Path, ...], shard_bytes: int) -> int:
    text_bytes = sum(path.stat().st_size * (_COMPRESSION_RATIO if is_compressed(path) else 1) for path in paths)
    return min(MAX_SHARDS, max(1, math.ceil(text_bytes / shard_bytes)))


def _account(counts: Counts) -> str:
    """Return the counts of all rows as one sentence."""
    sessions = counts.sessions
    parts = [f"{counts.rows_read} rows read"]
    parts += [f"{count} rejected ({reason})" for reason, count in counts.rejected.items()]
    parts += [f"{counts.rows_dropped} of names left out"] if counts.rows_dropped else []
    if sessions.sessions_without_label:
        parts.append(f"{sessions.sessions_without_label} sessions whose purchase could not be read")
    parts += [
        f"{sessions.rows_duplicate} duplicates",
        f"{sessions.sessions_open} sessions still open at the log's end",
        f"{sessions.sessions_without_event_before_purchase} sessions without an event before their purchase",
    ]
    return ", ".join(parts)


@contextmanager
def _replacing(out_dir: Path) -> Iterator[Path]:
    """Yield a new folder that replaces `out_dir` on success and is removed on an error."""
    if out_dir.exists() and not is_prepared(out_dir) and not (out_dir.is_dir() and not any(out_dir.iterdir())):
        raise PreparedDatasetError(f"{out_dir}: exists and holds no prepared sessions; it is left alone")
    final = out_dir.absolute()
    folder = final.with_name(f".{final.name}.partial-{os.getpid()}")
    folder.mkdir(parents=True)
    try:
        yield folder
        if final.exists():
            old = final.with_name(f".{final.name}.old-{os.getpid()}")
            final.rename(old)
            folder.rename(final)
            shutil.rmtree(old)
        else:
            folder.rename(final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
