"""Bodies of the board's answers."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from app.schemas.quality import ModelQualityOut

_DOCUMENTED = ConfigDict(use_attribute_docstrings=True, protected_namespaces=())


class BoardSessionOut(BaseModel):
    """A session on the board."""

    model_config = _DOCUMENTED

    session_id: str
    """The session."""
    probability: float | None
    """Probability that it ends in a purchase, to six decimals; null once the outcome is known."""
    events: int
    """Number of events folded."""
    first_seen: datetime
    """Server's clock at its first event."""
    last_seen: datetime
    """Server's clock at its last."""
    model: str
    """Fingerprint of the model that gave the probability."""
    outcome: Literal["open", "purchase", "none"]
    """Whether it has bought."""
    last_event: str | None
    """Name of the last event that was folded; a purchase is none."""
    last_item_id: str | None = None
    """Its item; null where it has none."""
    cart_value: float | None = None
    """What is in its cart, less what was taken out, to hundredths; only with something in it."""
    currency: str | None = None
    """Currency of the cart: the last one among the events that were read; null: none of them has one."""
    value_at_stake: float | None = None
    """Cart value times probability, of an open session."""
    recent_probabilities: list[float] | None = None
    """The last probabilities as they were served, oldest first, to four decimals; only with `recent`."""


class BoardOut(BaseModel):
    """A page of the board."""

    model_config = _DOCUMENTED

    sessions: list[BoardSessionOut]
    """At most `limit`, highest first; there may be fewer although more follow."""
    next_cursor: str | None
    """Where to continue; null: nothing follows."""
    live_sessions: int
    """How many sessions live in all, those that have bought included."""


class RatesOut(BaseModel):
    """What comes in, all replicas together."""

    model_config = _DOCUMENTED

    window_s: float
    """Over how many seconds."""
    events_per_s: float
    """Events folded."""
    batches_per_s: float
    """Batches handled."""
    requests_per_s: float
    """Requests answered, of whatever kind."""


class LatencyOut(BaseModel):
    """How long `POST /v1/events` took in the last minute, ms, read off a histogram; null: there were none."""

    p50: float | None
    p95: float | None
    p99: float | None


class ScoresOut(BaseModel):
    """Open sessions by probability."""

    model_config = _DOCUMENTED

    edges: list[float]
    """Bounds of the classes, one more than there are classes; each but the last begins with its lower bound."""
    counts: list[int]
    """Open sessions of each class."""


class TotalsOut(BaseModel):
    """Counts since each replica's start, of the replicas that are alive."""

    events_folded: int = 0
    sessions_started: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rebuilds: int = 0
    late_events: int = 0
    unseen_names: int = 0
    errors: int = 0
    """Problems answered to callers, without 404: a look-up that finds nothing."""


class RevenueOut(BaseModel):
    """Values of purchases in one currency; those of different currencies are never added."""

    model_config = _DOCUMENTED

    currency: str | None
    """ISO 4217 code; null: the shop sends none."""
    value: float
    """Sum of the values, to hundredths."""
    purchases: int
    """Purchases with a value."""


class OutcomesOut(BaseModel):
    """Outcomes of the sessions that began within the window, `pending_s` or longer ago.

    A purchase ends a session at once, other sessions end after the idle time. So most of the sessions that began later
    and have ended are buyers, and none of these counts yet.
    """

    model_config = _DOCUMENTED

    purchase: int
    """Sessions that bought."""
    none: int
    """Sessions that did not."""
    revenue: list[RevenueOut] = []
    """Revenue of the purchases by currency, that of most purchases first."""
    window_s: float
    """Length of the window in seconds."""
    pending: int
    """Ended sessions that do not count yet."""
    pending_s: float
    """Age, in seconds since its begin, from which a session counts."""


class CartsOut(BaseModel):
    """Carts of open sessions in one currency."""

    model_config = _DOCUMENTED

    currency: str | None
    """ISO 4217 code; null: not known."""
    carts: int
    """Sessions with something in the cart."""
    cart_value: float
    """Sum of what is in the carts."""
    at_stake: float
    """Sum of cart value times probability."""


class AtStakeOut(BaseModel):
    """The value at stake in open sessions, read at most every 15 seconds."""

    model_config = _DOCUMENTED

    sessions: int
    """Sessions that were read: the likeliest, at most 2,000."""
    complete: bool
    """Whether these are all open sessions; if not, the values are those of the sessions that were read, so at least."""
    values: list[CartsOut]
    """By currency, that of most carts first; those of different currencies are never added."""


class QueueOut(BaseModel):
    """Events that wait for a batch, all replicas together."""

    model_config = _DOCUMENTED

    length: int
    """Events that wait."""
    capacity: int
    """Events that may wait."""
    overloaded: bool
    """Whether a replica's queue is full, or events were refused for that within the rates' window."""


class StatsOut(BaseModel):
    """Statistics of the service, all replicas together."""

    model_config = _DOCUMENTED

    as_of: datetime
    """Time of the answer."""
    replicas: int
    """Processes that have reported within the last seconds."""
    live_sessions: int
    """Sessions that have not ended, including those that have bought."""
    open_sessions: int
    """Live sessions without a purchase."""
    rates: RatesOut
    latency_ms: LatencyOut
    scores: ScoresOut
    totals: TotalsOut
    outcomes: OutcomesOut
    at_stake: AtStakeOut
    queue: QueueOut
    model: str
    """Fingerprint of the model in use on the replica that answers."""
    trust: ModelQualityOut | None
    """Model quality on ended sessions."""


class HourOut(BaseModel):
    """The ended sessions that began within an hour."""

    model_config = _DOCUMENTED

    start: datetime
    """The hour's begin."""
    sessions: int
    """Ended sessions."""
    events: int
    """Their events, without purchases."""
    purchases: int
    """Sessions that bought."""
    conversion: float | None
    """Purchases by session; null without sessions, and until `complete`: buyers end first."""
    predicted: float | None
    """Mean probability after the first event: what the conversion should be; null where `conversion` is."""
    revenue: list[RevenueOut]
    """Revenue of the purchases by currency."""
    complete: bool
    """Whether the hour's sessions have had time to end with either outcome."""


class HistoryOut(BaseModel):
    """Sessions by the hour in which they began."""

    model_config = _DOCUMENTED

    as_of: datetime
    """Time of the answer."""
    pending_s: float
    """Age, in seconds since its begin, from which a session counts."""
    hours: list[HourOut]
    """Oldest first, without hours before the first session."""
