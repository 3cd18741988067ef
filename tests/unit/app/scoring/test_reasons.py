"""Inputs in words, as of the last event."""

import pytest

from app.scoring.reasons import reason
from model.events import Event

ADDED = Event("add_to_cart", 1_000, "SKU-1", "shoes", 59.9, 2.0)
REMOVED = Event("remove_from_cart", 2_000, "SKU-1", "shoes", 59.9, 2.0)
LATER = Event("view_cart", 21_000, properties={"device": "mobile"})


@pytest.mark.parametrize(
    ("group", "history", "text"),
    [
        ("cart", [ADDED, LATER], "cart filled 20 s ago, worth 119.80"),
        ("cart", [ADDED], "put into the cart, worth 119.80"),
        ("cart", [ADDED, REMOVED], "taken out of the cart"),
        ("cart", [ADDED, REMOVED, LATER], "cart emptied 19 s ago"),
        ("cart", [LATER], "nothing put into the cart yet"),
        ("time", [ADDED, LATER], "20 s after the event before"),
        ("time", [LATER, ADDED], "0 s after the event before"),
        ("time", [ADDED, Event("search", 301_000)], "5 min after the event before"),
        # A late event is as late as the latest one, for the pace and for the cart.
        ("time", [Event("search", 301_000), ADDED, Event("search", 302_000)], "1 s after the event before"),
        ("cart", [ADDED, Event("search", 301_000), LATER], "cart filled 5 min ago, worth 119.80"),
        ("time", [ADDED, Event("search", 60_000)], "59 s after the event before"),
        ("time", [ADDED, Event("search", 61_000)], "1 min after the event before"),
        ("time", [ADDED, Event("search", 3_601_000)], "1.0 h after the event before"),
        ("time", [ADDED, Event("search", 5_401_000)], "1.5 h after the event before"),
        ("time", [ADDED], "no time since an event before"),
        ("event", [LATER], "event view_cart"),
        ("events", [LATER], "the first event"),
        ("events", [ADDED, LATER], "2 events in the session"),
        ("item", [ADDED, ADDED], "item SKU-1, seen before"),
        ("item", [ADDED], "item SKU-1, new"),
        ("item", [LATER], "no item"),
        ("category", [ADDED], "category shoes"),
        ("category", [LATER], "no category"),
        ("price", [ADDED], "price 59.9"),
        ("price", [LATER], "no price"),
        ("calendar", [LATER], "time of day and day of the week"),
        ("property.device", [LATER], "device mobile"),
        ("property.plan", [LATER], "plan not sent"),
        ("repeat", [LATER], "one more event after those before"),
        ("unheard_of", [LATER], "unheard_of"),
    ],
)
def test_a_group_in_words(group, history, text) -> None:
    assert reason(group, history) == text
