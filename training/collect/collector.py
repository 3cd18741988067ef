"""One folder of collected sessions: read, write a file, acknowledge, again."""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from redis.exceptions import RedisError

from model.clock import utc
from model.redis_keys import SHARDS
from training.collect.entries import Ended, EntryId, ended_session, events_of
from training.collect.errors import CollectError
from training.collect.streams import Entry, Streams
from training.data.sources.canonical import DISTINCT, EQUAL_ROWS_KEY, parquet_metadata, write_events

ENTRIES_KEY: Final = "willbuy.entries"
_LOCK: Final = ".collecting"
_A_SHARD: Final = 64
_POLL_S: Final = 1.0


@dataclass(slots=True)
class Collected:
    """Counts of a run.

    Attributes:
        sessions, buyers, events: written in this run, purchases not counted as events.
        files: written in this run.
        repeated: entries already in a file, because an earlier run ended before acknowledging them.
        gone: entries that were erased or trimmed before they could be written.
        unknown: sessions without a known outcome, which are no examples.
    """

    sessions: int = 0
    buyers: int = 0
    events: int = 0
    files: int = 0
    repeated: int = 0
    gone: int = 0
    unknown: int = 0


class Collector:
    """Collects into one folder.

    Args:
        streams: what to read.
        folder: where files go; it exists.
        sessions_a_file: sessions of one file at most, about.
        progress: called after each file.
    """

    def __init__(
        self,
        streams: Streams,
        folder: Path,
        *,
        sessions_a_file: int = 10_000,
        progress: Callable[[Collected], None] = lambda _collected: None,
    ) -> None:
        self._streams = streams
        self._folder = folder
        self._sessions_a_file = sessions_a_file
        self._progress = progress
        self._waiting: list[Ended] = []
        self._gone: list[EntryId] = []
        self._unknown: list[EntryId] = []
        self.collected = Collected()

    def resume(self) -> None:
        """Process the delivered and unacknowledged entries of an earlier run, or from before a Redis outage.

        Raises:
            CollectError: this release cannot read an entry.
            training.data.sources.errors.SourceError: a file in the folder is damaged.
            redis.exceptions.RedisError: Redis is unavailable.
        """
        self._waiting, self._gone, self._unknown = [], [], []
        for partial in self._folder.glob("*.partial"):
            partial.unlink()
        written: frozenset[str] | None = None
        for entries in self._streams.unacknowledged(_A_SHARD):
            if entries and written is None:
                written = self._written()
            known = [entry for entry in entries if written and entry.id.text in written]
            if known:
                self._streams.acknowledge(entry.id for entry in known)
            self.collected.repeated += len(known)
            self._take(entry for entry in entries if not written or entry.id.text not in written)
        self.write()

    def read(self) -> int:
        """Read new entries, write a file when there are enough, and return the number of new entries.

        Raises:
            CollectError: this release cannot read an entry; nothing is lost.
            redis.exceptions.RedisError: Redis is unavailable.
        """
        entries = self._streams.new(_A_SHARD)
        self._take(entries)
        return len(entries)

    def write(self) -> None:
        """Write the waiting sessions, if any, into a file and acknowledge them."""
        sessions, self._waiting = self._waiting, []
        if sessions:
            self._write(sessions)
            self.collected.sessions += len(sessions)
            self.collected.buyers += sum(session.bought for session in sessions)
            self.collected.events += sum(len(session.rows) - session.bought for session in sessions)
            self.collected.files += 1
        if sessions or self._gone or self._unknown:
            self._streams.acknowledge([*(session.entry for session in sessions), *self._gone, *self._unknown])
        self.collected.gone += len(self._gone)
        self.collected.unknown += len(self._unknown)
        self._gone, self._unknown = [], []
        self._progress(self.collected)

    def _take(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            session = None if entry.session is None else ended_session(entry.id, entry.session)
            if session is not None:
                self._waiting.append(session)
                continue
            (self._gone if entry.session is None else self._unknown).append(entry.id)
        if len(self._waiting) >= self._sessions_a_file:
            self.write()

    def _write(self, sessions: Sequence[Ended]) -> None:
        ordered = sorted(sessions, key=lambda session: (session.closed_ms, session.entry))
        first = utc(ordered[0].closed_ms)
        # The name of the first entry makes it unique: no session is in two files.
        entry = ordered[0].entry
        path = self._folder / f"outcomes-{first:%Y%m%dT%H%M%S}-{entry.shard:02x}-{entry.entry}.parquet"
        partial = path.with_suffix(".partial")
        metadata = {
            EQUAL_ROWS_KEY: DISTINCT,
            ENTRIES_KEY: json.dumps([session.entry.text for session in ordered]),
        }
        write_events(events_of(ordered), partial, clock="calendar", metadata=metadata)
        _fsync(partial)
        partial.replace(path)
        _fsync(self._folder)

    def _written(self) -> frozenset[str]:
        """Return the entries of all files in the folder."""
        texts = [parquet_metadata(path).get(ENTRIES_KEY, "[]") for path in sorted(self._folder.glob("*.parquet"))]
        return frozenset(entry for text in texts for entry in json.loads(text))


def collect(
    collector: Collector,
    *,
    follow: bool,
    every_s: float,
    stop: Callable[[], bool] = lambda: False,
    on_outage: Callable[[RedisError], None] = lambda _error: None,
) -> None:
    """Collect all entries, and with `follow` also new ones until `stop` returns True.

    Args:
        collector: of one folder, which must be `locked`.
        follow: whether to wait for new entries; outages of Redis are then retried.
        every_s: with `follow`, longest time that a session waits for others of its file.
        stop: called about once a second.
        on_outage: called at each outage of Redis.

    Raises:
        CollectError, training.data.sources.errors.SourceError: see `Collector`.
        redis.exceptions.RedisError: Redis is unavailable, without `follow`.
    """
    while True:
        try:
            collector.resume()
            _collect(collector, follow=follow, every_s=every_s, stop=stop)
        except RedisError as exc:
            if not follow:
                raise
            on_outage(exc)
            if stop():
                return
            time.sleep(_POLL_S)
        else:
            return


def _collect(collector: Collector, *, follow: bool, every_s: float, stop: Callable[[], bool]) -> None:
    written_s = time.monotonic()
    while not (follow and stop()):
        found = collector.read()
        if not found and not follow:
            break
        if follow and time.monotonic() - written_s >= every_s:
            collector.write()
            written_s = time.monotonic()
        if follow and found < SHARDS:
            time.sleep(_POLL_S)
    collector.write()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder and hold its lock; raise `CollectError` where another collector holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise CollectError(f"{folder}: another collector writes into this folder") from exc
        yield


def _fsync(path: Path) -> None:
    """Flush a file or a folder's directory entry to disk, before entries are acknowledged."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
