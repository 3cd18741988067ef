"""Names of the encoder's features, their order, and the order in which `model.encoder` comes by them."""

from collections.abc import Sequence
from typing import Final

# The features before and after those of each event type.
_BEFORE_TYPES: Final = (
    "log_gap", "log_elapsed", "log_events", "log_run_length", "log_gap_mean", "log_gap_deviation", "log_gap_max",
    "log_gap_previous", "is_first",
    "has_item", "item_seen_before", "same_item_again", "log_item_times_seen", "log_distinct_items", "log_item_events",
    "item_repeat_share", "has_category", "log_category_times_seen", "log_distinct_categories",
    "log_cart_units", "log_cart_value", "cart_is_empty", "has_price", "log_price", "log_price_mean", "log_price_max",
    "log_price_min", "price_against_mean", "price_against_previous", "log_quantity",
)  # fmt: skip
_CALENDAR: Final = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
# What the current event says by itself, when it is known how long after the previous one it came. `is_first` tells "no
# gap" from "no time". A session-scoped property counts too: a fact about the visitor, sent once for all events.
_OF_THE_EVENT: Final = frozenset(
    {"log_gap", "is_first", "has_item", "has_category", "has_price", "log_price", "log_quantity", *_CALENDAR}
)
# The features in the order in which `Encoder._advance` comes by them. Log counts, logs of the time since, recencies and
# shares by type and the properties follow. What has no name stands in a block with others and is no feature.
_MADE_BEFORE_TYPES: Final = (
    "log_elapsed", "log_gap", "log_gap_mean", "log_gap_deviation", "log_gap_max", "log_gap_previous", "is_first",
    "has_item", "has_category", "item_seen_before", "", "same_item_again", "item_repeat_share", "cart_is_empty",
    "has_price", "price_against_mean", "price_against_previous", "hour_sin", "weekday_sin", "hour_cos", "weekday_cos",
    "log_price", "log_price_mean", "", "log_quantity", "log_price_max", "log_price_min", "log_cart_units",
    "log_cart_value", "log_events", "log_run_length", "log_item_times_seen", "log_category_times_seen",
    "log_distinct_items", "log_item_events", "", "log_distinct_categories",
)  # fmt: skip


def feature_names(types: Sequence[str], numbers: Sequence[str]) -> list[str]:
    """Return the names of all features for event types and number properties by name."""
    return [
        *_BEFORE_TYPES,
        *(f"{kind}[{name}]" for kind in ("log_count", "share", "recency") for name in types),
        *_CALENDAR,
        *(f"{kind}[{name}]" for kind in ("value", "given") for name in numbers),
    ]


def features_of_the_event(names: Sequence[str], numbers: Sequence[str]) -> list[int]:
    """Return the positions among the names of the features that the current event says by itself."""
    said = _OF_THE_EVENT.union(f"{kind}[{name}]" for kind in ("value", "given") for name in numbers)
    return [position for position, name in enumerate(names) if name in said]


def feature_order(types: int, numbers: int) -> list[int]:
    """Return which row of what `Encoder._advance` makes each feature is.

    By position, not by name: a shop may call a type of its own "other", as the encoder calls those without a name.
    """
    place = {name: row for row, name in enumerate(_MADE_BEFORE_TYPES)}
    first = len(_MADE_BEFORE_TYPES)
    log_counts, _, recencies, shares = (range(first + part * types, first + (part + 1) * types) for part in range(4))
    properties = range(shares.stop, shares.stop + 2 * numbers)
    before, calendar = ([place[name] for name in names] for names in (_BEFORE_TYPES, _CALENDAR))
    return [*before, *log_counts, *shares, *recencies, *calendar, *properties]
