"""Draw many sessions of a synthetic shop at once: one pass over the events, all sessions side by side."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.synthetic.process import (
    ADD,
    CAMPAIGN_SHARE,
    DEVICE_SHARE,
    MAX_GAP_MS,
    REMOVE,
    VIEW_ITEM,
    VISITS_SHARE,
    Process,
    Table,
)

Index = NDArray[np.int64]

DAY_MS: Final = 86_400_000
_HOUR_SHARE: Final = np.array(
    [2, 1, 1, 1, 1, 1, 2, 3, 5, 6, 6, 6, 7, 6, 6, 6, 6, 7, 8, 9, 10, 9, 7, 4], dtype=np.float64
)
_PAYING_MEDIAN_MS: Final = 20_000.0


@dataclass(frozen=True, slots=True)
class Traces:
    """The observable part of S sessions, without their hidden intents. N is the longest session's length.

    Attributes:
        device: (S,) index into `DEVICES`.
        campaign: (S,) index into `CAMPAIGNS`.
        visits: (S,) number of earlier visits.
        start_ms: (S,) start of the session in milliseconds since the log's start.
        length: (S,) number of events, the purchase not counted.
        name: (S, N) index into `EVENT_NAMES`; -1 after the session's end.
        gap_ms: (S, N) milliseconds since the event before; 0 at the first event and after the end.
        item: (S, N) item number; -1 where there is none.
        cart: (S, N) items in the cart after the event.
        purchased: (S,) whether the session ended in a purchase.
        paying_ms: (S,) milliseconds from the last event to the purchase, for sessions with one.
    """

    device: Index
    campaign: Index
    visits: Index
    start_ms: Index
    length: Index
    name: Index
    gap_ms: Index
    item: Index
    cart: Index
    purchased: NDArray[np.bool_]
    paying_ms: Index


class ViewedItems:
    """The distinct items viewed so far in each of S sessions."""

    def __init__(self, sessions: int, max_events: int) -> None:
        self._items = np.full((sessions, max_events), -1, dtype=np.int64)
        self.count = np.zeros(sessions, dtype=np.int64)

    def holds(self, rows: Index, items: Index) -> NDArray[np.bool_]:
        """Return (rows,): whether session `rows[i]` has viewed `items[i]`."""
        width = int(self.count[rows].max(initial=0))
        held: NDArray[np.bool_] = (self._items[rows, :width] == items[:, None]).any(axis=1)
        return held

    def pick(self, rows: Index, uniform: Table) -> Index:
        """Return (rows,): one of each session's items, all equally likely; each needs to have viewed one."""
        return self._items[rows, (uniform * self.count[rows]).astype(np.int64)]

    def add(self, rows: Index, items: Index) -> None:
        """Note that session `rows[i]` viewed `items[i]`; rows are distinct."""
        new = ~self.holds(rows, items)
        self._items[rows[new], self.count[rows[new]]] = items[new]
        self.count[rows[new]] += 1


def sample(
    process: Process,
    sessions: int,
    rng: np.random.Generator,
    *,
    treated: Process | None = None,
    trigger: int = ADD,
    group: NDArray[np.bool_] | None = None,
) -> Traces:
    """Return `sessions` sessions drawn from the process.

    Args:
        process: the shop's.
        sessions: how many to draw.
        rng: the source of chance.
        treated: the process of the events after a session's first event `trigger`; None: nothing changes there.
        trigger: index into `EVENT_NAMES`.
        group: (S,) whether each session is treated; None: all are.
    """
    shape = process.shape
    device = _draw(rng, np.broadcast_to(DEVICE_SHARE, (sessions, len(DEVICE_SHARE))))
    campaign = _draw(rng, np.broadcast_to(CAMPAIGN_SHARE, (sessions, len(CAMPAIGN_SHARE))))
    visits = _draw(rng, np.broadcast_to(VISITS_SHARE, (sessions, len(VISITS_SHARE))))
    start_ms = _start_ms(rng, sessions, shape.days)
    launched = process.catalogue.launched(start_ms / (shape.days * DAY_MS))

    name, item = np.full((2, sessions, shape.max_events), -1, dtype=np.int64)
    gap_ms, cart = np.zeros((2, sessions, shape.max_events), dtype=np.int64)
    length = np.zeros(sessions, dtype=np.int64)
    purchased = np.zeros(sessions, dtype=np.bool_)
    in_cart = np.full((sessions, shape.max_cart), -1, dtype=np.int64)
    viewed = ViewedItems(sessions, shape.max_events)
    intent = _draw(rng, process.start[device, campaign, visits])
    context = np.full(sessions, process.first_context)
    is_treated = np.zeros(sessions, dtype=np.bool_)

    going = np.arange(sessions)
    for n in range(shape.max_events):
        if n > 0:
            intent[going] = _draw(rng, process.transition[intent[going]])
            gap_ms[going, n] = _gap(rng, process, intent[going], context[going])
        name[going, n] = _draw(rng, process.emission[intent[going], context[going]])
        now = name[going, n]

        viewing = going[now == VIEW_ITEM]
        item[viewing, n] = _viewed_item(rng, process, intent[viewing], viewing, launched[viewing], viewed)
        size = context % process.cart_sizes
        adding, removing = going[now == ADD], going[now == REMOVE]
        item[adding, n] = item[adding, n - 1]
        in_cart[adding, size[adding]] = item[adding, n]
        item[removing, n] = in_cart[removing, size[removing] - 1]

        context[going] = process.next_context[context[going], now]
        cart[going, n] = context[going] % process.cart_sizes
        length[going] = n + 1
        buys = process.buys[intent[going], context[going]]
        leaves = process.leaves[intent[going], context[going]]
        if treated is not None:
            under = is_treated[going]
            buys = np.where(under, treated.buys[intent[going], context[going]], buys)
            leaves = np.where(under, treated.leaves[intent[going], context[going]], leaves)
            is_treated[going] |= (now == trigger) & (True if group is None else group[going])
        fate = rng.random(len(going))
        purchased[going] = fate < buys
        going = going[fate >= buys + leaves]
        if not len(going):
            break

    longest = int(length.max(initial=1))
    paying_ms = np.ceil(_PAYING_MEDIAN_MS * np.exp(0.6 * rng.standard_normal(sessions))).astype(np.int64)
    return Traces(
        device=device,
        campaign=campaign,
        visits=visits,
        start_ms=start_ms,
        length=length,
        name=name[:, :longest],
        gap_ms=gap_ms[:, :longest],
        item=item[:, :longest],
        cart=cart[:, :longest],
        purchased=purchased,
        paying_ms=paying_ms,
    )


def _draw(rng: np.random.Generator, distribution: Table) -> Index:
    """Return (rows,): one index for each row of `distribution` (rows, choices)."""
    running = np.cumsum(distribution, axis=1)
    target = rng.random((len(distribution), 1)) * running[:, -1:]
    chosen: Index = np.sum(target >= running, axis=1)
    return chosen


def _start_ms(rng: np.random.Generator, sessions: int, days: int) -> Index:
    hour = _draw(rng, np.broadcast_to(_HOUR_SHARE, (sessions, 24)))
    within_hour = rng.integers(3_600_000, size=sessions)
    return rng.integers(days, size=sessions) * DAY_MS + hour * 3_600_000 + within_hour


def _gap(rng: np.random.Generator, process: Process, intent: Index, context: Index) -> Index:
    noise = rng.standard_normal(len(intent))
    gap = np.exp(process.gap_mean[intent, context] + process.gap_deviation[intent] * noise)
    return np.ceil(np.minimum(gap, MAX_GAP_MS)).astype(np.int64)


def _viewed_item(
    rng: np.random.Generator, process: Process, intent: Index, rows: Index, launched: Index, viewed: ViewedItems
) -> Index:
    item = process.catalogue.draw(rng, _draw(rng, process.tier[intent]), launched)
    again = (rng.random(len(rows)) < process.revisit[intent]) & (viewed.count[rows] > 0)
    uniform = rng.random(len(rows))
    item[again] = viewed.pick(rows[again], uniform[again])
    viewed.add(rows, item)
    return item
