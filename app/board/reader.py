"""Pages of the board out of 256 sorted sets, exact, with bounded work, while entries move.

A page asks every shard for the few entries that it is likely to need, merges them, and asks again only those shards
that may have more that belongs on the page. A shard's *horizon* is the last entry that it was asked about: above it
nothing was left out. What lies at or above the highest horizon is therefore complete, and a page has nothing else. So
an entry that does not move is on exactly one page, whatever the others do; one that moves may be on two, or on none.

The work of a page is bounded three times: entries looked at in a round, rounds, and rows read to find those with
enough events. A page that comes to a bound is short, even empty, and its cursor goes on from there.
"""

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Final

from app.board.query import BoardQuery
from app.store.board import ALL_SHARDS, BoardStore, Position, Row, Selection

# Of all shards together, in each round.
_MOST_LOOKED_AT: Final = 4096
_MOST_ROUNDS: Final = 3
# How often rows are read when those before had too few events.
_MOST_STRETCHES: Final = 4


@dataclass(frozen=True, slots=True)
class Page:
    """Part of the board.

    Attributes:
        rows: the sessions and their rows, in the order in which they stood on the board.
        following: where the next page begins; None: there is nothing further.
        live: live sessions, whatever was asked for.
    """

    rows: list[tuple[str, Row]]
    following: Position | None
    live: int


@dataclass(frozen=True, slots=True)
class _Stretch:
    positions: list[Position]
    following: Position | None
    live: int


async def read_page(store: BoardStore, query: BoardQuery) -> Page:
    """Return one page of the board; raise `StoreError` when any part of it cannot be read."""
    found: dict[str, tuple[Position, Row]] = {}
    after, live = query.after, 0
    for stretch_number in range(_MOST_STRETCHES):
        stretch = await _stretch(store, query.selection, after, query.limit)
        if not stretch_number:
            live = stretch.live
        rows = await store.rows([position.session_id for position in stretch.positions], recent=query.recent)
        for position, row in zip(stretch.positions, rows, strict=True):
            if row is not None and query.admits(row.record):
                found.setdefault(position.session_id, (position, row))
        after = stretch.following
        if len(found) >= query.limit or after is None or len(stretch.positions) < query.limit:
            break
    kept = list(found.values())[: query.limit]
    if len(kept) < len(found):
        after = kept[-1][0]
    return Page([(position.session_id, row) for position, row in kept], after, live)


async def _stretch(store: BoardStore, selection: Selection, after: Position | None, limit: int) -> _Stretch:
    """Return the next positions, at most `limit`, without a gap between them."""
    found: dict[str, Position] = {}
    horizons: dict[int, Position] = {}
    pending: dict[int, Position | None] = dict.fromkeys(ALL_SHARDS, after)
    count, live = _likely(limit), 0
    for round_number in range(_MOST_ROUNDS):
        look_at = _MOST_LOOKED_AT // len(pending)
        slices = await store.read(selection, pending, count=min(count, look_at), look_at=look_at)
        for shard, slice_ in slices.items():
            for position in slice_.entries:
                # One that sank between two rounds comes twice.
                found.setdefault(position.session_id, position)
            horizons.pop(shard, None)
            if slice_.horizon is not None:
                horizons[shard] = slice_.horizon
        if not round_number:
            live = sum(slice_.live for slice_ in slices.values())
        ordered = sorted(found.values(), reverse=True)
        horizon = max(horizons.values(), default=None)
        complete = ordered if horizon is None else [position for position in ordered if position >= horizon]
        if horizon is None or len(complete) >= limit:
            break
        pending = {
            shard: reached
            for shard, reached in horizons.items()
            if len(ordered) < limit or reached > ordered[limit - 1]
        }
        count = limit
    if len(complete) > limit or (len(complete) == limit and horizon is not None):
        return _Stretch(complete[:limit], complete[limit - 1], live)
    return _Stretch(complete, horizon, live)


def _likely(limit: int) -> int:
    """Return how many of the first `limit` sessions a shard hardly ever exceeds, as ids are spread at random."""
    expected = limit / len(ALL_SHARDS)
    return ceil(expected + 3 * sqrt(expected)) + 1
