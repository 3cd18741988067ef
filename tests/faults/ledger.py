"""The record of all requests and answers: besides Redis, the only input of the oracle."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

from faults.workload import Posting

HTTP_OK = 200


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request.

    Attributes:
        replica: number of the target replica.
        started_s, ended_s: monotonic clock.
        status: status of the answer; None without an answer.
        body: body of the answer; empty without an answer.
        patience_s: how long the client waited before it gave up; None if it did not give up.
    """

    replica: int
    started_s: float
    ended_s: float
    status: int | None
    body: dict[str, Any]
    patience_s: float | None = None

    @property
    def acknowledged(self) -> bool:
        """Whether the service acknowledged the event."""
        return self.status == HTTP_OK


@dataclass(slots=True)
class Sent:
    """One event and every attempt to deliver it."""

    posting: Posting
    attempts: list[Attempt] = field(default_factory=list)
    first_sent_s: float = inf
    wanted: bool = False

    @property
    def answers(self) -> list[dict[str, Any]]:
        """The bodies of all acknowledgements."""
        return [attempt.body for attempt in self.attempts if attempt.acknowledged]

    @property
    def acknowledged_s(self) -> float:
        """Time of the first acknowledgement; infinite if there is none."""
        return min((attempt.ended_s for attempt in self.attempts if attempt.acknowledged), default=inf)


class Ledger:
    """Every played session with all its sent events."""

    def __init__(self) -> None:
        self.sessions: dict[str, dict[str, Sent]] = {}

    def sent(self, session_id: str, posting: Posting) -> Sent:
        """Return the entry of an event; create it on first use."""
        return self.sessions.setdefault(session_id, {}).setdefault(posting.event_id, Sent(posting))

    def __iter__(self) -> Iterator[Sent]:
        return (sent for session in self.sessions.values() for sent in session.values())

    def attempts(self) -> Iterator[Attempt]:
        """Yield every request of the run."""
        return (attempt for sent in self for attempt in sent.attempts)
