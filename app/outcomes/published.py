"""A closed session as JSON for the stream of outcomes, described in docs/outcomes.md."""

from typing import Final, Literal

import msgspec

from app.store.outcomes import ClosedSession
from model.events import PropertyValue

FORMAT: Final = 1


class _Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """One folded event; fields without a value are left out."""

    event_name: str
    timestamp_ms: int
    item_id: str | None = None
    item_category: str | None = None
    price: float | None = None
    quantity: float | None = None
    properties: dict[str, PropertyValue] = {}
    probability: float | None = None
    model: str | None = None


class _Session(msgspec.Struct, frozen=True):
    format: int
    session_id: str
    outcome: Literal["purchase", "none"]
    closed_by: str
    outcome_ms: int | None
    closed_ms: int
    last_seen_ms: int
    events: list[_Event]


_encoder: Final = msgspec.json.Encoder()


def session_json(session: ClosedSession) -> bytes:
    """Return the JSON of a closed session."""
    events = []
    model = None
    for entry in session.entries:
        event = entry.event
        events.append(
            _Event(
                event_name=event.event_name,
                timestamp_ms=event.timestamp_ms,
                item_id=event.item_id,
                item_category=event.item_category,
                price=event.price,
                quantity=event.quantity,
                properties=dict(event.properties),
                probability=entry.probability,
                model=None if entry.model == model else entry.model,
            )
        )
        model = entry.model
    return _encoder.encode(
        _Session(
            format=FORMAT,
            session_id=session.session_id,
            outcome="purchase" if session.bought else "none",
            closed_by=session.closed_by,
            outcome_ms=session.outcome_ms or None,
            closed_ms=session.closed_ms,
            last_seen_ms=session.last_seen_ms,
            events=events,
        )
    )
