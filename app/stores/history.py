"""One event of a session's history, and its bytes.

An entry is a MessagePack array: codec version (1), time in ms, name, item id, category, price, quantity, properties.
Trailing fields without a value are left out, as most page views have few. Prices and quantities come back as the floats
they were; a property comes back with its type.
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from app.errors import CorruptRecordError
from model.events import Event, PropertyValue

CODEC_VERSION: Final = 1


class _Entry(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    codec_version: int
    timestamp_ms: int
    event_name: str
    item_id: str | None = None
    item_category: str | None = None
    price: float | None = None
    quantity: float | None = None
    properties: dict[str, bool | int | float | str] | None = None


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(_Entry)


def encode_event(event: Event) -> bytes:
    """Return the bytes of an event, in the newest codec version."""
    fields: list[Any] = [
        CODEC_VERSION,
        event.timestamp_ms,
        event.event_name,
        event.item_id,
        event.item_category,
        event.price,
        event.quantity,
        dict(event.properties) or None,
    ]
    while fields[-1] is None:
        fields.pop()
    return _encoder.encode(fields)


def decode_event(data: bytes) -> Event:
    """Return the event that `encode_event` wrote; raise `CorruptRecordError` for any other bytes."""
    try:
        entry = _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise CorruptRecordError("An entry of the session's history is not one that this release can read.") from exc
    if entry.codec_version != CODEC_VERSION:
        raise CorruptRecordError(
            f"An entry of the session's history has codec version {entry.codec_version}; "
            f"this release reads version {CODEC_VERSION}."
        )
    properties: Mapping[str, PropertyValue] = entry.properties or {}
    return Event(
        event_name=entry.event_name,
        timestamp_ms=entry.timestamp_ms,
        item_id=entry.item_id,
        item_category=entry.item_category,
        price=entry.price,
        quantity=entry.quantity,
        properties=properties,
    )
