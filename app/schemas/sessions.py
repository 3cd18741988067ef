"""Bodies of answers about a session: as it stands, how it came to be, and why."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.schemas.events import InterventionOut


class SessionOut(BaseModel):
    """A session as it stands."""

    model_config = ConfigDict(
        use_attribute_docstrings=True, protected_namespaces=(), json_schema_extra={"title": "Session"}
    )

    session_id: str
    """The session."""
    probability: float | None
    """Probability that it ends in a purchase, after its last folded event; null once the outcome is known."""
    events: int
    """Number of events folded."""
    first_seen: datetime
    """Server's clock at its first event."""
    last_seen: datetime
    """Server's clock at its last."""
    model: str
    """Fingerprint of the model that gave the probability."""
    outcome: Literal["open", "purchase", "none"]
    """Whether it has bought; `none`: the shop said that it will not."""


class TracedIntervention(InterventionOut):
    """That a rule has fired, and when."""

    model_config = ConfigDict(json_schema_extra={"title": "TracedIntervention"})

    decided: datetime
    """Server's clock when it fired."""
    idle: bool
    """Whether it fired after idle time, and not at the event."""


class ChangeOut(BaseModel):
    """A change of a probability."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"title": "Change"})

    log_odds: float
    """Difference of ln(p / (1 - p))."""
    points: float
    """Difference of the probability in percentage points."""


class ReasonOut(ChangeOut):
    """A group of inputs, and the change that it brought."""

    model_config = ConfigDict(json_schema_extra={"title": "Reason"})

    input: str
    """`event`, `time`, `events`, `item`, `category`, `price`, `cart`, `calendar`, `property.` and a name; or `repeat`:
    what one more event like the one before would have changed."""
    text: str
    """The input in words, with its points: `cart filled 20 s ago, worth 59.90: +14.0 points`."""


class WhyOut(BaseModel):
    """Why the probability is what it is after the last folded event: the change that the event brought, by inputs."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"title": "Why"})

    event: int
    """Number of the event, from 1."""
    event_name: str
    """Its canonical name."""
    before: float
    """Probability before it; before the first event, that after an event of which nothing is known."""
    after: float
    """Probability after it."""
    change: ChangeOut
    """After less before."""
    reasons: list[ReasonOut]
    """The inputs that moved it, the largest change first. They sum exactly to `change`."""


class TracePoint(BaseModel):
    """A folded event, and the probability after it."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    event_name: str
    """Its canonical name."""
    timestamp: datetime
    """Its time."""
    item_id: str | None
    """Its item."""
    probability: float
    """Probability of a purchase after it."""
    delta: ChangeOut | None
    """What it changed since the event before; null for the first event."""
    interventions: list[TracedIntervention] = []
    """The rules that fired at it, or in the idle time after it, control groups included."""


class TracedSessionOut(SessionOut):
    """A session as it stands, and how it came to be."""

    model_config = ConfigDict(json_schema_extra={"title": "TracedSession"})

    trace: list[TracePoint] = []
    """The folded events in the order they were folded; only with `trace`."""
    why: WhyOut | None = None
    """What moved the probability at the last folded event; only with `why`, and null before the first event."""
    trace_model: str
    """Fingerprint of the model that gave trace and why: the current one, whichever gave the answers at the time."""
