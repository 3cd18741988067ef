"""The value at stake: over open sessions, the sum of cart value times probability, by currency.

The likeliest sessions are read, page by page, at most `_MOST_PAGES` of them. Where there are more open sessions, the
sum is over those alone and says so. Each page is read for itself, so the event loop serves events in between.
"""

from dataclasses import replace
from typing import Final

from app.board.carts import Carts
from app.board.query import BoardQuery
from app.board.reader import read_page
from app.runtime.single_flight import SingleFlightCache
from app.schemas.board import AtStakeOut, CartsOut
from app.store.board import BoardStore

_PAGE: Final = 200
_MOST_PAGES: Final = 10
# Events of a session among which its currency is looked for.
_EVENTS_READ: Final = 16
_KEPT_S: Final = 15.0


class AtStake:
    """Answers with the value at stake, read at most every 15 seconds.

    Args:
        store: the board.
        carts: adds the value of its cart to each row.
    """

    def __init__(self, store: BoardStore, carts: Carts) -> None:
        self._store = store
        self._carts = carts
        self._answers: SingleFlightCache[None, AtStakeOut] = SingleFlightCache(lambda _: self.read(), kept_s=_KEPT_S)

    async def get(self) -> AtStakeOut:
        """Return the value at stake; raise `StoreError` when any part of the board cannot be read."""
        return await self._answers.get(None)

    async def close(self) -> None:
        """Cancel a reading."""
        await self._answers.close()

    async def read(self) -> AtStakeOut:
        """Read the value at stake now; raise `StoreError` when any part of the board cannot be read."""
        query = BoardQuery(limit=_PAGE, recent=_EVENTS_READ)
        found: dict[str | None, CartsOut] = {}
        seen: set[str] = set()
        for _ in range(_MOST_PAGES):
            page = await read_page(self._store, query, self._carts)
            for session_id, row in page.rows:
                # A session that moves between two pages may be on both.
                if row.cart_value and session_id not in seen:
                    none = CartsOut(currency=row.currency, carts=0, cart_value=0.0, at_stake=0.0)
                    total = found.setdefault(row.currency, none)
                    total.carts += 1
                    total.cart_value += row.cart_value
                    total.at_stake += row.cart_value * (row.record.probability or 0.0)
                seen.add(session_id)
            if page.following is None:
                break
            query = replace(query, after=page.following)
        for total in found.values():
            total.cart_value, total.at_stake = round(total.cart_value, 2), round(total.at_stake, 2)
        values = sorted(found.values(), key=lambda one: (-one.carts, one.currency or ""))
        return AtStakeOut(sessions=len(seen), complete=page.following is None, values=values)
