"""Groups of inputs in words: what the last event of a session changed about each.

The groups are those of `model.explain`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from app.errors import shortened
from model.events import ADD_TO_CART, REMOVE_FROM_CART, Event
from model.interventions.decide import cart_units, cart_value, facts_of

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_PROPERTY: Final = "property."


def reason(group: str, history: Sequence[Event]) -> str:
    """Return a group in words, as of the last event of a history of at least one event."""
    if group.startswith(_PROPERTY):
        name = group.removeprefix(_PROPERTY)
        given = history[-1].properties.get(name)
        return f"{name} not sent" if given is None else f"{name} {_text(given)}"
    text = _TEXTS.get(group)
    return group if text is None else text(history)


def _event(history: Sequence[Event]) -> str:
    return f"event {_text(history[-1].event_name)}"


def _events(history: Sequence[Event]) -> str:
    return f"{len(history)} events in the session" if len(history) > 1 else "the first event"


def _category(history: Sequence[Event]) -> str:
    category = history[-1].item_category
    return f"category {_text(category)}" if category else "no category"


def _price(history: Sequence[Event]) -> str:
    price = history[-1].price
    return "no price" if price is None else f"price {price:g}"


def _pace(history: Sequence[Event]) -> str:
    if len(history) == 1:
        return "no time since an event before"
    return f"{_span(history[-1].timestamp_ms - _latest_ms(history[:-1]))} after the event before"


def _item(history: Sequence[Event]) -> str:
    item = history[-1].item_id
    if item is None:
        return "no item"
    seen = any(event.item_id == item for event in history[:-1])
    return f"item {_text(item)}, {'seen before' if seen else 'new'}"


def _cart(history: Sequence[Event]) -> str:
    """Return when the cart was filled or emptied, and what is in it."""
    facts, name = facts_of(history), history[-1].event_name
    moves = [event for event in history if event.event_name in (ADD_TO_CART, REMOVE_FROM_CART)]
    if not moves:
        return "nothing put into the cart yet"
    worth = f", worth {value:.2f}" if (value := cart_value(facts)) else ""
    if name == ADD_TO_CART:
        return f"put into the cart{worth}"
    if name == REMOVE_FROM_CART:
        return f"taken out of the cart{worth}"
    since = _span(_latest_ms(history) - moves[-1].timestamp_ms)
    return f"cart {'filled' if cart_units(facts) else 'emptied'} {since} ago{worth}"


def _latest_ms(history: Sequence[Event]) -> int:
    # As in the model: a late event counts as simultaneous with the latest one.
    return max(event.timestamp_ms for event in history)


def _span(milliseconds: int) -> str:
    seconds = max(0, round(milliseconds / 1000))
    if seconds < _MINUTE_S:
        return f"{seconds} s"
    return f"{seconds // _MINUTE_S} min" if seconds < _HOUR_S else f"{seconds / _HOUR_S:.1f} h"


def _text(value: object) -> str:
    return shortened(str(value))


_TEXTS: Final[Mapping[str, Callable[[Sequence[Event]], str]]] = {
    "repeat": lambda _: "one more event after those before",
    "event": _event,
    "time": _pace,
    "events": _events,
    "item": _item,
    "category": _category,
    "price": _price,
    "cart": _cart,
    "calendar": lambda _: "time of day and day of the week",
}
