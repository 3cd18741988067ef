"""`ShopShape`: what a synthetic shop is like, checked when it is made, and the presets that have a name."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopShape:
    """The knobs of a synthetic shop. Two equal shapes are the same shop, down to each item's price.

    Raises:
        ValueError: a field is of the wrong type or out of its range; the message names the field.
    """

    items: int = 2_000
    """Items in the catalogue, spread evenly over the price tiers; at least four, one a tier."""
    categories: int = 24
    """Item categories, drawn independently of price and popularity."""
    zipf_exponent: float = 1.0
    """How unequal popularity within a tier is: the r-th most popular item has weight r**-exponent; 0 is uniform."""
    late_items: float = 0.0
    """Share of each tier launched at a uniform moment within the log rather than before it; below 1."""
    days: int = 28
    """Whole days over which sessions start."""
    max_events: int = 80
    """Most events a session has, its purchase not counted; a visitor who would go on leaves there."""
    max_cart: int = 6
    """Most items in a cart; with a full cart nothing more is added."""
    intent: float = 0.0
    """Log-odds by which visitors start nearer to buying (positive) or to bouncing (negative)."""
    purchase_scale: float = 1.0
    """Factor on every probability of buying after an event; at most 1.2, as one of them is 0.8."""
    leave_scale: float = 1.0
    """Factor on every probability of leaving after an event; small makes sessions long."""
    pace: float = 1.0
    """Factor on the probability that the intent changes from one event to the next; small makes it linger."""

    def __post_init__(self) -> None:
        _require_integer("items", self.items, 4, 10_000_000)
        _require_integer("categories", self.categories, 1, 1_000_000)
        _require_number("zipf_exponent", self.zipf_exponent, 0.0, 4.0)
        _require_number("late_items", self.late_items, 0.0, 0.99)
        _require_integer("days", self.days, 1, 3_650)
        _require_integer("max_events", self.max_events, 1, 10_000)
        _require_integer("max_cart", self.max_cart, 1, 100)
        _require_number("intent", self.intent, -20.0, 20.0)
        _require_number("purchase_scale", self.purchase_scale, 0.0, 1.2)
        _require_number("leave_scale", self.leave_scale, 0.0, 2.0)
        _require_number("pace", self.pace, 0.0, 2.0)


def _require_integer(field: str, value: object, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{field}: a whole number from {low} to {high} is needed, not {value!r}")


def _require_number(field: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{field}: a number from {low:g} to {high:g} is needed, not {value!r}")


PRESETS: Final[Mapping[str, ShopShape]] = MappingProxyType(
    {
        "default": ShopShape(),
        "low-base-rate": ShopShape(intent=-2.5, purchase_scale=0.4),
        "long-sessions": ShopShape(max_events=300, leave_scale=0.15, purchase_scale=0.15, pace=0.3, max_cart=12),
        "long-tail": ShopShape(items=60_000, categories=400, zipf_exponent=1.1, late_items=0.4),
    }
)
"""Shapes with a name; docs/synthetic-shop.md says what each is for and measures it."""
