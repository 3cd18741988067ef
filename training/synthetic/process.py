"""The hidden process of a synthetic shop: all its probabilities, as tables.

A session has a hidden intent z_n, a Markov chain over `INTENTS` that steps once an event, and an observed context
x_n, made of the n-th event's name and the number of items then in the cart. For n = 1, 2, ...:

    z_1 ~ start[device, campaign, visits]        z_n ~ transition[z_{n-1}]
    name_n ~ emission[z_n, x_{n-1}]              x_n = next_context[x_{n-1}, name_n]
    gap_n = min(ceil(exp(Normal(gap_mean[z_n, x_{n-1}], gap_deviation[z_n]))), MAX_GAP_MS), for n > 1
    item_n, if name_n is `view_item`: with probability revisit[z_n] one of the distinct items viewed before, all
        equally likely (if there are any), else tier ~ tier[z_n] and an item of that tier by popularity
    then the session ends in a purchase with probability buys[z_n, x_n], in leaving with leaves[z_n, x_n], or
        continues; after `max_events` events a visitor who would continue leaves.

Items of `add_to_cart` (the one just viewed) and `remove_from_cart` (the one added last) follow from earlier events
and so have no information about the intent; neither have the session's start and id.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.synthetic.shape import Catalogue, ShopShape

Table = NDArray[np.float64]

INTENTS: Final = ("bouncing", "browsing", "comparing", "deciding", "buying")
DEVICES: Final = ("mobile", "desktop", "tablet")
CAMPAIGNS: Final = ("direct", "search_ad", "newsletter", "social")
MAX_VISITS: Final = 9
MAX_GAP_MS: Final = 29 * 60_000  # below the 30 idle minutes after which a session is over

DEVICE_SHARE: Final = np.array([0.58, 0.34, 0.08])
CAMPAIGN_SHARE: Final = np.array([0.40, 0.30, 0.12, 0.18])
VISITS_SHARE: Final = 0.6 ** np.arange(MAX_VISITS + 1) / np.sum(0.6 ** np.arange(MAX_VISITS + 1))

EVENT_NAMES: Final = (
    "page_view",
    "view_item_list",
    "search",
    "view_item",
    "add_to_cart",
    "remove_from_cart",
    "view_cart",
    "begin_checkout",
    "add_shipping_info",
    "add_payment_info",
)
VIEW_ITEM: Final = EVENT_NAMES.index("view_item")
ADD: Final = EVENT_NAMES.index("add_to_cart")
REMOVE: Final = EVENT_NAMES.index("remove_from_cart")

_NEARNESS = np.array([-1.0, -0.3, 0.2, 0.6, 1.0])  # of each intent to buying
_START_LOGITS = np.array([0.6, 1.5, 0.5, -0.3, -0.8])
_DEVICE_LOGITS = np.array([-0.35, 0.45, 0.05])
_CAMPAIGN_LOGITS = np.array([0.05, 0.15, 0.8, -0.8])
_VISITS_LOGIT = 0.45

_TRANSITION = np.array(
    [
        [0.955, 0.045, 0.000, 0.000, 0.000],
        [0.025, 0.930, 0.040, 0.005, 0.000],
        [0.005, 0.045, 0.890, 0.055, 0.005],
        [0.005, 0.025, 0.055, 0.855, 0.060],
        [0.000, 0.003, 0.003, 0.019, 0.975],
    ]
)
# Weight with which a name follows another (rows; the last one is the session's start), before intent and cart.
_FOLLOWS = np.array(
    [
        [2.0, 4.0, 2.0, 2.0, 0.0, 0.0, 0.6, 0.0, 0.0, 0.0],
        [1.0, 2.0, 0.8, 6.0, 0.0, 0.0, 0.3, 0.0, 0.0, 0.0],
        [0.6, 1.5, 2.0, 5.0, 0.0, 0.0, 0.2, 0.0, 0.0, 0.0],
        [1.0, 2.5, 1.0, 3.0, 1.3, 0.0, 0.4, 0.0, 0.0, 0.0],
        [0.6, 1.2, 0.5, 2.2, 0.0, 0.0, 2.5, 0.8, 0.0, 0.0],
        [1.0, 1.5, 0.6, 1.5, 0.0, 0.3, 1.5, 0.0, 0.0, 0.0],
        [1.0, 1.4, 0.5, 1.4, 0.0, 0.9, 0.3, 1.6, 0.0, 0.0],
        [0.5, 0.3, 0.1, 0.4, 0.0, 0.0, 1.0, 0.0, 4.0, 0.0],
        [0.4, 0.1, 0.0, 0.2, 0.0, 0.0, 0.8, 0.0, 0.0, 4.0],
        [0.6, 0.1, 0.0, 0.2, 0.0, 0.0, 0.8, 0.0, 0.0, 0.5],
        [5.0, 3.0, 1.5, 4.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
    ]
)
_INTENT_LIKES = np.array(
    [
        [2.0, 1.0, 0.4, 0.7, 0.15, 1.0, 0.3, 0.1, 0.3, 0.3],
        [1.3, 1.8, 0.7, 1.0, 0.25, 1.6, 0.7, 0.1, 0.3, 0.3],
        [0.5, 0.9, 1.6, 2.0, 0.60, 1.4, 0.9, 0.3, 0.4, 0.4],
        [0.5, 0.6, 0.9, 1.6, 1.40, 1.0, 1.4, 0.9, 0.8, 0.8],
        [0.5, 0.3, 0.5, 1.0, 2.50, 0.4, 1.6, 3.0, 2.0, 2.0],
    ]
)
_DWELL_S = np.array([6.0, 14.0, 36.0, 48.0, 20.0])
_DWELL_FACTOR = np.array([0.6, 0.9, 0.7, 1.5, 0.4, 0.5, 0.8, 1.5, 1.3, 1.0, 1.0])
_GAP_DEVIATION = np.array([0.8, 0.9, 0.9, 0.9, 0.7])
_TIER = np.array(
    [
        [0.25, 0.30, 0.25, 0.20],
        [0.28, 0.34, 0.24, 0.14],
        [0.34, 0.40, 0.19, 0.07],
        [0.42, 0.40, 0.14, 0.04],
        [0.52, 0.35, 0.10, 0.03],
    ]
)
_REVISIT = np.array([0.03, 0.07, 0.28, 0.36, 0.22])
_LEAVES_INTENT = np.array([0.30, 0.08, 0.05, 0.035, 0.02])
_LEAVES_NAME = np.array([1.2, 1.0, 0.9, 1.0, 0.5, 1.3, 1.0, 0.8, 0.6, 0.5, 0.0])
_BUYS_INTENT = np.array([0.1, 0.2, 0.35, 0.8, 1.25])
_BUYS_NAME = np.array([0.0, 0.0, 0.0, 0.0, 0.012, 0.0, 0.02, 0.10, 0.22, 0.64, 0.0])


@dataclass(frozen=True, slots=True)
class Process:
    """All tables of one shop. K intents, E names, X contexts (name or start, times cart size), T price tiers.

    Attributes:
        shape: from which the tables were made.
        catalogue: the items.
        start: (devices, campaigns, visits, K) distribution of the first intent.
        transition: (K, K).
        emission: (K, X, E) distribution of a name after a context.
        next_context: (X, E) the context after a name.
        first_context: the context before the first event.
        gap_mean: (K, X) mean of the gap's logarithm, the gap in milliseconds.
        gap_deviation: (K,) standard deviation of the gap's logarithm.
        tier: (K, T) distribution of a fresh item's tier.
        revisit: (K,) probability that a viewed item is one viewed before.
        buys: (K, X) probability of a purchase right after an event.
        leaves: (K, X) probability of leaving right after an event.
    """

    shape: ShopShape
    catalogue: Catalogue
    start: Table
    transition: Table
    emission: Table
    next_context: NDArray[np.int64]
    first_context: int
    gap_mean: Table
    gap_deviation: Table
    tier: Table
    revisit: Table
    buys: Table
    leaves: Table

    @property
    def cart_sizes(self) -> int:
        """Number of cart sizes, the empty cart included: a context is `name * cart_sizes + cart size`."""
        return self.shape.max_cart + 1

    @classmethod
    def of(cls, shape: ShopShape) -> "Process":
        """Return the process of a shop of this shape."""
        name, cart = (axis.ravel() for axis in np.indices((len(EVENT_NAMES) + 1, shape.max_cart + 1)))
        weight = _FOLLOWS[name] * _cart_allows(cart, shape.max_cart)
        emission = weight[None] * _INTENT_LIKES[:, None, :]
        step = np.eye(len(EVENT_NAMES), dtype=np.int64)[ADD] - np.eye(len(EVENT_NAMES), dtype=np.int64)[REMOVE]
        next_cart = np.clip(cart[:, None] + step, 0, shape.max_cart)
        purchase = np.where(cart > 0, _BUYS_NAME[name], 0.0) * shape.purchase_scale
        identity = np.eye(len(INTENTS))
        return cls(
            shape=shape,
            catalogue=Catalogue(shape),
            start=_start(shape.intent),
            # A row's mass off the diagonal is at most 0.145, so that a pace of 2 still leaves a distribution.
            transition=identity + shape.pace * (_TRANSITION - identity),
            emission=emission / emission.sum(axis=-1, keepdims=True),
            next_context=np.arange(len(EVENT_NAMES)) * (shape.max_cart + 1) + next_cart,
            first_context=len(EVENT_NAMES) * (shape.max_cart + 1),
            gap_mean=np.log(1_000.0 * _DWELL_S)[:, None] + np.log(_DWELL_FACTOR)[name],
            gap_deviation=_GAP_DEVIATION,
            tier=_TIER,
            revisit=_REVISIT,
            buys=_BUYS_INTENT[:, None] * purchase,
            leaves=_LEAVES_INTENT[:, None] * _LEAVES_NAME[name] * shape.leave_scale,
        )


def _start(intent: float) -> Table:
    visits = _VISITS_LOGIT * np.log1p(np.arange(MAX_VISITS + 1))
    pull = intent + _DEVICE_LOGITS[:, None, None] + _CAMPAIGN_LOGITS[None, :, None] + visits
    weight = np.exp(_START_LOGITS + pull[..., None] * _NEARNESS)
    distribution: Table = weight / weight.sum(axis=-1, keepdims=True)
    return distribution


def _cart_allows(cart: NDArray[np.int64], max_cart: int) -> Table:
    """Return (contexts, names): factors that keep a session possible, such as no checkout of an empty cart."""
    allows = np.ones((len(cart), len(EVENT_NAMES)))
    needs_items = [REMOVE, *(EVENT_NAMES.index(name) for name in EVENT_NAMES[7:])]
    allows[np.ix_(cart == 0, needs_items)] = 0.0
    allows[cart == 0, EVENT_NAMES.index("view_cart")] = 0.15
    allows[cart == max_cart, ADD] = 0.0
    return allows
