"""The JSON of a closed session in the stream of outcomes; docs/outcomes.md describes it."""

from typing import Any, Final, Literal

import msgspec
from msgspec.structs import asdict

from app.store.history_codec import Entry
from app.store.outcomes import ClosedSession

FORMAT: Final = 1


class _Session(msgspec.Struct, frozen=True):
    format: int
    session_id: str
    outcome: Literal["purchase", "none"]
    closed_by: str
    outcome_ms: int | None
    closed_ms: int
    last_seen_ms: int
    events: list[dict[str, Any]]


_encoder: Final = msgspec.json.Encoder()


def session_json(session: ClosedSession) -> bytes:
    """Return the JSON of a closed session."""
    models = [None, *(entry.model for entry in session.entries)]
    events = [_event(entry, model) for entry, model in zip(session.entries, models, strict=False)]
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


def _event(entry: Entry, model_before: str | None) -> dict[str, Any]:
    """Return the fields of an event that have a value; the model only where the entry before has another."""
    model = None if entry.model == model_before else entry.model
    fields = {**asdict(entry.event), "probability": entry.probability, "model": model}
    return {name: value for name, value in fields.items() if value is not None and value != {}}
