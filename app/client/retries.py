"""When a call is tried again, and after how long: nothing here waits, sends or looks at a real clock by itself.

Every call of the client may be sent twice: events carry an id, reading changes nothing, and an erasure or an outcome
said again is the same. So whatever may pass is tried again: broken connections, time-outs, and the statuses 429, 502,
503 and 504. Any other answer stands.

The waits grow twofold up to a bound and are drawn from zero up to that ("full jitter",
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), so that callers who failed together do not
come back together. `Retry-After` (RFC 9110, 10.2.3) is waited for on top.
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
DEFAULT_DEADLINE_S: Final = 10.0
RETRIED_STATUSES: Final = frozenset({429, 502, 503, 504})
_RETRIED_FAILURES: Final = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
_MOST_DOUBLINGS: Final = 30


@dataclass(frozen=True, slots=True)
class Request:
    """What to send: `path` is percent-encoded, `content` has the media type `content_type`."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    content_type: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, read to its end."""

    status: int
    headers: httpx.Headers
    content: bytes


@dataclass(frozen=True, slots=True)
class Attempt:
    """Send this, wait at most `timeout_s` for each step of it, and give up at `give_up_at` by the clock."""

    request: Request
    timeout_s: float
    give_up_at: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds."""

    seconds: float


Result = TypeVar("Result")
Exchange = Generator[Attempt | Pause, Answer | httpx.HTTPError | None, Result]
"""A call as steps to take: an `Attempt` is answered with what came of it, a `Pause` with None."""


@dataclass(frozen=True, slots=True)
class Retries:
    """How long to try.

    Attributes:
        timeout_s: longest wait for a connection, for sending, and for each part of an answer.
        deadline_s: from the first attempt on, after how long nothing is tried any more.
        first_wait_s: upper bound of the wait after the first attempt; it doubles with each.
        longest_wait_s: where it stops growing.
        clock: seconds that only grow.
        draw: a random number between two.
    """

    timeout_s: float = DEFAULT_TIMEOUT_S
    deadline_s: float = DEFAULT_DEADLINE_S
    first_wait_s: float = 0.1
    longest_wait_s: float = 2.0
    clock: Callable[[], float] = time.monotonic
    draw: Callable[[float, float], float] = random.uniform

    def __post_init__(self) -> None:
        for name in ("timeout_s", "deadline_s", "first_wait_s", "longest_wait_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a number of seconds above 0, not {getattr(self, name)}")

    def wait_s(self, attempts: int, retry_after_s: float | None = None) -> float:
        """Return how long to wait after so many attempts."""
        bound_s = min(self.longest_wait_s, self.first_wait_s * 2 ** min(attempts - 1, _MOST_DOUBLINGS))
        return self.draw(0.0, bound_s) + (retry_after_s or 0.0)


def exchange(request: Request, retries: Retries, deadline: float | None = None) -> Exchange[Answer]:
    """Try until there is an answer that stands, or until the deadline; then return the last answer.

    Args:
        request: what to send.
        retries: how long to try.
        deadline: by the clock, where several requests share one.

    Raises:
        NoAnswerError: the last attempt brought none, or the failure is none that passes.
    """
    give_up_at = retries.clock() + retries.deadline_s if deadline is None else deadline
    attempts = 0
    while True:
        timeout_s = max(min(retries.timeout_s, give_up_at - retries.clock()), 0.001)
        came = yield Attempt(request, timeout_s, give_up_at)
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
    """Return how long an answer asks to wait: given in seconds or as a date; None where it says nothing usable."""
    value = answer.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
