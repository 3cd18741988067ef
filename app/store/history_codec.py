"""The bytes of one event of a session's history, with the score that it was answered with.

An entry is a MessagePack array. Version 3, where an entry goes by what stands before it:

    kind, time, name, score, item id, category, price, quantity, properties, model

kind        3: the entry stands alone, as the first of every history does; 4: it continues the entries before it;
            5 and above: so it does, and it has no field for its name, which is the well-known one of number kind - 5
time        of kind 3 in ms; else as difference to the largest time of the entries before it, at least 0
name        a well-known one as its number, see `app.store.shorthand`; any other as it is
score       the probability as it was served: the bits of a float32, which is what the model computes in, as one integer
price       as integer a number of hundredths, else a float64: what is divided by 100 is the very float that it was
quantity    as integer a whole number, else a float64
properties  numbers like quantities; left out of kind 3: there are none; else: they are those of the entry before
model       fingerprint of the one that served it, eight bytes, only where it is another one than in the entry before

Trailing fields without a value are left out, as most page views have few. Prices and quantities come back as the floats
they were, properties as the texts, truth values and floats. Name and score stand in each entry, so that the end of a
history tells them alone; all else takes the whole of it, oldest entry first.

Versions 1 and 2, of kinds 1 and 2, had the same fields, but for score and model in version 1; each entry stood alone,
and names and numbers were as the event has them. Both are still read.
"""

import struct
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from app.errors import CorruptRecordError
from app.store.shorthand import NAMES, NUMBERS, hundredths, whole
from model.events import Event, PropertyValue

_ALONE: Final = 3
_CONTINUED: Final = 4
_NAMED: Final = 5
_FLOAT: Final = struct.Struct("<f")
_BITS: Final = struct.Struct("<I")


class StoredEvent(msgspec.Struct, frozen=True):
    """What an entry says by itself.

    Attributes:
        is_continued: whether it goes by the entries before it.
        time_ms: its time or, if it is continued, the difference to the largest time before it.
        event_name, item_id, item_category, price, quantity: see `Event`.
        probability: as it was answered, to float32; None: not known.
        properties: None: those of the entry before.
        model: fingerprint of the model that answered, 16 hex characters; None: the one of the entry before.
    """

    is_continued: bool
    time_ms: int
    event_name: str
    probability: float | None
    item_id: str | None
    item_category: str | None
    price: float | None
    quantity: float | None
    properties: Mapping[str, PropertyValue] | None
    model: str | None


class _Named(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
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


class _Numbered(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    kind: int
    time_ms: int
    score: int | None = None
    item_id: str | None = None
    item_category: str | None = None
    price: int | float | None = None
    quantity: int | float | None = None
    properties: dict[str, bool | int | float | str] | None = None
    model: bytes | None = None

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
        """None was kept."""

    @property
    def model(self) -> None:
        """None was kept."""


_encoder: Final = msgspec.msgpack.Encoder()
_decoders: Final[Mapping[int, msgspec.msgpack.Decoder[Any]]] = {
    1: msgspec.msgpack.Decoder(_Version1),
    2: msgspec.msgpack.Decoder(_Version2),
    _ALONE: msgspec.msgpack.Decoder(_Named),
    _CONTINUED: msgspec.msgpack.Decoder(_Named),
    **dict.fromkeys(range(_NAMED, _NAMED + len(NAMES)), msgspec.msgpack.Decoder(_Numbered)),
}


def encode_event(
    event: Event,
    probability: float | None = None,
    model: str | None = None,
    *,
    after_ms: int | None = None,
    repeats_properties: bool = False,
) -> bytes:
    """Return the bytes of an event, in the newest codec version.

    Args:
        event: the event.
        probability: what it was answered, in [0, 1]; kept as float32.
        model: fingerprint of the model that answered, where the entry before does not have the same.
        after_ms: largest time of the entries that this one continues, at least 0; None: it stands alone, as the first
            of a history does and any other may.
        repeats_properties: whether it continues one that has the very same properties.
    """
    name, price, quantity = event.event_name, event.price, event.quantity
    number = NUMBERS.get(name)
    properties: Mapping[str, PropertyValue] | None = event.properties
    if after_ms is None:
        kind, time_ms = _ALONE, event.timestamp_ms
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
    ]
    if kind < _NAMED:
        fields.insert(2, name if number is None else number)
    while fields[-1] is None:
        fields.pop()
    return _encoder.encode(fields)


def decode_event(data: bytes) -> StoredEvent:
    """Return what `encode_event` wrote in any version; raise `CorruptRecordError` for any other bytes."""
    # The first byte says that it is an array; the second is its first element, small enough to be one byte.
    kind = data[1] if len(data) > 1 else 0
    decoder = _decoders.get(kind)
    if decoder is None:
        raise CorruptRecordError(
            f"An entry of the session's history is of kind {kind}; this release reads kinds 1 to {max(_decoders)}."
        )
    try:
        entry: _Version1 | _Version2 | _Named | _Numbered = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise CorruptRecordError("An entry of the session's history is not one that this release can read.") from exc
    if entry.kind != kind:
        raise CorruptRecordError("An entry of the session's history does not begin with its kind.")
    price: float | None = entry.price
    quantity: float | None = entry.quantity
    properties: Mapping[str, PropertyValue] | None = entry.properties
    if kind >= _ALONE:
        price = price / 100 if isinstance(price, int) else price
        quantity = None if quantity is None else float(quantity)
        properties = None if properties is None else {key: _long(value) for key, value in properties.items()}
    is_continued = kind > _ALONE
    return StoredEvent(
        is_continued=is_continued,
        time_ms=entry.time_ms,
        event_name=_name(entry.name),
        probability=_probability(entry.score),
        item_id=entry.item_id,
        item_category=entry.item_category,
        price=price,
        quantity=quantity,
        properties={} if properties is None and not is_continued else properties,
        model=None if entry.model is None else entry.model.hex(),
    )


def _name(name: int | str) -> str:
    if isinstance(name, str):
        return name
    if 0 <= name < len(NAMES):
        return NAMES[name]
    raise CorruptRecordError(f"An entry of the session's history has a name that this release does not know, {name}.")


def _short(value: PropertyValue) -> PropertyValue:
    """Return a property as it is written: a float as an integer where that is the same number."""
    return whole(value) if type(value) is float else value


def _long(value: PropertyValue) -> PropertyValue:
    """Return a property as it was before `_short`."""
    return float(value) if type(value) is int else value


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
