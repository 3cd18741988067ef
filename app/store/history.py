"""A session's history: the events that were folded, each with the score that it was answered with.

Entries go by those before them (see `app.store.history_codec`), so a history is read from its first one on.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from app.errors import CorruptRecordError
from app.store.history_codec import decode_event
from model.events import Event, PropertyValue

# Up to here times are exact as floats, so that whoever reads them as JSON has them too.
_LATEST_MS: Final = 2**53


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of a history.

    Attributes:
        event: the event.
        probability: as it was answered, to float32; None: not known, as in entries of older releases.
        model: fingerprint of the model that answered, 16 hex characters; None: not known.
    """

    event: Event
    probability: float | None = None
    model: str | None = None


_several: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])


def decode_history(entries: Iterable[bytes]) -> list[Entry]:
    """Return what the entries of a whole history say, oldest first, in any version, each with its model.

    Raises:
        CorruptRecordError: they are something else.
    """
    history: list[Entry] = []
    last_event_ms = 0
    properties: Mapping[str, PropertyValue] = {}
    model: str | None = None
    for stored in map(decode_event, entries):
        if stored.is_continued and not history:
            raise CorruptRecordError("The beginning of the session's history is missing.")
        time_ms = stored.time_ms + last_event_ms if stored.is_continued else stored.time_ms
        if abs(time_ms) > _LATEST_MS:
            raise CorruptRecordError("An entry of the session's history has a time that is none.")
        last_event_ms = max(last_event_ms, time_ms)
        properties = properties if stored.properties is None else stored.properties
        model = stored.model or model
        event = Event(
            event_name=stored.event_name,
            timestamp_ms=time_ms,
            item_id=stored.item_id,
            item_category=stored.item_category,
            price=stored.price,
            quantity=stored.quantity,
            properties=properties,
        )
        history.append(Entry(event, stored.probability, model))
    return history


def decode_events(entries: Iterable[bytes]) -> list[Event]:
    """Return the events of a whole history; see `decode_history`."""
    return [entry.event for entry in decode_history(entries)]


def decode_joined(data: bytes) -> list[Entry]:
    """Return what a whole history says whose entries were written one after another in one MessagePack array.

    Raises:
        CorruptRecordError: the bytes are something else.
    """
    try:
        parts = _several.decode(data)
    except msgspec.DecodeError as exc:
        raise CorruptRecordError("The history of a closed session is not one that this release can read.") from exc
    return decode_history(map(bytes, parts))
