"""Records of sessions as tests store them."""

from typing import Any

from app.store.record_codec import Answers, Outcome, Record


def a_record(**fields: Any) -> Record:
    """Return the record of an open session after one event, with other values in these fields."""
    usual: dict[str, Any] = {
        "version": bytes(8),
        "model": "00" * 8,
        "probability": 0.5,
        "events": 1,
        "first_seen_ms": 1,
        "last_seen_ms": 1,
        "last_event_ms": 1,
        "outcome": Outcome.OPEN,
        "outcome_ms": 0,
        "answers": Answers(),
        "state": b"state",
    }
    return Record(**(usual | fields))
