"""The parameters of a synthetic shop (`ShopShape`), its named presets, and its catalogue of items."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopShape:
    """The parameters of a synthetic shop. Two equal shapes are the same shop, down to each item's price.

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
    """Most events of a session, without its purchase; a visitor who would continue leaves there."""
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
    treatment: float = 0.0
    """Log-odds that a rule at the first `add_to_cart` adds to each later purchase of a treated session; 0: no rule."""
    held_out: float = 0.5
    """Share of the sessions in which the rule fires that are not treated."""

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
        _require_number("treatment", self.treatment, -5.0, 5.0)
        _require_number("held_out", self.held_out, 0.0, 1.0)


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
        "treated": ShopShape(treatment=0.5),
        "long-tail": ShopShape(items=60_000, categories=400, zipf_exponent=1.1, late_items=0.4),
    }
)
"""Named shapes; docs/synthetic-shop.md describes and measures each."""


TIER_PRICE_BOUNDS: Final = ((5.0, 20.0), (20.0, 60.0), (60.0, 200.0), (200.0, 900.0))
"""Lowest and highest price of each tier, cheapest tier first."""

# The catalogue belongs to the shape: shoppers drawn with another seed visit the same shop.
_CATALOGUE_SEED: Final = 20_260_101


class Catalogue:
    """Items numbered tier by tier and, within a tier, by launch: the launched items are a prefix of each tier.

    That order makes the Zipf law over the items launched so far exact and cheap: a normaliser is one look-up in the
    running sum of weights. Moments are fractions of the log's duration, 0 its start and 1 its end.

    Attributes:
        tier: (items,) tier of each item.
        price: (items,) price of each item, in the shop's currency, two decimals.
        category: (items,) category number of each item.
    """

    def __init__(self, shape: ShopShape) -> None:
        rng = np.random.default_rng([_CATALOGUE_SEED, shape.items, shape.categories])
        tiers = len(TIER_PRICE_BOUNDS)
        sizes = np.full(tiers, shape.items // tiers) + (np.arange(tiers) < shape.items % tiers)
        self._offset = np.concatenate([[0], np.cumsum(sizes)])
        self.tier = np.repeat(np.arange(tiers), sizes)
        low, high = np.array(TIER_PRICE_BOUNDS)[self.tier].T
        self.price = np.round(low * (high / low) ** rng.random(shape.items), 2)
        self.category = rng.integers(shape.categories, size=shape.items)
        weights, launches = [], []
        for size in sizes:
            rank = rng.permutation(size) + 1.0
            weights.append(rank**-shape.zipf_exponent)
            # Never all of a tier, so that each tier has an item from the start.
            late = min(int(size * shape.late_items), size - 1)
            launches.append(np.concatenate([np.zeros(size - late), np.sort(rng.random(late))]))
        self.weight = np.concatenate(weights)
        self.launch = launches
        self._running_weight = np.concatenate([[0.0], np.cumsum(self.weight)])

    def launched(self, moment: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return (sessions, tiers): one past the last item of each tier that can be seen at each moment."""
        ends = [
            start + np.searchsorted(launch, moment, side="right")
            for start, launch in zip(self._offset[:-1], self.launch, strict=True)
        ]
        return np.stack(ends, axis=1).astype(np.int64)

    def draw(self, rng: np.random.Generator, tier: NDArray[np.int64], launched: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return one item for each row, from its tier, by popularity among what `launched` (rows, tiers) allows."""
        first, end = self._offset[tier], np.take_along_axis(launched, tier[:, None], axis=1)[:, 0]
        low, high = self._running_weight[first], self._running_weight[end]
        item = np.searchsorted(self._running_weight, low + rng.random(len(tier)) * (high - low), side="right") - 1
        # Rounding may carry the sum over a boundary by one unit in the last place.
        clipped: NDArray[np.int64] = np.clip(item, first, end - 1)
        return clipped

    def probability_in_tier(self, item: NDArray[np.int64], launched: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return (rows,): the probability that `draw` gives `item`, given its tier; 0 for one not launched yet."""
        tier = self.tier[item]
        end = np.take_along_axis(launched, tier[:, None], axis=1)[:, 0]
        mass = self._running_weight[end] - self._running_weight[self._offset[tier]]
        probability: NDArray[np.float64] = np.where(item < end, self.weight[item] / mass, 0.0)
        return probability
