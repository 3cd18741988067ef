"""From raw event columns and what is remembered of a session to features, one event of B sessions at a time.

The encoder has no weights. It keeps running aggregates of constant size beside the LSTM's state, because on real
clickstreams a recurrent net without them loses to gradient boosting with them. Everything is scriptable and
vectorised over the batch.

A step is many operations on few numbers, each of which costs its call, 0.7 us at one session as at 64; so how many
there are is what counts. Hence, inside, tensors lie on their side: a row is a quantity, a column a session, and what
several quantities have in common is done to a block of rows at once. A Python number in a comparison, sum or quotient
costs a second call, so constants are buffers there; in a `clamp` it costs none, which also makes 1.0 of any count.

Shape legend: B sessions, K event types (the vocabulary and "other"), C category properties, N number properties,
R slots of the item memory, Q slots of the category memory, F features, I categorical indices.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from model.columns import FIXED_CODES, FIXED_NUMBERS, PropertySpec, fingerprint
from model.events import ADD_TO_CART, REMOVE_FROM_CART
from model.features import feature_names, feature_order, features_of_the_event

# Slots for distinct items and categories of a session. An item seen again after that many others counts as new:
# the price of constant cost. The median session on the logs at hand has fewer than 8 distinct items.
ITEM_SLOTS: Final = 16
CATEGORY_SLOTS: Final = 8

# Leading columns of `carry`; the counts by type, times by type, slot counts and sticky numbers follow.
_SCALARS: Final = (
    "events",
    "run_length",
    "previous_type",
    "log_gap_mean",
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
# How many of them in a row `Encoder._advance` takes as one block.
_SCALAR_BLOCKS: Final = (1, 1, 1, 1, 1, 1, 1, 4, 2, 2, 1, 1, 1)
# Leading columns of `memory`: session start and last time in ms, item of the previous event.
_MEMORY_HEAD: Final = ("start_ms", "last_ms", "previous_item")
_MEMORY_BLOCKS: Final = (2, 1)

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
    one: Tensor
    ms_per_s: Tensor
    amounts_not_given: Tensor
    type_indices: Tensor
    slot_column: Tensor
    slot_number: Tensor
    slot_sums: Tensor
    ring_sizes: Tensor
    cart_codes: Tensor
    cart_signs: Tensor
    calendar_ms: Tensor
    calendar_radians: Tensor
    sticky_codes: Tensor
    sticky_numbers: Tensor
    feature_order: Tensor

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
        slots = ITEM_SLOTS + CATEGORY_SLOTS
        self.carry_blocks: list[int] = [*_SCALAR_BLOCKS, self.types, self.types, slots, self.number_properties]
        self.memory_blocks: list[int] = [*_MEMORY_BLOCKS, slots, self.category_properties]
        self.log_blocks: list[int] = [1, 2, 13 + self.types, self.types]
        # Number of values of each index column, "no value" (0) and "other" (1) included.
        self.index_sizes: list[int] = [len(words) + 2 for words in self.vocabularies.values()]
        types = ["other", *self.vocabularies["event_name"]]
        self.feature_names: list[str] = feature_names(types, [spec.name for spec in number_specs])
        self.index_names: list[str] = list(self.vocabularies)
        self._register_constants(category_specs, number_specs)

    @torch.jit.unused
    def _register_constants(self, category_specs: list[PropertySpec], number_specs: list[PropertySpec]) -> None:
        """Register what `_advance` needs as tensors; columns [., 1] where a block's rows differ in it."""

        def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype).unsqueeze(1)

        # All vocabularies stand in one sorted table a column; searchsorted needs equal widths, so they are padded
        # with a value that no fingerprint has. As 0 stands first and twice, a found position is the index itself: 0
        # for no value, from 2 up the words.
        vocabularies = list(self.vocabularies.values())
        width = 2 + max(map(len, vocabularies)) + 1
        table = torch.full((len(vocabularies), width), torch.iinfo(torch.int64).max, dtype=torch.int64)
        for row, words in enumerate(vocabularies):
            known = [0, 0, *(fingerprint(word) for word in words)]
            table[row, : len(known)] = torch.tensor(known, dtype=torch.int64)
        self.register_buffer("vocabulary", table)
        self.register_buffer("one", torch.ones(1))
        self.register_buffer("ms_per_s", torch.full([1], 1000.0))
        # No price counts as 0, no quantity as 1.
        self.register_buffer("amounts_not_given", column([0.0, 1.0]))
        self.register_buffer("type_indices", column([*range(1, self.types + 1)], torch.int64))
        # The slots of items and then those of categories, counted from 1 in each; whose they are, as a row of the two
        # and as a matrix that sums over them.
        kinds = torch.tensor([0] * ITEM_SLOTS + [1] * CATEGORY_SLOTS)
        self.register_buffer("slot_column", kinds)
        self.register_buffer("slot_number", column([*range(1, ITEM_SLOTS + 1), *range(1, CATEGORY_SLOTS + 1)]))
        self.register_buffer("slot_sums", torch.stack([kinds == 0, kinds == 1]).to(torch.float32))
        self.register_buffer("ring_sizes", column([ITEM_SLOTS, CATEGORY_SLOTS]))
        self.register_buffer(
            "cart_codes", column([fingerprint(ADD_TO_CART), fingerprint(REMOVE_FROM_CART)], torch.int64)
        )
        self.register_buffer("cart_signs", torch.tensor([[1.0, -1.0]]))
        periods = [86_400_000, 604_800_000]
        self.register_buffer("calendar_ms", column(periods, torch.int64))
        self.register_buffer("calendar_radians", column([2 * math.pi / period for period in periods]))
        # What a session-scoped property was last is kept.
        self.register_buffer("sticky_codes", column([spec.scope == "session" for spec in category_specs], torch.int64))
        self.register_buffer("sticky_numbers", column([spec.scope == "session" for spec in number_specs], torch.bool))
        self.register_buffer("feature_order", torch.tensor(feature_order(self.types, self.number_properties)))

    @torch.jit.unused
    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:  # noqa: ANN401  # as the module's
        """Read nothing: every buffer follows from the vocabularies, and another release's encoder has others."""

    @torch.jit.unused
    def features_of_the_event(self) -> list[int]:
        """Return the positions of the features that the current event says by itself: the rest are running aggregates.

        The categorical indices are all of the current event.
        """
        return features_of_the_event(self.feature_names, [s.name for s in self.properties if s.kind == "number"])

    @torch.jit.export
    def initial_state(self, sessions: int) -> tuple[Tensor, Tensor]:
        """Return `(carry, memory)` of sessions without an event."""
        device = self.vocabulary.device
        carry = torch.zeros([sessions, self.carry_size], dtype=torch.float32, device=device)
        carry[:, self.at_times : self.at_item_counts] = -1.0  # never seen
        carry[:, self.at_numbers :] = float("nan")  # never given
        return carry, torch.zeros([sessions, self.memory_size], dtype=torch.int64, device=device)

    def forward(
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
        features, indices, next_carry, next_memory = self._advance(
            timestamp_ms.unsqueeze(0),
            codes.t().contiguous(),
            numbers.t().contiguous(),
            carry.t().contiguous(),
            memory.t().contiguous(),
        )
        return features.t().contiguous(), indices.t(), next_carry.t(), next_memory.t()

    @torch.jit.export
    def sequence(self, timestamp_ms: Tensor, codes: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return features [B, T, F] and indices [B, T, I] of raw columns [B, T], [B, T, 3 + C], [B, T, 2 + N].

        Sessions shorter than T are padded at the end with anything: what comes later never changes what came before.
        """
        carry, memory = self.initial_state(timestamp_ms.size(0))
        carry, memory = carry.t().contiguous(), memory.t().contiguous()
        times = timestamp_ms.t().contiguous()
        codes = codes.permute(1, 2, 0).contiguous()
        numbers = numbers.permute(1, 2, 0).contiguous()
        all_features: list[Tensor] = []
        all_indices: list[Tensor] = []
        for position in range(timestamp_ms.size(1)):
            features, indices, carry, memory = self._advance(
                times[position : position + 1], codes[position], numbers[position], carry, memory
            )
            all_features.append(features.t())
            all_indices.append(indices.t())
        return torch.stack(all_features, 1), torch.stack(all_indices, 1)

    def _advance(  # noqa: PLR0915  # one aggregate after another; in pieces, the pieces would pass twenty tensors around
        self, timestamp_ms: Tensor, codes: Tensor, numbers: Tensor, carry: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fold one event into each of B sessions: `forward` with every tensor on its side, [., B]."""
        (
            events, run_length, previous_type, log_gap_mean, log_gap_squares, log_gap_max, log_gap_previous, seen_sums,
            cart, price_sums, price_max, price_min, price_previous, counts, seen_s, slot_counts, last_numbers,
        ) = torch.split(carry, self.carry_blocks)  # fmt: skip
        times_ms, previous_item, slots, last_codes = torch.split(memory, self.memory_blocks)
        is_first = torch.logical_not(events)
        now_events = events + self.one

        # Time. A late event never makes a negative gap: it counts as if it came with the latest one.
        times_ms = torch.where(is_first, timestamp_ms, times_ms)
        start_ms, last_ms = torch.split(times_ms, 1)
        now_ms = torch.maximum(timestamp_ms, last_ms)
        spans_s = (now_ms - times_ms).to(torch.float32).div_(self.ms_per_s)
        elapsed_s = spans_s[:1]
        log_spans = torch.log1p(spans_s)
        log_gap = log_spans[1:]
        # Welford (1962): the difference of two nearly equal sums would leave a root of their rounding.
        gaps = events.clamp_min(1.0)
        off_mean = log_gap - log_gap_mean
        log_gap_mean = torch.addcdiv(log_gap_mean, off_mean, gaps)
        log_gap_squares = torch.addcmul(log_gap_squares, off_mean, log_gap - log_gap_mean)
        log_gap_deviation = (log_gap_squares / gaps).sqrt_()
        log_gap_max = torch.maximum(log_gap_max, log_gap)

        # Event types.
        stuck_codes = codes[self.fixed_codes :]
        if self.category_properties > 0:
            stuck_codes = torch.where(stuck_codes.to(torch.bool), stuck_codes, last_codes)
            last_codes = stuck_codes * self.sticky_codes
            indices = self._lookup(torch.cat([codes[: self.fixed_codes], stuck_codes]))
        else:
            indices = self._lookup(codes)
        type_index = indices[:1]
        type_slot = type_index.to(torch.float32).sub_(self.one)
        # No event before the first: its run length of 0 makes nothing of having the type that `carry` begins with.
        run_length = torch.addcmul(self.one, run_length, (type_slot == previous_type).to(torch.float32))
        is_type = type_index == self.type_indices
        counts = is_type.to(torch.float32).add_(counts)
        seen_s = torch.where(is_type, elapsed_s, seen_s)

        # Items and categories seen in this session.
        named = codes[1:3]
        present = named.to(torch.bool)
        has_named = present.to(torch.float32)
        slots, slot_counts, times_seen, is_new = self._remember(named, has_named, slots, slot_counts, seen_sums[::3])
        seen_before = times_seen.clamp_max(1.0)
        has_item = has_named[:1]
        new_item, new_category = torch.split(is_new, 1)
        seen_sums = torch.cat([new_item, has_item, seen_before[:1], new_category]).add_(seen_sums)
        item_events, item_repeats = torch.split(seen_sums[1:3], 1)
        item = named[:1]
        same_item_again = (item == previous_item).to(torch.float32).mul_(has_item)
        previous_item = torch.where(present[:1], item, previous_item)

        # Prices and the cart.
        sent = numbers[: self.fixed_numbers].clamp(0.0, self.largest)
        is_sent = sent == sent  # noqa: PLR0124  # not NaN
        amounts = torch.where(is_sent, sent, self.amounts_not_given)
        price, quantity = torch.split(amounts, 1)
        price_given = is_sent[:1]
        has_price = price_given.to(torch.float32)
        had_price = price_sums[1:].to(torch.bool)
        price_sums = torch.cat([price, has_price]).add_(price_sums)
        price_sum, price_count = torch.split(price_sums, 1)
        price_mean = price_sum / price_count.clamp_min(1.0)
        price_max = torch.maximum(price_max, price)
        # `fmin` passes over NaN. The first price is the least and its own predecessor; before it, both are 0.
        price_min = torch.where(had_price, torch.fmin(price_min, sent[:1]), price)
        price_before = torch.where(had_price, price_previous, price)
        price_previous = torch.where(price_given, price, price_previous)
        moved = torch.mm(self.cart_signs, (codes[:1] == self.cart_codes).to(torch.float32)).mul_(quantity)
        cart = torch.cat([moved, moved * price]).add_(cart).clamp_min_(0.0)
        cart_units, cart_value = torch.split(cart, 1)
        cart_is_filled = torch.sign(cart_units)
        cart_value = cart_value * cart_is_filled

        # One logarithm over all magnitudes.
        log = torch.cat(
            [
                price, price_mean, price_before, quantity, price_max, price_min, cart_units, cart_value, now_events,
                run_length, times_seen, seen_sums, counts, (elapsed_s - seen_s).clamp_min_(0.0),
            ]
        ).log1p_()  # fmt: skip
        log_price, log_other_prices, _, log_since = torch.split(log, self.log_blocks)
        sines, cosines = self._calendar_features(now_ms)
        recency = counts.clamp_max(1.0).div_(log_since + self.one)
        features = [
            log_spans, log_gap_mean, log_gap_deviation, log_gap_max, log_gap_previous, is_first.to(torch.float32),
            has_named, seen_before, same_item_again, item_repeats / item_events.clamp_min(1.0),
            self.one - cart_is_filled, has_price, (log_price - log_other_prices).mul_(has_price),
            sines, cosines, log, recency, counts / now_events,
        ]  # fmt: skip
        if self.number_properties > 0:
            given = numbers[self.fixed_numbers :]
            known = torch.where(given == given, given, last_numbers)  # noqa: PLR0124  # not NaN
            last_numbers = torch.where(self.sticky_numbers, known, float("nan"))
            features.append(known.nan_to_num(0.0).clamp_(-self.largest, self.largest).asinh_())
            features.append((known == known).to(torch.float32))  # noqa: PLR0124  # not NaN
        next_carry = torch.cat(
            [
                now_events, run_length, type_slot, log_gap_mean, log_gap_squares, log_gap_max, log_gap, seen_sums,
                cart_units, cart_value, price_sums, price_max, price_min, price_previous, counts, seen_s, slot_counts,
                last_numbers,
            ]
        )  # fmt: skip
        next_memory = torch.cat([start_ms, now_ms, previous_item, slots, last_codes])
        return torch.index_select(torch.cat(features), 0, self.feature_order), indices, next_carry, next_memory

    def _lookup(self, codes: Tensor) -> Tensor:
        """Return the index of each code in its row's vocabulary: 0 no value, 1 other, from 2 up the words."""
        position = torch.searchsorted(self.vocabulary, codes)
        found = torch.gather(self.vocabulary, 1, position) == codes
        return torch.where(found, position, 1)

    def _remember(
        self, named: Tensor, has_named: Tensor, slots: Tensor, slot_counts: Tensor, distinct: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Count an item and a category [2, B] in a ring of slots each.

        Returns:
            next slots, next counts, how often each was seen before [2, B], and whether it is new [2, B].
        """
        sought = torch.index_select(named, 0, self.slot_column)
        # No identifier is 0 and meets the empty slots, whose count is 0.
        met = (slots == sought).to(torch.float32).mul_(slot_counts)
        times_seen = torch.mm(self.slot_sums, met)
        is_new = has_named - times_seen.clamp_max(1.0)
        # The oldest entry makes room: slots are filled in a ring. Counted from 1, so that 0 is none of them.
        place = torch.addcmul(is_new, is_new, torch.remainder(distinct, self.ring_sizes))
        is_place = torch.index_select(place, 0, self.slot_column) == self.slot_number
        next_slots = torch.where(is_place, sought, slots)
        next_counts = torch.where(is_place, self.one, met.clamp_max_(1.0).add_(slot_counts))
        return next_slots, next_counts, times_seen, is_new

    def _calendar_features(self, now_ms: Tensor) -> tuple[Tensor, Tensor]:
        """Return sine and cosine of the hour and of the weekday in UTC, [2, B] each; zeros without calendar time."""
        if not self.calendar:
            zeros = torch.zeros([2, now_ms.size(1)], dtype=torch.float32, device=now_ms.device)
            return zeros, zeros
        angle = torch.remainder(now_ms, self.calendar_ms).to(torch.float32).mul_(self.calendar_radians)
        return torch.sin(angle), torch.cos(angle)
