"""Values of carts.

The model counts the cart in a session's state, so an event pays nothing for it. A state of another model than the one
in use cannot be read; that session's cart is known again after its next event.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from app.store.board import Row
from model.interface import Model

Carts = Callable[[Sequence[Row | None]], list[Row | None]]


def carts_of(model: Callable[[], Model]) -> Carts:
    """Return what adds the value of its cart to each row."""

    def with_carts(rows: Sequence[Row | None]) -> list[Row | None]:
        current = model()
        places = [
            place
            for place, row in enumerate(rows)
            if row is not None and row.record.state and row.record.model == current.fingerprint
        ]
        states = [row.record.state for place in places if (row := rows[place]) is not None]
        found = list(rows)
        if not states or not all(map(current.reads, states)) or (values := current.cart_values(states)) is None:
            return found
        for place, value in zip(places, values, strict=True):
            if (row := found[place]) is not None:
                found[place] = replace(row, cart_value=value)
        return found

    return with_carts


def without_carts(rows: Sequence[Row | None]) -> list[Row | None]:
    """Return the rows as they are."""
    return list(rows)
