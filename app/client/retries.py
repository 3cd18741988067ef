"""Retries: which failures are retried, and after which wait; without network, sleep or clock of its own.

Every call of the client is idempotent: events carry an id, reads change nothing, and a repeated erasure or outcome has
no further effect. So failures that may pass are retried: broken connections, time-outs, and the statuses 408, 429, 502,
503 and 504. Any other answer is final.

The upper bound of the wait doubles with each attempt, up to a limit. The wait is drawn between zero and that bound
("full jitter", https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), so that callers that failed
together do not retry together. `Retry-After` (RFC 9110, 10.2.3) is added.
"""

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar

import httpx

from app.client.errors import NoAnswerError

DEFAULT_TIMEOUT_S: Final = 5.0
# No page waits longer for a score.
DEFAULT_DEADLINE_S: Final = 0.2
DEFAULT_BATCH_DEADLINE_S: Final = 10.0
RETRIED_STATUSES: Final = frozenset({408, 429, 502, 503, 504})
_RETRIED_FAILURES: Final = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
_MOST_DOUBLINGS: Final = 30
_SHORTEST_STEP_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Request:
    """A request: `path` is percent-encoded, `content` has the media type `content_type`."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer."""

    status: int
    headers: httpx.Headers
    content: bytes


@dataclass(frozen=True, slots=True)
class Attempt:
    """Send this, wait at most `timeout_s` for each step, and give up at `give_up_at` of `clock`."""

    request: Request
    timeout_s: float
    give_up_at: float
    clock: Callable[[], float]

    def left_s(self) -> float:
        """Return how long the next step may take."""
        return max(min(self.timeout_s, self.give_up_at - self.clock()), _SHORTEST_STEP_S)


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


Result = TypeVar("Result")
Exchange = Generator[Attempt | Pause, Answer | httpx.HTTPError | None, Result]
"""A call as steps: the caller sends back the result of an `Attempt`, and None after a `Pause`."""


@dataclass(frozen=True, slots=True)
class Retries:
    """Limits of the retries of a call.

    Attributes:
        timeout_s: longest wait for a connection, for sending, and for each part of an answer.
        deadline_s: longest time of a call, its attempts and the waits between them included.
        first_wait_s: upper bound of the wait after the first attempt; it doubles with each attempt.
        longest_wait_s: largest upper bound.
        clock: monotonic clock, in seconds.
        draw: returns a random number between two bounds.
    """

    timeout_s: float = DEFAULT_TIMEOUT_S
    deadline_s: float = DEFAULT_DEADLINE_S
    first_wait_s: float = 0.02
    longest_wait_s: float = 2.0
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[float, float], float] = random.uniform

    def __post_init__(self) -> None:
        for name in ("timeout_s", "deadline_s", "first_wait_s", "longest_wait_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a number of seconds above 0, not {getattr(self, name)}")

    def wait_s(self, attempts: int, retry_after_s: float | None = None) -> float:
        """Return the wait after so many attempts."""
        bound_s = min(self.longest_wait_s, self.first_wait_s * 2 ** min(attempts - 1, _MOST_DOUBLINGS))
        return self.draw(0.0, bound_s) + (retry_after_s or 0.0)


def exchange(request: Request, retries: Retries, deadline: float | None = None) -> Exchange[Answer]:
    """Send until there is a final answer, or until the deadline; then return the last answer.

    Args:
        request: the request.
        retries: its limits.
        deadline: of the clock, where several requests share one.

    Raises:
        NoAnswerError: the last attempt had no answer, or the failure is not one to retry.
    """
    give_up_at = retries.clock() + retries.deadline_s if deadline is None else deadline
    attempts = 0
    while True:
        came = yield Attempt(request, retries.timeout_s, give_up_at, retries.clock)
        attempts += 1
        if isinstance(came, Answer) and came.status not in RETRIED_STATUSES:
            return came
        wait_s = retries.wait_s(attempts, retry_after_s(came) if isinstance(came, Answer) else None)
        passes = isinstance(came, (Answer, *_RETRIED_FAILURES))
        if not passes or retries.clock() + wait_s >= give_up_at:
            if isinstance(came, Answer):
                return came
            tried = "once" if attempts == 1 else f"{attempts} times"
            raise NoAnswerError(f"{request.method} {request.path}: no answer, tried {tried}: {came!r}") from came
        yield Pause(wait_s)


def retry_after_s(answer: Answer) -> float | None:
    """Return the wait of `Retry-After`, which is in seconds or a date; None without a valid one."""
    value = answer.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
