"""Tables of one row a session, which hold no events: they are recognised to be refused with the reason."""

import re
from collections.abc import Collection
from typing import Final

REFUSAL: Final = "one row a session, not events: willbuy needs the events"
# UCI's Online Shoppers Purchasing Intention.
_ONLINE_SHOPPERS: Final = frozenset({"productrelated", "productrelated_duration", "revenue"})
_OUTCOMES: Final = frozenset(
    {"revenue", "converted", "conversion", "purchased", "purchase", "bought", "buyer", "is_buyer", "has_purchased"}
)
_TOTALS: Final = re.compile(
    r"(^|_)(duration|count|counts|total|num|number|n|rate|rates|avg|mean|sum|pages|clicks)(_|$)"
)
_TIMES: Final = re.compile(r"time|date|_at$|^ts$|^when$")
_FEWEST_TOTALS: Final = 3


def is_session_table(columns: Collection[str]) -> bool:
    """Return whether the columns are totals of a session and its outcome, without the time of an event."""
    names = {name.strip().lower() for name in columns}
    if names >= _ONLINE_SHOPPERS:
        return True
    if any(_TIMES.search(name) for name in names):
        return False
    return not names.isdisjoint(_OUTCOMES) and sum(bool(_TOTALS.search(name)) for name in names) >= _FEWEST_TOTALS
