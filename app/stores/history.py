"""One event of a session's history with the score that it was answered with, and its bytes.

An entry is a MessagePack array. Version 2:

    codec version (2), time in ms, name, score, item id, category, price, quantity, properties, model

Trailing fields without a value are left out, as most page views have few. The score is the probability as it was
served: the bits of a float32, which is what the model computes in, as one unsigned integer of five bytes. The model is
the fingerprint of the one that served it, eight bytes, and stands only where it is another one than in the entry
before, so that it costs next to nothing. Together they let a history tell alone what a session was told. Prices and
quantities come back as the floats they were; a property comes back with its type.

Version 1 had neither score nor model: codec version (1), time in ms, name, item id, category, price, quantity,
properties. It is still read.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from app.errors import CorruptRecordError
from model.events import Event, PropertyValue

CODEC_VERSION: Final = 2
_WITHOUT_SCORES: Final = 1
_FLOAT: Final = struct.Struct("<f")
_BITS: Final = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of a history.

    Attributes:
        event: the event.
        probability: as it was answered, to float32; None: not known, as in entries of older releases.
        model: fingerprint of the model that answered, 16 hex characters; None: the one of the entry before.
    """

    event: Event
    probability: float | None = None
    model: str | None = None


class _Scored(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    codec_version: int
    timestamp_ms: int
    event_name: str
    score: int | None = None
    item_id: str | None = None
    item_category: str | None = None
    price: float | None = None
    quantity: float | None = None
    properties: dict[str, bool | int | float | str] | None = None
    model: bytes | None = None


class _Unscored(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    codec_version: int
    timestamp_ms: int
    event_name: str
    item_id: str | None = None
    item_category: str | None = None
    price: float | None = None
    quantity: float | None = None
    properties: dict[str, bool | int | float | str] | None = None


_encoder: Final = msgspec.msgpack.Encoder()
_scored: Final = msgspec.msgpack.Decoder(_Scored)
_unscored: Final = msgspec.msgpack.Decoder(_Unscored)
_several: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])


def encode_event(event: Event, probability: float | None = None, model: str | None = None) -> bytes:
    """Return the bytes of an event, in the newest codec version.

    Args:
        event: the event.
        probability: what it was answered, in [0, 1]; kept as float32.
        model: fingerprint of the model that answered, where the entry before does not have the same.
    """
    fields: list[Any] = [
        CODEC_VERSION,
        event.timestamp_ms,
        event.event_name,
        None if probability is None else _BITS.unpack(_FLOAT.pack(probability))[0],
        event.item_id,
        event.item_category,
        event.price,
        event.quantity,
        dict(event.properties) or None,
        None if model is None else bytes.fromhex(model),
    ]
    while fields[-1] is None:
        fields.pop()
    return _encoder.encode(fields)


def decode_event(data: bytes) -> Event:
    """Return the event of an entry; raise `CorruptRecordError` for bytes that are none."""
    return decode_entry(data).event


def decode_entry(data: bytes) -> Entry:
    """Return what `encode_event` wrote in any version; raise `CorruptRecordError` for any other bytes."""
    # The first byte says that it is an array; the second is its first element, small enough to be one byte.
    version = data[1] if len(data) > 1 else None
    try:
        entry = (_unscored if version == _WITHOUT_SCORES else _scored).decode(data)
        probability = _probability(entry.score) if isinstance(entry, _Scored) else None
        model = entry.model.hex() if isinstance(entry, _Scored) and entry.model is not None else None
    except (msgspec.DecodeError, UnicodeDecodeError, struct.error) as exc:
        raise CorruptRecordError("An entry of the session's history is not one that this release can read.") from exc
    if entry.codec_version not in (_WITHOUT_SCORES, CODEC_VERSION):
        raise CorruptRecordError(
            f"An entry of the session's history has codec version {entry.codec_version}; "
            f"this release reads versions 1 to {CODEC_VERSION}."
        )
    properties: Mapping[str, PropertyValue] = entry.properties or {}
    event = Event(
        event_name=entry.event_name,
        timestamp_ms=entry.timestamp_ms,
        item_id=entry.item_id,
        item_category=entry.item_category,
        price=entry.price,
        quantity=entry.quantity,
        properties=properties,
    )
    return Entry(event, probability, model)


def decode_entries(data: bytes) -> list[Entry]:
    """Return the entries of a whole history, written one after another in one MessagePack array; each with its model.

    Raises:
        CorruptRecordError: the bytes are something else.
    """
    try:
        parts: Sequence[msgspec.Raw] = _several.decode(data)
    except msgspec.DecodeError as exc:
        raise CorruptRecordError("The history of a closed session is not one that this release can read.") from exc
    entries: list[Entry] = []
    model = None
    for part in parts:
        entry = decode_entry(bytes(part))
        model = entry.model or model
        entries.append(Entry(entry.event, entry.probability, model))
    return entries


def _probability(bits: int | None) -> float | None:
    if bits is None:
        return None
    (probability,) = _FLOAT.unpack(_BITS.pack(bits))
    if not 0.0 <= probability <= 1.0:
        raise CorruptRecordError("An entry of the session's history has a score that is no probability.")
    return float(probability)
