"""Reads the live board: the next entries of each shard's two sorted sets, rows, and counts.

One round trip to each server reads all 256 shards. Each shard examines a bounded number of entries, however many
sessions are live. `app.board.reader` merges the shards into pages.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from app.errors import CorruptRecordError
from app.store.history_codec import decode_events, decode_for_board, is_event
from app.store.keys import Keys, shard_of
from app.store.record_codec import Record, decode_record
from app.store.redis.scripts import ScriptRunner, load_script, unavailable
from app.store.redis.server import Reply, RespArg
from model.events import PropertyValue
from model.redis_keys import SHARDS

ALL_SHARDS: Final = range(SHARDS)
# More events than any session has.
_WHOLE_HISTORY: Final = 2**31


class Order(StrEnum):
    """The sort key of the board; the highest value comes first."""

    PROBABILITY = "probability"
    LAST_SEEN = "last_seen"


class Position(NamedTuple):
    """A position on the board; positions compare in the order of the board, later ones are smaller."""

    score: float
    """The probability, or the time of the last commit, Redis' clock, in ms."""
    session_id: str


@dataclass(frozen=True, slots=True)
class Selection:
    """A query of the sorted sets: which entries, in which order.

    Attributes:
        order: the sort key; by probability there are only open sessions.
        min_probability, max_probability: bounds, both inclusive; by last seen, only of open sessions.
        seen_since_ms: earliest time of the last commit, Redis' clock.
        id_prefix: how the session ids begin; empty: any.
    """

    order: Order = Order.PROBABILITY
    min_probability: float = 0.0
    max_probability: float = 1.0
    seen_since_ms: int = 0
    id_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Slice:
    """The result of one shard.

    Attributes:
        entries: highest first.
        horizon: the entries are complete down to this position, inclusive; None: no entries follow.
        live: number of live sessions of the shard, without selection.
    """

    entries: list[Position]
    horizon: Position | None
    live: int


@dataclass(frozen=True, slots=True)
class Row:
    """A session of the board.

    Attributes:
        record: its record.
        last_event: name of the last folded event; None if there is none.
        last_item_id: item of that event; None if it has none.
        recent_probabilities: the last served probabilities, oldest first; unknown ones are left out.
        currency: the last one among the events that were read; None: none of them has one.
        properties: the last value of each property; empty unless they were asked for.
        cart_value: of the cart; None: not known.
    """

    record: Record
    last_event: str | None
    last_item_id: str | None
    recent_probabilities: list[float]
    currency: str | None = None
    properties: Mapping[str, PropertyValue] = field(default_factory=dict)
    cart_value: float | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Number of live sessions, of open ones, and of open ones in each class of probability; sums of all shards."""

    live: int
    open: int
    counts: list[int]


class BoardStore(Protocol):
    """The board of all sessions, read only. Failed calls raise `StoreError`."""

    async def read(
        self, selection: Selection, after: Mapping[int, Position | None], *, count: int, look_at: int
    ) -> dict[int, Slice]:
        """Return the next entries of each of the given shards.

        Args:
            selection: the query.
            after: by shard, the position after which to start; None: start at the top.
            count: most entries of a shard to return.
            look_at: most entries of a shard to examine.
        """
        ...

    async def rows(self, session_ids: Sequence[str], *, recent: int, with_properties: bool = False) -> list[Row | None]:
        """Return each session with its last `recent` probabilities; None if it has ended or cannot be decoded.

        Properties need the whole histories.
        """
        ...

    async def spread(self, edges: Sequence[float]) -> Spread:
        """Return counts, with the open sessions by class; an edge between two classes belongs to the upper one."""
        ...


class RedisBoard:
    """Implements `BoardStore` on Redis.

    Args:
        scripts: runs the Lua scripts.
        keys: the keys of this service.
        session_idle_s: idle time after which a session has ended and is no longer shown.
    """

    def __init__(self, scripts: ScriptRunner, *, keys: Keys, session_idle_s: int) -> None:
        self._scripts = scripts
        self._keys = keys
        self._idle_ms = session_idle_s * 1000
        self._board_script = load_script("board.lua")
        self._rows_script = load_script("board_rows.lua")
        self._spread_script = load_script("spread.lua")

    async def read(
        self, selection: Selection, after: Mapping[int, Position | None], *, count: int, look_at: int
    ) -> dict[int, Slice]:
        common: list[RespArg] = [
            *(self._idle_ms, selection.order, repr(selection.min_probability), repr(selection.max_probability)),
            *(selection.seen_since_ms, count, look_at, selection.id_prefix),
        ]
        groups = self._groups(list(after))
        calls = [(group[0], [*self._sets(group), *common, *_from(after, group)]) for group in groups]
        replies = await self._scripts.run("board", self._board_script, calls)
        slices: dict[int, Slice] = {}
        for group, reply in zip(groups, replies, strict=True):
            if isinstance(reply, Exception):
                # A board without the sessions of one node would look complete.
                raise unavailable(reply)
            slices.update(zip(group, map(_slice, reply), strict=True))
        return slices

    async def rows(self, session_ids: Sequence[str], *, recent: int, with_properties: bool = False) -> list[Row | None]:
        asked = _WHOLE_HISTORY if with_properties else max(1, recent)
        shards: dict[int, list[int]] = defaultdict(list)
        for place, session_id in enumerate(session_ids):
            shards[shard_of(session_id)].append(place)
        calls: list[tuple[int, list[RespArg]]] = []
        groups = [[place for shard in group for place in shards[shard]] for group in self._groups(list(shards))]
        for group in groups:
            keys: list[RespArg] = [2 * len(group)]
            for place in group:
                keys += (self._keys.record(session_ids[place]), self._keys.history(session_ids[place]))
            calls.append((shard_of(session_ids[group[0]]), [*keys, asked]))
        replies = await self._scripts.run("board_rows", self._rows_script, calls)
        rows: list[Row | None] = [None] * len(session_ids)
        for group, reply in zip(groups, replies, strict=True):
            if isinstance(reply, Exception):
                raise unavailable(reply)
            for place, row in zip(group, reply, strict=True):
                rows[place] = _row(row, recent, with_properties=with_properties)
        return rows

    async def spread(self, edges: Sequence[float]) -> Spread:
        calls = [
            (group[0], [*self._sets(group), self._idle_ms, *map(repr, edges)]) for group in self._groups(ALL_SHARDS)
        ]
        replies = await self._scripts.run("spread", self._spread_script, calls)
        for reply in replies:
            if isinstance(reply, Exception):
                raise unavailable(reply)
        live, open_, *counts = (sum(column) for column in zip(*replies, strict=True))
        return Spread(live, open_, counts)

    def _groups(self, shards: Sequence[int]) -> list[Sequence[int]]:
        """Return the shards in groups of one script call each."""
        size = self._scripts.max_shards_per_script
        return [shards[start : start + size] for start in range(0, len(shards), size)]

    def _sets(self, shards: Sequence[int]) -> list[RespArg]:
        """Return the keys of shards as arguments of a script: their number, then two for each shard."""
        keys: list[RespArg] = [2 * len(shards)]
        for shard in shards:
            keys += (self._keys.board(shard), self._keys.seen(shard))
        return keys


def row_of(record: Record, last_entries: Sequence[bytes], recent: int, *, with_properties: bool = False) -> Row:
    """Return a row from a record and the end of its history, oldest entry first; with properties, the whole history.

    Raises:
        CorruptRecordError: an entry cannot be decoded.
    """
    # Every event's entry has its name, score and item, so the end of the history is enough.
    entries = [decode_for_board(entry) for entry in last_entries if is_event(entry)]
    known = [probability for _, probability, _, _ in entries if probability is not None]
    last_event, _, last_item_id, _ = entries[-1] if entries else (None, None, None, None)
    currency = next((one for *_, one in reversed(entries) if one), None)
    properties: dict[str, PropertyValue] = {}
    if with_properties:
        for event in decode_events(last_entries):
            properties.update(event.properties)
    return Row(record, last_event, last_item_id, known[-recent:] if recent else [], currency, properties)


def _from(after: Mapping[int, Position | None], shards: Sequence[int]) -> list[RespArg]:
    """Return the start position of each shard as arguments of a script, two for each."""
    words: list[RespArg] = []
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


def _row(reply: Reply, recent: int, *, with_properties: bool) -> Row | None:
    value, entries = reply
    try:
        return None if value is None else row_of(decode_record(value), entries, recent, with_properties=with_properties)
    except CorruptRecordError:
        # The session's own route reports the error; the board leaves the session out.
        return None
