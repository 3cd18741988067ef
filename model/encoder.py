"""From raw event columns and a session's state to features, one event of B sessions at a time.

The encoder has no weights. It keeps running aggregates of constant size beside the LSTM's state: on real clickstreams,
a recurrent network without them loses to gradient boosting with them. Everything is scriptable and vectorised over the
batch.

A step is many operations on few numbers. Each operation costs 0.7 us, for one session as for 64, so the number of
operations decides. Hence tensors inside are [quantity, batch], and an operation takes a block of quantities at once. A
Python number in a comparison, a sum or a quotient costs a second call, so constants are buffers there. In a `clamp` a
Python number costs nothing; `clamp_max(1.0)` also turns a count into 0 or 1.

To add a feature, compute it in `Encoder._advance` and name its block in `BLOCKS`, or in `MAGNITUDES` if the feature is
the logarithm of a magnitude. What the feature remembers is a part of `CARRY`. Names, order and widths derive from these
tables.

Shape legend: B sessions, K event types (the vocabulary and "other"), C category properties, N number properties,
R slots of the item memory, Q slots of the category memory, F features, I categorical indices.
"""

import math
from collections import namedtuple
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from model.columns import CODE_FIELDS, FIXED_CODES, FIXED_NUMBERS, fingerprint
from model.events import ADD_TO_CART, REMOVE_FROM_CART
from model.properties import PropertySpec

# Slots for distinct items and categories of a session. An item seen again after that many others counts as new:
# the price of constant cost. The median session in the benchmarks' logs has fewer than 8 distinct items.
ITEM_SLOTS: Final = 16
CATEGORY_SLOTS: Final = 8
# Larger prices and quantities count as this: float32 keeps its sums finite.
_LARGEST: Final = 1e12


class Part(NamedTuple):
    """Rows of the state that are read and written together.

    Attributes:
        name: what they are.
        width: number of rows, or `types`, `slots`, `numbers` or `categories` for one row each.
        initial: value before the first event.
        joins: whether the part is read as one block with the part before it.
    """

    name: str
    width: int | str = 1
    initial: float = 0.0
    joins: bool = False


# The float32 part of the state, in the order of its columns. `_advance` unpacks it in this order.
CARRY: Final = (
    Part("events"),
    Part("run_length"),
    Part("previous_type"),
    Part("log_gap_mean"),
    Part("log_gap_squares"),
    Part("log_gap_max"),
    Part("log_gap_previous"),
    # Distinct items, events with an item, those whose item was seen before, distinct categories.
    Part("seen_sums", 4),
    Part("cart_units"),
    Part("cart_value", joins=True),
    # Sum and number of prices.
    Part("price_sums", 2),
    Part("price_max"),
    Part("price_min"),
    Part("price_previous"),
    Part("counts", "types"),
    # Seconds from the session's start to the last event of each type; -1: no such event.
    Part("seen_s", "types", initial=-1.0),
    Part("slot_counts", "slots"),
    # Last value of each number property; NaN: no value yet.
    Part("last_numbers", "numbers", initial=math.nan),
)
# The int64 part of the state.
MEMORY: Final = (
    Part("start_ms"),
    Part("last_ms", joins=True),
    Part("previous_item"),
    Part("slots", "slots"),
    Part("last_codes", "categories"),
)


class OfEvent(str):
    """Name of a feature that the current event gives by itself, once the time since the previous event is known.

    `is_first` tells "no gap" from "no time". Properties count, session-scoped ones too.
    """

    __slots__ = ()


class Block(NamedTuple):
    """Rows that `Encoder._advance` computes as one tensor.

    Attributes:
        name: the tensor's name.
        rows: name of each row's feature. `x[type]` stands for one row an event type, `x[number]` for one a number
            property. A row without a name is no feature.
    """

    name: str
    rows: tuple[str, ...]


def _block(name: str, *rows: str) -> Block:
    return Block(name, rows)


# Features that are log(1 + magnitude): one logarithm serves them all.
MAGNITUDES: Final = (
    _block("price", OfEvent("log_price")),
    _block("price_mean", "log_price_mean"),
    _block("price_before", ""),
    _block("quantity", OfEvent("log_quantity")),
    _block("price_max", "log_price_max"),
    _block("price_min", "log_price_min"),
    _block("cart_units", "log_cart_units"),
    _block("cart_value", "log_cart_value"),
    _block("events", "log_events"),
    _block("run_length", "log_run_length"),
    _block("times_seen", "log_item_times_seen", "log_category_times_seen"),
    _block("seen_sums", "log_distinct_items", "log_item_events", "", "log_distinct_categories"),
    _block("counts", "log_count[type]"),
    _block("since_s", "[type]"),
)
# All features, block by block.
BLOCKS: Final = (
    _block("log_spans", "log_elapsed", OfEvent("log_gap")),
    _block("log_gap_mean", "log_gap_mean"),
    _block("log_gap_deviation", "log_gap_deviation"),
    _block("log_gap_max", "log_gap_max"),
    _block("log_gap_previous", "log_gap_previous"),
    _block("is_first", OfEvent("is_first")),
    _block("has_named", OfEvent("has_item"), OfEvent("has_category")),
    _block("seen_before", "item_seen_before", ""),
    _block("same_item_again", "same_item_again"),
    _block("item_repeat_share", "item_repeat_share"),
    _block("cart_is_empty", "cart_is_empty"),
    _block("has_price", OfEvent("has_price")),
    _block("price_against", "price_against_mean", "price_against_previous"),
    _block("sines", OfEvent("hour_sin"), OfEvent("weekday_sin")),
    _block("cosines", OfEvent("hour_cos"), OfEvent("weekday_cos")),
    _block("logarithms", *chain.from_iterable(magnitude.rows for magnitude in MAGNITUDES)),
    _block("recency", "recency[type]"),
    _block("share", "share[type]"),
    _block("value", OfEvent("value[number]")),
    _block("given", OfEvent("given[number]")),
)
# Features in the order of the artifacts so far; any other follows in the order of `BLOCKS`. Changing this order changes
# every fingerprint, and each live session is rebuilt.
_ORDER: Final = (
    "log_gap", "log_elapsed", "log_events", "log_run_length", "log_gap_mean", "log_gap_deviation", "log_gap_max",
    "log_gap_previous", "is_first",
    "has_item", "item_seen_before", "same_item_again", "log_item_times_seen", "log_distinct_items", "log_item_events",
    "item_repeat_share", "has_category", "log_category_times_seen", "log_distinct_categories",
    "log_cart_units", "log_cart_value", "cart_is_empty", "has_price", "log_price", "log_price_mean", "log_price_max",
    "log_price_min", "price_against_mean", "price_against_previous", "log_quantity",
    "log_count[type]", "share[type]", "recency[type]",
    "hour_sin", "hour_cos", "weekday_sin", "weekday_cos",
    "value[number]", "given[number]",
)  # fmt: skip


def _tensors(name: str, fields: list[str]) -> Any:  # noqa: ANN401  # mypy knows no class whose fields it cannot read
    """Return a class of named tensors.

    A tensor that `_advance` forgets, or that no table has, is then an error when `_advance` is scripted. TorchScript
    turns the tuples into plain lists, so the names cost nothing.
    """
    return namedtuple(name, fields)  # noqa: PYI024  # the fields are a table's


_Magnitudes: Final = _tensors("_Magnitudes", [block.name for block in MAGNITUDES])
_Blocks: Final = _tensors("_Blocks", [block.name for block in BLOCKS])
_Carry: Final = _tensors("_Carry", [part.name for part in CARRY])
_Memory: Final = _tensors("_Memory", [part.name for part in MEMORY])


class Feature(NamedTuple):
    """A feature of an encoder.

    Attributes:
        name: its name.
        row: which of the rows that `Encoder._advance` computes it is.
        is_of_event: whether the current event gives it by itself; else it is a running aggregate.
    """

    name: str
    row: int
    is_of_event: bool


def features_of(types: Sequence[str], numbers: Sequence[str]) -> list[Feature]:
    """Return the features of an encoder in order.

    By position, not by name: a shop may call a type of its own "other", as the encoder calls those without a name.

    Args:
        types: names of the event types.
        numbers: names of the number properties.
    """
    members = {"type": types, "number": numbers}
    made: dict[str, list[Feature]] = {}
    row = 0
    for name in chain.from_iterable(block.rows for block in BLOCKS):
        stem, bracket, family = name.partition("[")
        names = [f"{stem}[{member}]" for member in members[family[:-1]]] if bracket else [name]
        if stem:
            made[name] = [Feature(each, row + at, isinstance(name, OfEvent)) for at, each in enumerate(names)]
        row += len(names)
    order = [*_ORDER, *(name for name in made if name not in _ORDER)]
    return [feature for name in order for feature in made[name]]


def _widths(parts: Sequence[Part], counts: Mapping[str, int]) -> list[int]:
    """Return the number of rows of each part."""
    return [part.width if isinstance(part.width, int) else counts[part.width] for part in parts]


def _blocks_read(parts: Sequence[Part], widths: Sequence[int]) -> list[int]:
    """Return the number of rows of each block in which `_advance` reads the parts."""
    blocks: list[int] = []
    for part, width in zip(parts, widths, strict=True):
        if part.joins:
            blocks[-1] += width
        else:
            blocks.append(width)
    return blocks


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
        named = dict(zip(CODE_FIELDS, (event_names, items, categories), strict=True))
        named |= {f"property.{spec.name}": property_values.get(spec.name, []) for spec in category_specs}
        # Each column's words in the order of their indices, as the manifest has them.
        self.vocabularies: dict[str, list[str]] = {column: vocabulary_order(words) for column, words in named.items()}
        self.properties: list[PropertySpec] = list(properties)
        self.calendar: bool = calendar
        self.largest: float = _LARGEST
        self.fixed_codes: int = FIXED_CODES
        self.fixed_numbers: int = FIXED_NUMBERS
        self.types: int = len(event_names) + 1
        self.category_properties: int = len(category_specs)
        self.number_properties: int = len(number_specs)
        counts = {
            "types": self.types,
            "slots": ITEM_SLOTS + CATEGORY_SLOTS,
            "numbers": self.number_properties,
            "categories": self.category_properties,
        }
        carry_widths, memory_widths = _widths(CARRY, counts), _widths(MEMORY, counts)
        self.carry_size: int = sum(carry_widths)
        self.memory_size: int = sum(memory_widths)
        self.carry_blocks: list[int] = _blocks_read(CARRY, carry_widths)
        self.memory_blocks: list[int] = _blocks_read(MEMORY, memory_widths)
        self.initial_carry: list[float] = [
            part.initial for part, width in zip(CARRY, carry_widths, strict=True) for _ in range(width)
        ]
        # Number of values of each index column, "no value" (0) and "other" (1) included.
        self.index_sizes: list[int] = [len(words) + 2 for words in self.vocabularies.values()]
        features = self._features()
        self.feature_names: list[str] = [feature.name for feature in features]
        # The price, the two prices it is compared with, further magnitudes, seconds since each type.
        magnitudes = sum(self.types if "[type]" in row else 1 for block in MAGNITUDES for row in block.rows)
        self.log_blocks: list[int] = [1, 2, magnitudes - 3 - self.types, self.types]
        self.index_names: list[str] = list(self.vocabularies)
        self._register_constants(category_specs, number_specs)

    @torch.jit.unused
    def _register_constants(self, category_specs: list[PropertySpec], number_specs: list[PropertySpec]) -> None:
        """Register what `_advance` needs as tensors; columns [., 1] where a block's rows differ in it."""

        def column(values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype).unsqueeze(1)

        # One sorted row a vocabulary. searchsorted needs equal widths, so rows are padded with a value that no
        # fingerprint has. Each row begins with two zeros, so a found position is the index itself: 0 for no value,
        # from 2 up the words.
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
        # The slots of items, then those of categories, each counted from 1. `slot_column` has each slot's kind (0 item,
        # 1 category), and `slot_sums` is the matrix that sums over each kind.
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
        # Session-scoped properties keep their last value.
        self.register_buffer("sticky_codes", column([spec.scope == "session" for spec in category_specs], torch.int64))
        self.register_buffer("sticky_numbers", column([spec.scope == "session" for spec in number_specs], torch.bool))
        self.register_buffer("feature_order", torch.tensor([feature.row for feature in self._features()]))

    @torch.jit.unused
    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *_: Any) -> None:  # noqa: ANN401  # as the module's
        """Read nothing: every buffer derives from the vocabularies, and other releases have other buffers."""

    @torch.jit.unused
    def _features(self) -> list[Feature]:
        numbers = [spec.name for spec in self.properties if spec.kind == "number"]
        return features_of(["other", *self.vocabularies["event_name"]], numbers)

    @torch.jit.unused
    def features_of_the_event(self) -> list[int]:
        """Return the positions of the features that the current event gives by itself: the rest are aggregates.

        The categorical indices are all of the current event.
        """
        return [position for position, feature in enumerate(self._features()) if feature.is_of_event]

    @torch.jit.export
    def initial_state(self, sessions: int) -> tuple[Tensor, Tensor]:
        """Return `(carry, memory)` of sessions without an event."""
        device = self.vocabulary.device
        carry = torch.tensor(self.initial_carry, dtype=torch.float32, device=device).repeat(sessions, 1)
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

        Sessions shorter than T are padded at the end with any values: later events never change earlier outputs.
        """
        carry, memory = self.initial_state(timestamp_ms.size(0))
        features, indices, _, _ = self.fold(timestamp_ms, codes, numbers, carry, memory)
        return features, indices

    @torch.jit.export
    def fold(
        self, timestamp_ms: Tensor, codes: Tensor, numbers: Tensor, carry: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Like `sequence`, from any state: fold T events into each of B sessions, and return the next state as well."""
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
        return torch.stack(all_features, 1), torch.stack(all_indices, 1), carry.t(), memory.t()

    def _advance(  # noqa: PLR0915  # one aggregate after another; pieces would pass twenty tensors around
        self, timestamp_ms: Tensor, codes: Tensor, numbers: Tensor, carry: Tensor, memory: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Fold one event into each of B sessions: `forward` with every tensor as [., B]."""
        (
            events, run_length, previous_type, log_gap_mean, log_gap_squares, log_gap_max, log_gap_previous, seen_sums,
            cart, price_sums, price_max, price_min, price_previous, counts, seen_s, slot_counts, last_numbers,
        ) = torch.split(carry, self.carry_blocks)  # fmt: skip
        times_ms, previous_item, slots, last_codes = torch.split(memory, self.memory_blocks)
        is_first = torch.logical_not(events)
        now_events = events + self.one

        # Time. A late event never makes a negative gap: it counts as simultaneous with the latest one.
        times_ms = torch.where(is_first, timestamp_ms, times_ms)
        start_ms, last_ms = torch.split(times_ms, 1)
        now_ms = torch.maximum(timestamp_ms, last_ms)
        spans_s = (now_ms - times_ms).to(torch.float32).div_(self.ms_per_s)
        elapsed_s = spans_s[:1]
        log_spans = torch.log1p(spans_s)
        log_gap = log_spans[1:]
        # Welford (1962), as the difference of two nearly equal sums would be mostly rounding error.
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
        # Before the first event the run length is 0, so the first event's type may equal the initial `previous_type`.
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
        # `fmin` ignores NaN. The first price is also the least and the previous one; before it, both are 0.
        price_min = torch.where(had_price, torch.fmin(price_min, sent[:1]), price)
        price_before = torch.where(had_price, price_previous, price)
        price_previous = torch.where(price_given, price, price_previous)
        moved = torch.mm(self.cart_signs, (codes[:1] == self.cart_codes).to(torch.float32)).mul_(quantity)
        cart = torch.cat([moved, moved * price]).add_(cart).clamp_min_(0.0)
        cart_units, cart_value = torch.split(cart, 1)
        cart_is_filled = torch.sign(cart_units)
        cart_value = cart_value * cart_is_filled

        # One logarithm over all magnitudes.
        logarithms = torch.cat(
            _Magnitudes(
                price=price,
                price_mean=price_mean,
                price_before=price_before,
                quantity=quantity,
                price_max=price_max,
                price_min=price_min,
                cart_units=cart_units,
                cart_value=cart_value,
                events=now_events,
                run_length=run_length,
                times_seen=times_seen,
                seen_sums=seen_sums,
                counts=counts,
                since_s=(elapsed_s - seen_s).clamp_min_(0.0),
            )
        ).log1p_()
        log_price, log_other_prices, _, log_since_s = torch.split(logarithms, self.log_blocks)

        # Number properties.
        value, given = last_numbers, last_numbers
        if self.number_properties > 0:
            sent_numbers = numbers[self.fixed_numbers :]
            known = torch.where(sent_numbers == sent_numbers, sent_numbers, last_numbers)  # noqa: PLR0124  # not NaN
            last_numbers = torch.where(self.sticky_numbers, known, float("nan"))
            value = known.nan_to_num(0.0).clamp_(-self.largest, self.largest).asinh_()
            given = (known == known).to(torch.float32)  # noqa: PLR0124  # not NaN

        sines, cosines = self._calendar_features(now_ms)
        features = torch.cat(
            _Blocks(
                log_spans=log_spans,
                log_gap_mean=log_gap_mean,
                log_gap_deviation=log_gap_deviation,
                log_gap_max=log_gap_max,
                log_gap_previous=log_gap_previous,
                is_first=is_first.to(torch.float32),
                has_named=has_named,
                seen_before=seen_before,
                same_item_again=same_item_again,
                item_repeat_share=item_repeats / item_events.clamp_min(1.0),
                cart_is_empty=self.one - cart_is_filled,
                has_price=has_price,
                price_against=(log_price - log_other_prices).mul_(has_price),
                sines=sines,
                cosines=cosines,
                logarithms=logarithms,
                recency=counts.clamp_max(1.0).div_(log_since_s + self.one),
                share=counts / now_events,
                value=value,
                given=given,
            )
        )
        next_carry = torch.cat(
            _Carry(
                events=now_events,
                run_length=run_length,
                previous_type=type_slot,
                log_gap_mean=log_gap_mean,
                log_gap_squares=log_gap_squares,
                log_gap_max=log_gap_max,
                log_gap_previous=log_gap,
                seen_sums=seen_sums,
                cart_units=cart_units,
                cart_value=cart_value,
                price_sums=price_sums,
                price_max=price_max,
                price_min=price_min,
                price_previous=price_previous,
                counts=counts,
                seen_s=seen_s,
                slot_counts=slot_counts,
                last_numbers=last_numbers,
            )
        )
        next_memory = torch.cat(
            _Memory(start_ms=start_ms, last_ms=now_ms, previous_item=previous_item, slots=slots, last_codes=last_codes)
        )
        return torch.index_select(features, 0, self.feature_order), indices, next_carry, next_memory

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
        # "No identifier" is 0 and equals the empty slots, whose count is 0.
        met = (slots == sought).to(torch.float32).mul_(slot_counts)
        times_seen = torch.mm(self.slot_sums, met)
        is_new = has_named - times_seen.clamp_max(1.0)
        # Slots are a ring: a new entry replaces the oldest. Places count from 1; 0 is no place.
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
