"""Sessions with ordinary and extreme values: hypothesis strategies, and random generators for long sessions."""

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from model.columns import columns_from_events
from model.events import Event
from model.properties import PropertySpec
from support.artifacts import EVENT_NAMES

# The scopes and kinds in all four combinations.
ALL_SCOPES = (
    PropertySpec("device", "category", "session"),
    PropertySpec("visits", "number", "session"),
    PropertySpec("page", "category", "event"),
    PropertySpec("scroll", "number", "event"),
)
NAMES = (*EVENT_NAMES, "remove_from_cart", "wheel_of_fortune", "add_to_cart")
YEAR_9999_MS = 253_402_300_799_000

_amounts = (
    st.none()
    | st.floats(0, 500, width=32)
    | st.sampled_from([0.0, 0.1, 1.0, 59.9, 1e-30, 1e12, 1e30, 1e300, math.inf, -math.inf, -5.0, math.nan])
)
_gaps_ms = st.one_of(
    st.just(0), st.integers(1, 999), st.integers(1000, 600_000), st.integers(0, 86_400_000), st.integers(-90_000, -1)
)
_properties: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "device": st.sampled_from(["mobile", "desktop", "fridge", ""]),
        "page": st.sampled_from(["mobile", "desktop", 3, 3.0, True]),
        "visits": st.sampled_from([0, 3, -2.5, True, "7", "many", math.nan, math.inf, 1e300]),
        "scroll": st.floats(-1000, 1000, width=32),
        "undeclared": st.just("anything"),
    },
)


@st.composite
def sessions(
    draw: st.DrawFn, *, min_size: int = 1, max_size: int = 25, items: int = 6, categories: int = 4
) -> list[Event]:
    """Sessions of events over `items` items and `categories` categories, some events late, from 1970 to year 9999."""
    now_ms = draw(st.sampled_from([0, 999, 1_700_000_000_123, YEAR_9999_MS, -3_600_000]))
    events = []
    for _ in range(draw(st.integers(min_size, max_size))):
        now_ms += draw(_gaps_ms)
        item = draw(st.none() | st.integers(0, items - 1))
        category = draw(st.none() | st.integers(0, categories - 1))
        events.append(
            Event(
                draw(st.sampled_from(NAMES)),
                now_ms,
                item_id=None if item is None else f"SKU-{item}",
                item_category=None if category is None else ("shoes", "hats", *"abcdefghijkl")[category],
                price=draw(_amounts),
                quantity=draw(_amounts),
                properties=draw(_properties),
            )
        )
    return events


def random_session(seed: int, length: int, *, items: int = 40) -> list[Event]:
    """Return a session of ordinary values of the given length."""
    random = Random(seed)
    now_ms = 1_700_000_000_000
    events = []
    for _ in range(length):
        now_ms += round(random.expovariate(1 / 30_000)) - 2_000
        has_item = random.random() < 0.7
        events.append(
            Event(
                random.choice(NAMES),
                now_ms,
                item_id=f"SKU-{random.randrange(items)}" if has_item else None,
                item_category=random.choice(["shoes", "hats", "bags", "belts"]) if has_item else None,
                price=random.choice([None, round(random.uniform(1, 300), 2)]),
                quantity=random.choice([None, 1, 2, 5]),
                properties=random.choice([{}, {"device": "mobile", "visits": random.randrange(9)}, {"scroll": 0.5}]),
            )
        )
    return events


def random_sessions(lengths: Sequence[int]) -> list[list[Event]]:
    """One session of each length, each with its own seed."""
    return [random_session(seed, length) for seed, length in enumerate(lengths)]


def columns_of(
    sessions_: Sequence[Sequence[Event]], properties: Sequence[PropertySpec] = ALL_SCOPES, *, padding: int = 0
) -> list[Tensor]:
    """Columns [B, T, ...] of sessions, shorter ones padded at the end with the given value."""
    each = [columns_from_events(events, properties) for events in sessions_]
    pad = torch.nn.utils.rnn.pad_sequence
    return [pad(list(column), batch_first=True, padding_value=padding) for column in zip(*each, strict=True)]
