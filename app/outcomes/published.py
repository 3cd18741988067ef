"""A closed session as JSON for the stream of outcomes, described in docs/outcomes.md."""

from typing import Any, Final, Literal

import msgspec
from msgspec.structs import astuple

from app.store.outcomes import ClosedSession
from model.events import Event

FORMAT: Final = 1


class _ScoredEvent(Event, frozen=True, omit_defaults=True):
    """A folded event and its score; the model only where the event before has another."""

    probability: float | None = None
    model: str | None = None


class _Intervention(msgspec.Struct, frozen=True, omit_defaults=True):
    """A decision of a rule; `event` is the number of the event at which it fired, or after which with `idle`."""

    rule: str
    group: Literal["treatment", "control"]
    probability: float
    event: int
    decided_ms: int
    idle: bool = False


class _Session(msgspec.Struct, frozen=True, omit_defaults=True):
    format: int
    session_id: str
    outcome: Literal["purchase", "none", "unknown"]
    closed_by: str
    outcome_ms: int | None
    closed_ms: int
    last_seen_ms: int
    events: list[_ScoredEvent]
    value: float | None = None
    currency: str | None = None
    interventions: list[_Intervention] = []


_encoder: Final = msgspec.json.Encoder()


def session_json(session: ClosedSession) -> bytes:
    """Return the JSON of a closed session."""
    events = []
    model = None
    for entry in session.entries:
        values: list[Any] = [*astuple(entry.event), entry.probability, None if entry.model == model else entry.model]
        events.append(_ScoredEvent(*values))
        model = entry.model
    return _encoder.encode(
        _Session(
            format=FORMAT,
            session_id=session.session_id,
            outcome=session.outcome,
            closed_by=session.closed_by,
            outcome_ms=session.outcome_ms or None,
            closed_ms=session.closed_ms,
            last_seen_ms=session.last_seen_ms,
            events=events,
            value=session.value,
            currency=None if session.value is None else session.currency,
            interventions=[
                _Intervention(one.rule, one.group.word, one.probability, one.event, one.decided_ms, one.idle)
                for one in session.decisions
            ],
        )
    )
