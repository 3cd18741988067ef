"""From raw event columns and what is remembered of a session to features, one event of B sessions at a time.

The encoder has no weights. It keeps running aggregates of constant size beside the LSTM's state, because on real
clickstreams a recurrent net without them loses to gradient boosting with them. Everything is scriptable and
vectorised over the batch.

Shape legend: B sessions, K event types (the vocabulary and "other"), C category properties, N number properties,
R slots of the item memory, Q slots of the category memory, F features, I categorical indices.
"""

from typing import Final

import torch
from torch import Tensor, nn

from model.columns import FIXED_CODES, FIXED_NUMBERS, PropertySpec, fingerprint
from model.events import ADD_TO_CART, REMOVE_FROM_CART

# Slots for distinct items and categories of a session. An item seen again after that many others counts as new:
# the price of constant cost. The median session on the logs at hand has fewer than 8 distinct items.
ITEM_SLOTS: Final = 16
CATEGORY_SLOTS: Final = 8

# Leading columns of `carry`; the counts by type, times by type, slot counts and sticky numbers follow.
_SCALARS: Final = (
    "events",
    "run_length",
    "previous_type",
    "log_gap_sum",
    "log_gap_squares",
    "log_gap_max",
    "log_gap_previous",
    "distinct_items",
    "item_events",
    "item_repeats",
    "distinct_categories",
    "cart_units",
    "cart_value",
    "price_sum",
    "price_count",
    "price_max",
    "price_min",
    "price_previous",
)
# Leading columns of `memory`: session start and last time in ms, item of the previous event.
_MEMORY_HEAD: Final = ("start_ms", "last_ms", "previous_item")

# What `Encoder.forward` stacks before and after the features of each event type, in its order.
_FEATURES_BEFORE_TYPES: Final = (
    "log_gap", "log_elapsed", "log_events", "log_run_length", "log_gap_mean", "log_gap_deviation", "log_gap_max",
    "log_gap_previous", "is_first",
    "has_item", "item_seen_before", "same_item_again", "log_item_times_seen", "log_distinct_items", "log_item_events",
    "item_repeat_share", "has_category", "log_category_times_seen", "log_distinct_categories",
    "log_cart_units", "log_cart_value", "cart_is_empty", "has_price", "log_price", "log_price_mean", "log_price_max",
    "log_price_min", "price_against_mean", "price_against_previous", "log_quantity",
)  # fmt: skip
_CALENDAR_FEATURES: Final = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
# What the current event says by itself, when it is known how long after the previous one it came. `is_first` tells "no
# gap" from "no time". A session-scoped property counts too: a fact about the visitor, sent once for all events.
_FEATURES_OF_THE_EVENT: Final = frozenset(
    {"log_gap", "is_first", "has_item", "has_category", "has_price", "log_price", "log_quantity", *_CALENDAR_FEATURES}
)

# Larger prices and quantities count as this: float32 keeps its sums finite.
_LARGEST: Final = 1e12


def vocabulary_order(words: list[str]) -> list[str]:
    """Return the words in the order in which the encoder numbers them (from 2 up): by fingerprint."""
    return sorted(words, key=lambda word: (fingerprint(word), word))


class Encoder(nn.Module):
    """Running aggregates of a session, advanced by one event.

    The state is two tensors: ``carry`` float32 [B, carry_size] and ``memory`` int64 [B, memory_size], of which
    columns 0 and 1 are times in ms and the rest fit in 32 bits.

    Args:
        event_names: the vocabulary of event types; any other name is "other".
        categories: the vocabulary of item categories.
        items: the vocabulary of items that are frequent enough to be known by name.
        properties: declared properties, in the order of the columns.
        property_values: the vocabulary of each category property, by name.
        calendar: whether timestamps are calendar time; if not, hour and weekday are left out (all zero).
    """

    vocabulary: Tensor
    arange_types: Tensor
    arange_items: Tensor
    arange_categories: Tensor
    sticky_codes: Tensor
    sticky_numbers: Tensor

    def __init__(
        self,
        event_names: list[str],
        categories: list[str],
        items: list[str],
        properties: list[PropertySpec],
        property_values: dict[str, list[str]],
        *,
        calendar: bool,
    ) -> None:
        super().__init__()
        if not event_names:
            raise ValueError("event_names: expected at least one name")
        category_specs = [spec for spec in properties if spec.kind == "category"]
        number_specs = [spec for spec in properties if spec.kind == "number"]
        named = {"event_name": event_names, "item_id": items, "item_category": categories}
        named |= {f"property.{spec.name}": property_values.get(spec.name, []) for spec in category_specs}
        # Each column's words in the order of their indices: what the manifest tells.
        self.vocabularies: dict[str, list[str]] = {column: vocabulary_order(words) for column, words in named.items()}
        self.properties: list[PropertySpec] = list(properties)
        vocabularies = list(self.vocabularies.values())
        # All vocabularies stand in one sorted table a column; searchsorted needs equal widths, so they are padded
        # with a value that no fingerprint has.
        width = max(1, *(len(words) for words in vocabularies))
        table = torch.full((len(vocabularies), width), torch.iinfo(torch.int64).max, dtype=torch.int64)
        for row, words in enumerate(vocabularies):
            table[row, : len(words)] = torch.tensor([fingerprint(word) for word in words], dtype=torch.int64)
        self.register_buffer("vocabulary", table)
        self.register_buffer("arange_types", torch.arange(len(event_names) + 1))
        self.register_buffer("arange_items", torch.arange(ITEM_SLOTS))
        self.register_buffer("arange_categories", torch.arange(CATEGORY_SLOTS))
        self.register_buffer(
            "sticky_codes", torch.tensor([spec.scope == "session" for spec in category_specs], dtype=torch.bool)
        )
        self.register_buffer(
            "sticky_numbers", torch.tensor([spec.scope == "session" for spec in number_specs], dtype=torch.bool)
        )
        self.add_to_cart: int = fingerprint(ADD_TO_CART)
        self.remove_from_cart: int = fingerprint(REMOVE_FROM_CART)
        self.calendar: bool = calendar
        self.largest: float = _LARGEST
        self.fixed_codes: int = FIXED_CODES
        self.fixed_numbers: int = FIXED_NUMBERS
        self.types: int = len(event_names) + 1
        self.category_properties: int = len(category_specs)
        self.number_properties: int = len(number_specs)
        # Where each part of `carry` and of `memory` begins.
        self.at_counts: int = len(_SCALARS)
        self.at_times: int = self.at_counts + self.types
        self.at_item_counts: int = self.at_times + self.types
        self.at_category_counts: int = self.at_item_counts + ITEM_SLOTS
        self.at_numbers: int = self.at_category_counts + CATEGORY_SLOTS
        self.carry_size: int = self.at_numbers + self.number_properties
        self.at_items: int = len(_MEMORY_HEAD)
        self.at_categories: int = self.at_items + ITEM_SLOTS
        self.at_codes: int = self.at_categories + CATEGORY_SLOTS
        self.memory_size: int = self.at_codes + self.category_properties
        # Number of values of each index column, "no value" (0) and "other" (1) included.
        self.index_sizes: list[int] = [len(words) + 2 for words in vocabularies]
        self.feature_names: list[str] = self._feature_names(event_names, number_specs)
        self.index_names: list[str] = list(self.vocabularies)

    @torch.jit.unused
    def _feature_names(self, event_names: list[str], number_specs: list[PropertySpec]) -> list[str]:
        types = ["other", *vocabulary_order(event_names)]
        return [
            *_FEATURES_BEFORE_TYPES,
            *(f"log_count[{name}]" for name in types),
            *(f"share[{name}]" for name in types),
            *(f"recency[{name}]" for name in types),
            *_CALENDAR_FEATURES,
            *(f"value[{spec.name}]" for spec in number_specs),
            *(f"given[{spec.name}]" for spec in number_specs),
        ]

    @torch.jit.unused
    def features_of_the_event(self) -> list[int]:
        """Return the positions of the features that the current event says by itself: the rest are running aggregates.

        The categorical indices are all of the current event.
        """
        numbers = [spec.name for spec in self.properties if spec.kind == "number"]
        of_the_event = _FEATURES_OF_THE_EVENT.union(*([f"value[{name}]", f"given[{name}]"] for name in numbers))
        return [position for position, name in enumerate(self.feature_names) if name in of_the_event]

    @torch.jit.export
    def initial_state(self, sessions: int) -> tuple[Tensor, Tensor]:
        """Return `(carry, memory)` of sessions without an event."""
        device = self.vocabulary.device
        carry = torch.zeros([sessions, self.carry_size], dtype=torch.float32, device=device)
        carry[:, self.at_times : self.at_item_counts] = -1.0  # never seen
        carry[:, self.at_numbers :] = float("nan")  # never given
        return carry, torch.zeros([sessions, self.memory_size], dtype=torch.int64, device=device)

    def _lookup(self, codes: Tensor) -> Tensor:
        """Return the index of each code in its column's vocabulary: 0 no value, 1 other, from 2 up the words."""
        transposed = codes.t().contiguous()
        position = torch.searchsorted(self.vocabulary, transposed).clamp_max(self.vocabulary.size(1) - 1)
        found = torch.gather(self.vocabulary, 1, position) == transposed
        return torch.where(transposed == 0, 0, torch.where(found, position + 2, 1)).t()

    def forward(  # noqa: PLR0915  # one aggregate after another; in pieces, the pieces would pass twenty tensors around
        self, timestamp_ms: Tensor, codes: Tensor, numbers: Tensor, carry: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fold one event into each of B sessions.

        Args:
            timestamp_ms: int64 [B].
            codes: int64 [B, 3 + C].
            numbers: float32 [B, 2 + N].
            carry: float32 [B, carry_size].
            memory: int64 [B, memory_size].

        Returns:
            features float32 [B, F], indices int64 [B, I] with I = 3 + C, and the next carry and memory.
        """
        (
            events, run_length, previous_type, log_gap_sum, log_gap_square_sum, log_gap_max, log_gap_previous,
            distinct_items, item_events, item_repeats, distinct_categories, cart_units, cart_value, price_sum,
            price_count, price_max, price_min, price_previous,
        ) = carry[:, : self.at_counts].unbind(1)  # fmt: skip
        start_ms, last_ms, previous_item = memory[:, : self.at_items].unbind(1)
        first = events == 0

        # Time. A late event never makes a negative gap: it counts as if it came with the latest one.
        last_ms = torch.where(first, timestamp_ms, last_ms)
        start_ms = torch.where(first, timestamp_ms, start_ms)
        now_ms = torch.maximum(timestamp_ms, last_ms)
        gap_s = (now_ms - last_ms).to(torch.float32) / 1000.0
        elapsed_s = (now_ms - start_ms).to(torch.float32) / 1000.0
        log_gap = torch.log1p(gap_s)
        now_events = events + 1.0
        before_mean = log_gap_sum / (events - 1.0).clamp_min(1.0)
        log_gap_sum = log_gap_sum + log_gap
        log_gap_max = torch.maximum(log_gap_max, log_gap)
        gaps = events.clamp_min(1.0)
        log_gap_mean = log_gap_sum / gaps
        # Welford (1962): the difference of two nearly equal sums would leave a root of their rounding.
        log_gap_square_sum = (log_gap_square_sum + (log_gap - before_mean) * (log_gap - log_gap_mean)).clamp_min(0.0)
        log_gap_deviation = (log_gap_square_sum / gaps).sqrt()

        # Event types.
        stuck_codes = self._stuck_codes(codes, memory)
        indices = self._lookup(torch.cat([codes[:, : self.fixed_codes], stuck_codes], 1))
        type_slot = indices[:, 0] - 1
        same_type = (type_slot == previous_type.to(torch.int64)) & ~first
        run_length = torch.where(same_type, run_length + 1.0, 1.0)
        is_type = type_slot.unsqueeze(1) == self.arange_types
        counts = carry[:, self.at_counts : self.at_times] + is_type.to(torch.float32)
        elapsed_column = elapsed_s.unsqueeze(1)
        seen_s = torch.where(is_type, elapsed_column, carry[:, self.at_times : self.at_item_counts])
        recency = torch.where(seen_s >= 0, 1.0 / (1.0 + torch.log1p((elapsed_column - seen_s).clamp_min(0.0))), 0.0)

        # Items and categories seen in this session.
        item = codes[:, 1]
        category = codes[:, 2]
        item_slots, item_counts, item_seen, distinct_items = self._remember(
            item,
            memory[:, self.at_items : self.at_categories],
            carry[:, self.at_item_counts : self.at_category_counts],
            distinct_items,
            self.arange_items,
        )
        category_slots, category_counts, category_seen, distinct_categories = self._remember(
            category,
            memory[:, self.at_categories : self.at_codes],
            carry[:, self.at_category_counts : self.at_numbers],
            distinct_categories,
            self.arange_categories,
        )
        has_item = (item != 0).to(torch.float32)
        has_category = (category != 0).to(torch.float32)
        item_seen_before = (item_seen > 0).to(torch.float32)
        item_events = item_events + has_item
        item_repeats = item_repeats + item_seen_before
        same_item_again = has_item * (item == previous_item).to(torch.float32)

        # Prices and the cart.
        price = numbers[:, 0].clamp(0.0, self.largest)
        price_given = ~torch.isnan(price)
        has_price = price_given.to(torch.float32)
        price = torch.where(price_given, price, 0.0)
        quantity = numbers[:, 1].clamp(0.0, self.largest)
        quantity = torch.where(torch.isnan(quantity), 1.0, quantity)
        had_price = price_count > 0
        price_step = has_price * had_price.to(torch.float32) * (torch.log1p(price) - torch.log1p(price_previous))
        price_sum = price_sum + price
        price_count = price_count + has_price
        price_mean = price_sum / price_count.clamp_min(1.0)
        price_max = torch.maximum(price_max, price)
        lowest = torch.where(had_price, torch.minimum(price_min, price), price)
        price_min = torch.where(price_given, lowest, price_min)
        price_previous = torch.where(price_given, price, price_previous)
        name = codes[:, 0]
        added = (name == self.add_to_cart).to(torch.float32)
        units = (added - (name == self.remove_from_cart).to(torch.float32)) * quantity
        cart_units = (cart_units + units).clamp_min(0.0)
        cart_value = torch.where(cart_units > 0, (cart_value + units * price).clamp_min(0.0), 0.0)

        # One logarithm over all magnitudes: fewer kernel launches than one a feature.
        log = torch.log1p(
            torch.stack(
                [
                    elapsed_s, now_events, run_length, item_seen, distinct_items, item_events, category_seen,
                    distinct_categories, cart_units, cart_value, price, price_mean, price_max, price_min, quantity,
                ],
                1,
            )
        ).unbind(1)  # fmt: skip
        sticky_numbers = self._stuck_numbers(numbers, carry)
        given = (~torch.isnan(sticky_numbers)).to(torch.float32)
        values = torch.asinh(torch.where(given > 0, sticky_numbers.clamp(-self.largest, self.largest), 0.0))
        features = torch.cat(
            [
                torch.stack(
                    [
                        log_gap, log[0], log[1], log[2], log_gap_mean, log_gap_deviation, log_gap_max, log_gap_previous,
                        first.to(torch.float32),
                        has_item, item_seen_before, same_item_again, log[3], log[4], log[5],
                        item_repeats / item_events.clamp_min(1.0), has_category, log[6], log[7],
                        log[8], log[9], (cart_units <= 0).to(torch.float32), has_price, log[10], log[11], log[12],
                        log[13], (log[10] - log[11]) * has_price, price_step, log[14],
                    ],
                    1,
                ),
                torch.log1p(counts),
                counts / now_events.unsqueeze(1),
                recency,
                self._calendar_features(now_ms),
                values,
                given,
            ],
            1,
        )  # fmt: skip
        next_carry = torch.cat(
            [
                torch.stack(
                    [
                        now_events, run_length, type_slot.to(torch.float32), log_gap_sum, log_gap_square_sum,
                        log_gap_max, log_gap, distinct_items, item_events, item_repeats, distinct_categories,
                        cart_units, cart_value, price_sum, price_count, price_max, price_min, price_previous,
                    ],
                    1,
                ),
                counts,
                seen_s,
                item_counts,
                category_counts,
                torch.where(self.sticky_numbers, sticky_numbers, float("nan")),
            ],
            1,
        )  # fmt: skip
        next_memory = torch.cat(
            [
                torch.stack([start_ms, now_ms, torch.where(item != 0, item, previous_item)], 1),
                item_slots,
                category_slots,
                torch.where(self.sticky_codes, stuck_codes, 0),
            ],
            1,
        )
        return features, indices, next_carry, next_memory

    @torch.jit.export
    def sequence(self, timestamp_ms: Tensor, codes: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, T, F] and indices [B, T, I] of raw columns [B, T], [B, T, 3 + C], [B, T, 2 + N].

        Sessions shorter than T are padded at the end with anything: what comes later never changes what came before.
        """
        carry, memory = self.initial_state(timestamp_ms.size(0))
        all_features: list[Tensor] = []
        all_indices: list[Tensor] = []
        for position in range(timestamp_ms.size(1)):
            features, indices, carry, memory = self.forward(
                timestamp_ms[:, position], codes[:, position], numbers[:, position], carry, memory
            )
            all_features.append(features)
            all_indices.append(indices)
        return torch.stack(all_features, 1), torch.stack(all_indices, 1)

    def _remember(
        self, identifier: Tensor, slots: Tensor, counts: Tensor, distinct: Tensor, arange: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Count an identifier in a ring of slots: next slots, next counts, times seen before [B], distinct [B]."""
        present = (identifier != 0).unsqueeze(1)
        match = (slots == identifier.unsqueeze(1)) & present
        seen = (counts * match.to(torch.float32)).sum(1)
        is_new = present & ~match.any(1, keepdim=True)
        # The oldest entry makes room: slots are filled in a ring.
        target = (torch.remainder(distinct, float(slots.size(1))).unsqueeze(1) == arange) & is_new
        next_slots = torch.where(target, identifier.unsqueeze(1), slots)
        next_counts = torch.where(target, 1.0, counts + match.to(torch.float32))
        return next_slots, next_counts, seen, distinct + is_new.squeeze(1).to(torch.float32)

    def _stuck_codes(self, codes: Tensor, memory: Tensor) -> Tensor:
        """Return the category properties [B, C], session-scoped ones filled from the last value sent."""
        given = codes[:, self.fixed_codes :]
        return torch.where((given == 0) & self.sticky_codes, memory[:, self.at_codes :], given)

    def _stuck_numbers(self, numbers: Tensor, carry: Tensor) -> Tensor:
        """Return the number properties [B, N], session-scoped ones filled from the last value sent."""
        given = numbers[:, self.fixed_numbers :]
        return torch.where(torch.isnan(given) & self.sticky_numbers, carry[:, self.at_numbers :], given)

    def _calendar_features(self, now_ms: Tensor) -> Tensor:
        """Return sine and cosine of the hour and of the weekday in UTC [B, 4]; zeros without calendar time."""
        if not self.calendar:
            return torch.zeros([now_ms.size(0), 4], dtype=torch.float32, device=now_ms.device)
        day = torch.remainder(now_ms, 86_400_000).to(torch.float32) * (6.283185307179586 / 86_400_000.0)
        week = torch.remainder(now_ms, 604_800_000).to(torch.float32) * (6.283185307179586 / 604_800_000.0)
        return torch.stack([torch.sin(day), torch.cos(day), torch.sin(week), torch.cos(week)], 1)
