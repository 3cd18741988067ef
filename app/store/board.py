"""Reading the live board: what of a shard's two sorted sets comes next, rows, and counts. Nothing here writes.

All 256 shards are asked in one round trip a server, and each looks at a bounded number of entries, however many
sessions live. `app.board.reader` makes pages of it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from app.errors import CorruptRecordError
from app.store.history_codec import decode_name_and_score
from app.store.keys import SHARDS, board_key, history_key, record_key, seen_key, shard_of
from app.store.record_codec import Record, decode_record
from app.store.redis.scripts import ScriptRunner, load_script, unavailable
from app.store.redis.server import Reply, Word

ALL_SHARDS: Final = range(SHARDS)


class Order(StrEnum):
    """What the board is sorted by, highest first."""

    PROBABILITY = "probability"
    LAST_SEEN = "last_seen"


class Position(NamedTuple):
    """A place on the board; positions compare as the board is sorted, later entries being smaller."""

    score: float
    """The probability, or the time of the last commit by Redis' clock, in ms."""
    session_id: str


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries, in which order: what the sorted sets can tell.

    Attributes:
        order: what they are sorted by; by probability there are only open sessions.
        min_probability, max_probability: bounds, both included; by last seen, not of sessions that have bought.
        seen_since_ms: earliest time of the last commit, by Redis' clock.
    """

    order: Order = Order.PROBABILITY
    min_probability: float = 0.0
    max_probability: float = 1.0
    seen_since_ms: int = 0


@dataclass(frozen=True, slots=True)
class Slice:
    """What one shard had.

    Attributes:
        entries: highest first.
        horizon: down to here, inclusive, nothing was left out; None: there is nothing further at all.
        live: live sessions of the shard, whatever was selected.
    """

    entries: list[Position]
    horizon: Position | None
    live: int


@dataclass(frozen=True, slots=True)
class Row:
    """A session of the board.

    Attributes:
        record: its record.
        last_event: name of the last event that was folded; None when nothing was.
        recent_probabilities: the last ones as served, oldest first; shorter than asked where they are not known.
    """

    record: Record
    last_event: str | None
    recent_probabilities: list[float]


@dataclass(frozen=True, slots=True)
class Spread:
    """Live and open sessions, and the open ones by class of probability; sums of all shards."""

    live: int
    open: int
    counts: list[int]


class BoardStore(Protocol):
    """The board of all sessions, read only. What cannot be read raises `StoreError`."""

    async def read(
        self, selection: Selection, after: Mapping[int, Position | None], *, count: int, look_at: int
    ) -> dict[int, Slice]:
        """Return what comes next in each of the shards named.

        Args:
            selection: which entries.
            after: by shard, the position after which to go on; None: from the top.
            count: most entries of a shard.
            look_at: most entries of a shard that are looked at, fitting or not.
        """
        ...

    async def rows(self, session_ids: Sequence[str], *, recent: int) -> list[Row | None]:
        """Return each session with its last `recent` probabilities; None where it is gone or cannot be read."""
        ...

    async def spread(self, edges: Sequence[float]) -> Spread:
        """Return counts, the open sessions by class; an edge between two classes belongs to the upper one."""
        ...


class RedisBoard:
    """The board on Redis (see `BoardStore`).

    Args:
        scripts: runs scripts there.
        session_idle_s: idle time after which a session has ended and is shown no more.
    """

    def __init__(self, scripts: ScriptRunner, *, session_idle_s: int) -> None:
        self._scripts = scripts
        self._idle_ms = session_idle_s * 1000
        self._board_script = load_script("board.lua")
        self._rows_script = load_script("board_rows.lua")
        self._spread_script = load_script("spread.lua")

    async def read(
        self, selection: Selection, after: Mapping[int, Position | None], *, count: int, look_at: int
    ) -> dict[int, Slice]:
        """See `BoardStore.read`."""
        common: list[Word] = [
            *(self._idle_ms, selection.order, repr(selection.min_probability), repr(selection.max_probability)),
            *(selection.seen_since_ms, count, look_at),
        ]
        groups = self._groups(list(after))
        calls = [(group[0], [*_keys(group), *common, *_from(after, group)]) for group in groups]
        replies = await self._scripts.run("board", self._board_script, calls)
        slices: dict[int, Slice] = {}
        for group, reply in zip(groups, replies, strict=True):
            if isinstance(reply, Exception):
                # A board without the sessions of one node would look whole and not be it.
                raise unavailable(reply)
            slices.update(zip(group, map(_slice, reply), strict=True))
        return slices

    async def rows(self, session_ids: Sequence[str], *, recent: int) -> list[Row | None]:
        """See `BoardStore.rows`."""
        shards: dict[int, list[int]] = defaultdict(list)
        for place, session_id in enumerate(session_ids):
            shards[shard_of(session_id)].append(place)
        calls: list[tuple[int, list[Word]]] = []
        groups = [[place for shard in group for place in shards[shard]] for group in self._groups(list(shards))]
        for group in groups:
            keys: list[Word] = [2 * len(group)]
            for place in group:
                keys += (record_key(session_ids[place]), history_key(session_ids[place]))
            calls.append((shard_of(session_ids[group[0]]), [*keys, max(1, recent)]))
        replies = await self._scripts.run("board_rows", self._rows_script, calls)
        rows: list[Row | None] = [None] * len(session_ids)
        for group, reply in zip(groups, replies, strict=True):
            if isinstance(reply, Exception):
                raise unavailable(reply)
            for place, row in zip(group, reply, strict=True):
                rows[place] = _row(row, recent)
        return rows

    async def spread(self, edges: Sequence[float]) -> Spread:
        """See `BoardStore.spread`."""
        calls = [(group[0], [*_keys(group), self._idle_ms, *map(repr, edges)]) for group in self._groups(ALL_SHARDS)]
        replies = await self._scripts.run("spread", self._spread_script, calls)
        for reply in replies:
            if isinstance(reply, Exception):
                raise unavailable(reply)
        live, open_, *counts = (sum(column) for column in zip(*replies, strict=True))
        return Spread(live, open_, counts)

    def _groups(self, shards: Sequence[int]) -> list[Sequence[int]]:
        """Return the shards in groups that one script call may touch."""
        size = self._scripts.shards_a_script
        return [shards[start : start + size] for start in range(0, len(shards), size)]


def row_of(record: Record, last_entries: Sequence[bytes], recent: int) -> Row:
    """Return a row of a record and the end of its history, oldest entry first.

    Raises:
        CorruptRecordError: an entry cannot be read.
    """
    # Every entry has its name and score, so the end of the history is enough.
    entries = [decode_name_and_score(entry) for entry in last_entries]
    known = [probability for _, probability in entries if probability is not None]
    return Row(record, entries[-1][0] if entries else None, known[-recent:] if recent else [])


def _keys(shards: Sequence[int]) -> list[Word]:
    """Return the keys of shards as a script takes them: their number, then two for each shard."""
    keys: list[Word] = [2 * len(shards)]
    for shard in shards:
        keys += (board_key(shard), seen_key(shard))
    return keys


def _from(after: Mapping[int, Position | None], shards: Sequence[int]) -> list[Word]:
    """Return where each shard is to go on, two words each."""
    words: list[Word] = []
    for shard in shards:
        position = after[shard]
        words += ("", "") if position is None else (repr(position.score), position.session_id)
    return words


def _slice(reply: Reply) -> Slice:
    live, more, last_score, last_id, *entries = reply
    positions = [
        Position(float(score), session_id.decode())
        for session_id, score in zip(entries[::2], entries[1::2], strict=True)
    ]
    return Slice(positions, Position(float(last_score), last_id.decode()) if more else None, live)


def _row(reply: Reply, recent: int) -> Row | None:
    value, entries = reply
    try:
        return None if value is None else row_of(decode_record(value), entries, recent)
    except CorruptRecordError:
        # Its own page says what is wrong; the board goes on without it.
        return None
