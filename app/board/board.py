"""The board as the answers show it: one reading serves everybody who asks the same within a moment."""

from datetime import UTC, datetime
from typing import Final

from app.board.content import Content, content_of
from app.board.cursor import encode_cursor
from app.board.query import BoardQuery
from app.board.reader import Page, read_page
from app.runtime.single_flight import SingleFlightCache
from app.schemas.board import BoardOut, BoardSessionOut
from app.store.board import BoardStore, Order, Row

# Scoring goes first: questions of the board have no more than so many connections to Redis at a time.
_MOST_READINGS: Final = 2
# However many dashboards poll, a replica reads a page of the board at most twice a second.
BOARD_KEPT_S: Final = 0.5
_PROBABILITY_DIGITS: Final = 6
_RECENT_DIGITS: Final = 4


class Board:
    """Answers `GET /v1/sessions`.

    Args:
        store: where the board is read.
        kept_s: age up to which an answer is given again to the same question.
    """

    def __init__(self, store: BoardStore, *, kept_s: float = BOARD_KEPT_S) -> None:
        self._store = store
        self._contents: SingleFlightCache[BoardQuery, Content] = SingleFlightCache(
            self._read, kept_s=kept_s, most_at_once=_MOST_READINGS
        )

    def kept(self, query: BoardQuery) -> Content | None:
        """Return the answer if there is one that is young enough, without a wait."""
        return self._contents.kept(query)

    async def content(self, query: BoardQuery) -> Content:
        """Return the answer to a query.

        Raises:
            StoreError: a part of the board cannot be read.
            BoardBusyError: too many other queries wait.
        """
        return await self._contents.get(query)

    async def close(self) -> None:
        """Give up what is being read."""
        await self._contents.close()

    async def _read(self, query: BoardQuery) -> Content:
        page = await read_page(self._store, query)
        return content_of(board_out(page, query), leave_out_unset=True)


def board_out(page: Page, query: BoardQuery) -> BoardOut:
    """Return a page as it is answered: each row as its record is now, and sorted by what it shows."""
    by_probability = query.selection.order is Order.PROBABILITY
    rows = sorted(page.rows, key=lambda row: (_shown(row[1], by_probability=by_probability), row[0]), reverse=True)
    following = page.following
    return BoardOut(
        sessions=[_session(session_id, row, query.recent) for session_id, row in rows],
        next_cursor=None if following is None else encode_cursor(following, query.selection, query.min_events),
        live_sessions=page.live,
    )


def _shown(row: Row, *, by_probability: bool) -> float:
    return (row.record.probability or 0.0) if by_probability else row.record.last_seen_ms


def _session(session_id: str, row: Row, recent: int) -> BoardSessionOut:
    record = row.record
    session = BoardSessionOut(
        session_id=session_id,
        probability=None if record.probability is None else round(record.probability, _PROBABILITY_DIGITS),
        events=record.events,
        first_seen=_time(record.first_seen_ms),
        last_seen=_time(record.last_seen_ms),
        model=record.model,
        outcome=record.outcome.word,
        last_event=row.last_event,
    )
    if recent:
        session.recent_probabilities = [round(probability, _RECENT_DIGITS) for probability in row.recent_probabilities]
    return session


def _time(timestamp_ms: int) -> datetime:
    return datetime.fromtimestamp(timestamp_ms / 1000, tz=UTC)
