"""Pages of the board out of 256 sorted sets: exact, with bounded work, while entries move.

A page reads a few entries from every shard, merges them, and reads more only from shards that may have further entries
of the page. A shard's *horizon* is the last entry that was read from it: above the horizon nothing was left out. So the
merged list is complete down to the highest horizon, and a page shows only that part. An entry that does not move is on
exactly one page, whatever the others do; an entry that moves may be on two pages, or on none.

Three bounds limit the work of a page: entries read in a round, rounds, and rows read to find those with enough events.
A page that reaches a bound is short or even empty, and its cursor continues from there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Final

from app.board.carts import Carts, without_carts
from app.board.content import Content, content_of
from app.board.query import BoardQuery, encode_cursor
from app.schemas.board import BoardOut, BoardSessionOut
from app.store.board import ALL_SHARDS, BoardStore, Order, Position, Row, Selection
from app.store.record_codec import Outcome
from model.clock import utc

# Entries of all shards together, in each round.
_MOST_ENTRIES: Final = 4096
_MOST_ROUNDS: Final = 3
# How often further rows are read because the query left out too many.
_MOST_STRETCHES: Final = 4
_PROBABILITY_DIGITS: Final = 6
_RECENT_DIGITS: Final = 4
_AMOUNT_DIGITS: Final = 2


@dataclass(frozen=True, slots=True)
class Page:
    """Part of the board.

    Attributes:
        rows: the sessions and their rows, in the order of the sorted sets.
        following: begin of the next page; None: this is the last one.
        live: all live sessions, whatever the query.
    """

    rows: list[tuple[str, Row]]
    following: Position | None
    live: int


@dataclass(frozen=True, slots=True)
class _Stretch:
    positions: list[Position]
    following: Position | None
    live: int


async def read_board(store: BoardStore, carts: Carts, now_ms: Callable[[], int], query: BoardQuery) -> Content:
    """Return the answer to a query; raise `StoreError` when any part of the board cannot be read."""
    query = query.begun(now_ms())
    return content_of(board_out(await read_page(store, query, carts), query), leave_out_unset=True)


async def read_page(store: BoardStore, query: BoardQuery, carts: Carts = without_carts) -> Page:
    """Return one page; raise `StoreError` when any part of the board cannot be read.

    Args:
        store: the board.
        query: the page.
        carts: adds the value of its cart to each row.
    """
    found: dict[str, tuple[Position, Row]] = {}
    selection, after, live = query.narrowed, query.after, 0
    for stretch_number in range(_MOST_STRETCHES):
        stretch = await _stretch(store, selection, after, query.limit)
        if not stretch_number:
            live = stretch.live
        rows = await store.rows(
            [position.session_id for position in stretch.positions],
            recent=query.probabilities_read,
            with_properties=query.wanted_property is not None,
        )
        for position, row in zip(stretch.positions, carts(rows), strict=True):
            if row is not None and query.admits(row):
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
        look_at = _MOST_ENTRIES // len(pending)
        slices = await store.read(selection, pending, count=min(count, look_at), look_at=look_at)
        for shard, slice_ in slices.items():
            for position in slice_.entries:
                # An entry that sank between two rounds comes twice.
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
    """Return a bound that a shard's share of the first `limit` sessions rarely exceeds: mean plus three deviations."""
    expected = limit / len(ALL_SHARDS)
    return ceil(expected + 3 * sqrt(expected)) + 1


def board_out(page: Page, query: BoardQuery) -> BoardOut:
    """Return the body of a page: rows with their current records, sorted by the values that they show."""
    by_probability = query.selection.order is Order.PROBABILITY
    rows = sorted(page.rows, key=lambda row: (_shown(row[1], by_probability=by_probability), row[0]), reverse=True)
    following = page.following
    return BoardOut(
        sessions=[_session(session_id, row, query.recent) for session_id, row in rows],
        next_cursor=None if following is None else encode_cursor(following, query),
        live_sessions=page.live,
    )


def _shown(row: Row, *, by_probability: bool) -> float:
    return (row.record.probability or 0.0) if by_probability else row.record.last_seen_ms


def _session(session_id: str, row: Row, recent: int) -> BoardSessionOut:
    record = row.record
    is_unknown = record.outcome is not Outcome.OPEN or record.probability is None
    session = BoardSessionOut(
        session_id=session_id,
        probability=None if is_unknown else round(record.probability or 0.0, _PROBABILITY_DIGITS),
        events=record.events,
        first_seen=utc(record.first_seen_ms),
        last_seen=utc(record.last_seen_ms),
        model=record.model,
        outcome=record.outcome.word,
        last_event=row.last_event,
        last_item_id=row.last_item_id,
    )
    if row.cart_value:
        session.cart_value = round(row.cart_value, _AMOUNT_DIGITS)
        session.currency = row.currency
        if session.probability is not None:
            session.value_at_stake = round(row.cart_value * session.probability, _AMOUNT_DIGITS)
    if recent:
        served = row.recent_probabilities[-recent:]
        session.recent_probabilities = [round(probability, _RECENT_DIGITS) for probability in served]
    return session
