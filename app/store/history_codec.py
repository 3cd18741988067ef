"""A session's history: its folded events, each with the score that answered it, as MessagePack arrays.

An entry depends on the entries before it, so a history is read from its first entry on. Version 3 of an entry is

    kind, time, name, score, item id, category, price, quantity, properties, model, value, currency

kind        3: independent of other entries, as the first of every history; 4: continues the entries before it;
            5 and above: continues them and has no name field; its name is the well-known one of number kind - 5
time        of kind 3 in ms; else the difference to the largest time of the entries before it, at least 0
name        the number of a well-known name (`NAMES`), any other name as text
score       the probability as it was served: the bits of a float32, which is the model's type, as one integer
price       an integer is a number of hundredths, which divided by 100 gives exactly the original float; else a float64
quantity    an integer is a whole number; else a float64
properties  numbers like quantities; left out of kind 3: none; left out of other kinds: those of the entry before
model       fingerprint of the model that served the score, eight bytes, only where the entry before has another
value       a number like a price; what the event is worth in all

Trailing fields without a value are left out, as most page views have few. A field that is added to `Event` follows the
model. Prices and quantities are read as the floats that were written, properties as texts, truth values and floats.
Every entry has its name and score, so that the end of a history is enough to read these; all other fields need the
whole history, oldest entry first.

An array of kind 0 alone may come before the entries: the server evicted the session's earlier events (`commit.lua`).

A decision of a rule is an entry of its own, after the event at which the rule fired:

    127, decision      the decision as an array, see `model.interventions.decide.Decision`

Versions 1 and 2 (kinds 1 and 2) had the same fields, except score and model in version 1. Each entry was independent,
and names and numbers were those of the event. Both are still read.
"""

import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

import msgspec

from app.errors import CorruptRecordError
from model.events import Event, PropertyValue
from model.interventions.decide import Decision

# By number. Numbers are stored: a new name goes to the end, and no name is ever removed.
NAMES: Final = (
    "page_view",
    "view_item_list",
    "view_item",
    "search",
    "add_to_cart",
    "remove_from_cart",
    "view_cart",
    "begin_checkout",
    "add_shipping_info",
    "add_payment_info",
    "purchase",
    "add_to_wishlist",
    "click",
    "first_visit",
    "generate_lead",
    "login",
    "refund",
    "scroll",
    "select_content",
    "select_item",
    "select_promotion",
    "session_start",
    "share",
    "sign_up",
    "user_engagement",
    "view_promotion",
    "view_search_results",
)
# Precedes the entries of a session whose earlier events the server has evicted; written by `commit.lua`.
START_UNKNOWN: Final = b"\x91\x00"
_NUMBERS: Final = {name: number for number, name in enumerate(NAMES)}
_INDEPENDENT: Final = 3
_CONTINUED: Final = 4
_NAMED: Final = 5
# The largest number of one byte, as names are added from below.
_DECISION: Final = 127
_FLOAT: Final = struct.Struct("<f")
_BITS: Final = struct.Struct("<I")
# Beyond it an integer takes as many bytes as the float, and products are no longer close enough to round.
_LARGEST_AMOUNT: Final = 2.0**40
# Up to here times are exact as floats, and so for every JSON parser.
_LATEST_MS: Final = 2**53


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of a history.

    Attributes:
        event: the event.
        probability: the score that answered it, to float32; None: not known, as in entries of older releases.
        model: fingerprint of the model that answered, 16 hex characters; None: not known.
        decisions: the rules that fired at it, or in the idle time after it.
    """

    event: Event
    probability: float | None = None
    model: str | None = None
    decisions: tuple[Decision, ...] = ()


class _Named(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """Version 3 of kinds 3 and 4."""

    kind: int
    time_ms: int
    name: int | str
    score: int | None = None
    item_id: str | None = None
    item_category: str | None = None
    price: int | float | None = None
    quantity: int | float | None = None
    properties: dict[str, bool | int | float | str] | None = None
    model: bytes | None = None
    value: int | float | None = None
    currency: str | None = None


class _Numbered(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """Version 3 of the kinds that have a well-known name."""

    kind: int
    time_ms: int
    score: int | None = None
    item_id: str | None = None
    item_category: str | None = None
    price: int | float | None = None
    quantity: int | float | None = None
    properties: dict[str, bool | int | float | str] | None = None
    model: bytes | None = None
    value: int | float | None = None
    currency: str | None = None

    @property
    def name(self) -> int:
        """Number of the name."""
        return self.kind - _NAMED


class _Version2(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    kind: int
    time_ms: int
    name: str
    score: int | None = None
    item_id: str | None = None
    item_category: str | None = None
    price: float | None = None
    quantity: float | None = None
    properties: dict[str, bool | int | float | str] | None = None
    model: bytes | None = None

    @property
    def value(self) -> None:
        """Not stored before version 3."""

    @property
    def currency(self) -> None:
        """Not stored before version 3."""


class _Version1(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    kind: int
    time_ms: int
    name: str
    item_id: str | None = None
    item_category: str | None = None
    price: float | None = None
    quantity: float | None = None
    properties: dict[str, bool | int | float | str] | None = None

    @property
    def score(self) -> None:
        """Not stored in version 1."""

    @property
    def model(self) -> None:
        """Not stored in version 1."""

    @property
    def value(self) -> None:
        """Not stored before version 3."""

    @property
    def currency(self) -> None:
        """Not stored before version 3."""


class _StoredDecision(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    kind: int
    decision: Decision


_Stored = _Named | _Numbered | _Version2 | _Version1

_encoder: Final = msgspec.msgpack.Encoder()
_decoders: Final[Mapping[int, msgspec.msgpack.Decoder[Any]]] = {
    1: msgspec.msgpack.Decoder(_Version1),
    2: msgspec.msgpack.Decoder(_Version2),
    _INDEPENDENT: msgspec.msgpack.Decoder(_Named),
    _CONTINUED: msgspec.msgpack.Decoder(_Named),
    **dict.fromkeys(range(_NAMED, _NAMED + len(NAMES)), msgspec.msgpack.Decoder(_Numbered)),
}
_decision_decoder: Final = msgspec.msgpack.Decoder(_StoredDecision)
_array: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])


def encode_event(
    event: Event,
    probability: float | None = None,
    model: str | None = None,
    *,
    after_ms: int | None = None,
    repeats_properties: bool = False,
) -> bytes:
    """Return the entry of an event, in the newest version.

    Args:
        event: the event.
        probability: the score that answered it, in [0, 1]; stored as float32.
        model: fingerprint of the model that answered, where the entry before has another.
        after_ms: largest time of the entries that this one continues, at least 0; None: the entry is independent, as
            the first of a history must be.
        repeats_properties: whether the entry before has exactly the same properties.
    """
    name, price, quantity = event.event_name, event.price, event.quantity
    number = _NUMBERS.get(name)
    properties: Mapping[str, PropertyValue] | None = event.properties
    if after_ms is None:
        kind, time_ms = _INDEPENDENT, event.timestamp_ms
        properties = properties or None
    else:
        kind, time_ms = _CONTINUED if number is None else _NAMED + number, event.timestamp_ms - after_ms
        properties = None if repeats_properties else properties
    fields: list[Any] = [
        kind,
        time_ms,
        None if probability is None else _BITS.unpack(_FLOAT.pack(probability))[0],
        event.item_id,
        event.item_category,
        None if price is None else hundredths(price),
        None if quantity is None else whole(quantity),
        None if properties is None else {key: _short(value) for key, value in properties.items()},
        None if model is None else bytes.fromhex(model),
        None if event.value is None else hundredths(event.value),
        event.currency,
    ]
    if kind < _NAMED:
        fields.insert(2, name if number is None else number)
    while fields[-1] is None:
        fields.pop()
    return _encoder.encode(fields)


def encode_decision(decision: Decision) -> bytes:
    """Return the entry of a decision; it follows the entry of the event at which the rule fired."""
    return _encoder.encode((_DECISION, decision))


def is_decision(data: bytes) -> bool:
    """Return whether an entry is a decision's, and not an event's."""
    return len(data) > 1 and data[1] == _DECISION


def is_event(data: bytes) -> bool:
    """Return whether an entry is an event's, and no decision or mark."""
    return data != START_UNKNOWN and not is_decision(data)


def decode_history(entries: Iterable[bytes]) -> list[Entry]:
    """Return the events of a whole history, oldest first, in any version, each with its model and its decisions.

    Raises:
        CorruptRecordError: the bytes are no history.
    """
    history: list[Entry] = []
    last_event_ms = 0
    properties: Mapping[str, PropertyValue] = {}
    model: str | None = None
    for data in entries:
        if not history and data == START_UNKNOWN:
            continue
        if is_decision(data):
            _add_decision(history, data)
            continue
        stored = _decoded(data)
        time_ms = stored.time_ms
        if stored.kind > _INDEPENDENT:
            if not history:
                raise CorruptRecordError("The beginning of the session's history is missing.")
            time_ms += last_event_ms
        if abs(time_ms) > _LATEST_MS:
            raise CorruptRecordError("An entry of the session's history has a time that is out of range.")
        last_event_ms = max(last_event_ms, time_ms)
        if stored.properties is not None:
            properties = _long(stored.properties) if stored.kind >= _INDEPENDENT else stored.properties
        elif stored.kind <= _INDEPENDENT:
            properties = {}
        if stored.model:
            model = stored.model.hex()
        price, quantity, value = stored.price, stored.quantity, stored.value
        event = Event(
            event_name=_name(stored),
            timestamp_ms=time_ms,
            item_id=stored.item_id,
            item_category=stored.item_category,
            price=price / 100 if isinstance(price, int) else price,
            quantity=None if quantity is None else float(quantity),
            properties=properties,
            value=value / 100 if isinstance(value, int) else value,
            currency=stored.currency,
        )
        history.append(Entry(event, _probability(stored.score), model))
    return history


def decode_events(entries: Iterable[bytes]) -> list[Event]:
    """Return the events of a whole history, as `decode_history` reads them."""
    return [entry.event for entry in decode_history(entries)]


def decode_joined(data: bytes) -> list[Entry]:
    """Return the entries of a whole history that was written as one MessagePack array.

    Raises:
        CorruptRecordError: the bytes are no history.
    """
    try:
        parts = _array.decode(data)
    except msgspec.DecodeError as exc:
        raise CorruptRecordError("The history of a closed session is not one that this release can read.") from exc
    return decode_history(map(bytes, parts))


def decode_for_board(data: bytes) -> tuple[str, float | None, str | None, str | None]:
    """Return event name, probability, item id and currency of one entry; the entries before it are not needed.

    Raises:
        CorruptRecordError: the bytes are no entry.
    """
    stored = _decoded(data)
    return _name(stored), _probability(stored.score), stored.item_id, stored.currency


def hundredths(amount: float) -> int | float:
    """Return a whole number of hundredths that divided by 100 is the amount, or else the amount as a float."""
    if 0.0 <= amount <= _LARGEST_AMOUNT:
        number = round(amount * 100)
        if number / 100 == amount and (number or _is_positive_zero(amount)):
            return number
    return float(amount)


def whole(amount: float) -> int | float:
    """Return the amount as an integer if it is a whole number from 0 up, or else as a float."""
    if 0.0 <= amount <= _LARGEST_AMOUNT:
        number = int(amount)
        if number == amount and (number or _is_positive_zero(amount)):
            return number
    return float(amount)


def properties_code(properties: Mapping[str, PropertyValue]) -> int:
    """Return a 64-bit code of an event's properties, the same in every process; never 0.

    Two different ones share a code with a probability of 2**-64. Their order and their types count.
    """
    return _code(_encoder.encode(dict(properties)))


@lru_cache(maxsize=4096)
def _code(properties: bytes) -> int:
    return int.from_bytes(blake2b(properties, digest_size=8).digest(), "little") or 1


def _add_decision(history: list[Entry], data: bytes) -> None:
    """Add a decision to the last event of a history."""
    try:
        decision = _decision_decoder.decode(data).decision
        last = history[-1]
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as exc:
        raise CorruptRecordError("A decision in the session's history is not one that this release can read.") from exc
    history[-1] = replace(last, decisions=(*last.decisions, decision))


def _is_positive_zero(amount: float) -> bool:
    return math.copysign(1.0, amount) > 0


def _decoded(data: bytes) -> _Stored:
    # The first byte declares an array; the second is its first element, which fits one byte.
    kind = data[1] if len(data) > 1 else 0
    decoder = _decoders.get(kind)
    if decoder is None:
        raise CorruptRecordError(
            f"An entry of the session's history is of kind {kind}; this release reads kinds 1 to {max(_decoders)}."
        )
    try:
        stored: _Stored = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise CorruptRecordError("An entry of the session's history is not one that this release can read.") from exc
    if stored.kind != kind:
        raise CorruptRecordError("An entry of the session's history does not begin with its kind.")
    return stored


def _name(stored: _Stored) -> str:
    name = stored.name
    if isinstance(name, str):
        return name
    if 0 <= name < len(NAMES):
        return NAMES[name]
    raise CorruptRecordError(f"An entry of the session's history has a name that this release does not know, {name}.")


def _short(value: PropertyValue) -> PropertyValue:
    """Return a property's value as it is written: a float as an integer of the same value, if there is one."""
    return whole(value) if type(value) is float else value


def _long(properties: Mapping[str, PropertyValue]) -> dict[str, PropertyValue]:
    """Return properties with the values that they had before `_short`."""
    return {key: float(value) if type(value) is int else value for key, value in properties.items()}


def _probability(bits: int | None) -> float | None:
    if bits is None:
        return None
    try:
        (probability,) = _FLOAT.unpack(_BITS.pack(bits))
    except struct.error as exc:
        raise CorruptRecordError("An entry of the session's history has a score of more than 32 bits.") from exc
    if not 0.0 <= probability <= 1.0:
        raise CorruptRecordError("An entry of the session's history has a score that is no probability.")
    return float(probability)
