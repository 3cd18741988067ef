"""The items of a synthetic shop: tier, price, category, popularity, and the moment from which each can be seen."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.synthetic.shape import ShopShape

TIER_PRICE_BOUNDS: Final = ((5.0, 20.0), (20.0, 60.0), (60.0, 200.0), (200.0, 900.0))
"""Lowest and highest price of each tier, cheapest tier first."""

# The catalogue belongs to the shape: shoppers drawn with another seed visit the same shop.
_CATALOGUE_SEED: Final = 20_260_101


class Catalogue:
    """Items numbered tier by tier and, within a tier, by launch: what has been launched is a prefix of each tier.

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
            # Never all of a tier: from the first moment on there is something to see in each.
            late = min(int(size * shape.late_items), size - 1)
            launches.append(np.concatenate([np.zeros(size - late), np.sort(rng.random(late))]))
        self._weight = np.concatenate(weights)
        self._launch = launches
        self._running_weight = np.concatenate([[0.0], np.cumsum(self._weight)])

    def launched(self, moment: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return (sessions, tiers): one past the last item of each tier that can be seen at each moment."""
        ends = [
            start + np.searchsorted(launch, moment, side="right")
            for start, launch in zip(self._offset[:-1], self._launch, strict=True)
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
        probability: NDArray[np.float64] = np.where(item < end, self._weight[item] / mass, 0.0)
        return probability
