"""One event in, its probability out, for requests whose head is known: no task, no layers, no second look at the head.

A shop's backend sends the same head with nearly every event: address, content type, API key, the body's length. What
the application decides by a head alone is decided the same way each time, so once it has let a request through, its
head is remembered, by its SHA-256. The next request with that very head needs only its body looked at: 125 µs of the
processor's time a request became 79 (docs/performance.md).

Whatever is not plain takes the application's way from its first byte: a head that is new, that names its request, or
that comes from a web page; a key that has a limit; a body that is no event; a service that drains or is full. An event
that is folded and then fails is answered there as well (`Decided`), so there is one place that words errors.
"""

from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from typing import Final

from starlette.types import Scope

from app.api.bodies import score_json, too_late
from app.api.request_tally import RequestTally
from app.api.services import Services
from app.auth.access import Access
from app.auth.rate_limit import RateLimit
from app.errors import DeadlineExceededError, UnauthorizedError, WillbuyError
from app.scoring.batcher import Caller
from app.scoring.events import QueuedEvent, parse_event
from app.scoring.session_update import Score

EVENTS_PATH: Final = "/v1/events"
STATE_NAME: Final = "willbuy.quick_events"
"""Where the state that the server shares with the application has the `QuickEvents`."""

_PLAIN: Final = "willbuy.is_plain_event"
_DECIDED: Final = "willbuy.decided"
_END_OF_HEAD: Final = b"\r\n\r\n"
# With these a request is more than its head and body say, or its answer is another one each time.
_NOT_PLAIN: Final = frozenset({b"x-request-id", b"origin", b"expect", b"upgrade", b"transfer-encoding"})
_LONGEST_HEAD_BYTES: Final = 2048
_MOST_HEADS: Final = 1024


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of an event whose request takes the application's way only to be told.

    Attributes:
        error: what its caller is to be told.
        started: when the request came, by `time.perf_counter`.
    """

    error: Exception
    started: float


def mark_plain(scope: Scope) -> None:
    """Note that the application has let a request through as one event of plain JSON."""
    scope[_PLAIN] = True


def note_decided(scope: Scope, decided: Decided) -> None:
    """Have the application answer a request with what was decided already."""
    scope["state"][_DECIDED] = decided


def raise_decided(scope: Scope) -> None:
    """Raise what was decided, if anything was."""
    if (decided := scope.get("state", {}).get(_DECIDED)) is not None:
        raise decided.error


def started_before(scope: Scope) -> float | None:
    """Return when a request came that was decided before the application saw it; None for every other."""
    decided = scope.get("state", {}).get(_DECIDED)
    return None if decided is None else decided.started


class QuickEvents:
    """Takes events off a connection and words their answers.

    Args:
        services: the service's parts; their batcher must not be one that follows requests.
        access: who may post.
        rate: which keys have a limit; theirs are counted in Redis, on the application's way.
        tally: names, counts and times requests.
    """

    def __init__(self, services: Services, *, access: Access, rate: RateLimit, tally: RequestTally) -> None:
        self._services = services
        self._access = access
        self._rate = rate
        self._tally = tally
        self._timeout_s = services.settings.request_timeout_s
        # Digest of a head: the length of the body that it declares. Good as long as the same keys are.
        self._lengths: dict[bytes, int] = {}
        self._keys: object = access.changed
        self._server_headers: list[tuple[bytes, bytes]] = []
        self._start_of_answers = b""

    def learn(self, scope: Scope, request: bytes) -> None:
        """Remember the head of a request that the application has answered, if others like it may be answered here.

        Args:
            scope: as the server parsed it and the application left it.
            request: all its bytes, and maybe more.
        """
        head, _, body = request.partition(_END_OF_HEAD)
        if not scope.get(_PLAIN) or len(head) > _LONGEST_HEAD_BYTES:
            return
        length = None
        for name, value in scope["headers"]:
            if name in _NOT_PLAIN:
                return
            if name == b"content-length":
                length = int(value)
        if length != len(body):
            return
        self._forget_if_keys_changed()
        if not self._access.is_open:
            try:
                key = self._access.holder(scope["headers"])
            except UnauthorizedError:
                return  # it was let in by a key that is good no more
            if self._rate.is_limited(key):
                return
        if len(self._lengths) >= _MOST_HEADS:
            self._lengths.clear()
        self._lengths[sha256(head).digest()] = length

    def submission(self, request: bytes) -> QueuedEvent | None:
        """Return the event of a request that can be answered here; None: it takes the application's way."""
        head, _, body = request.partition(_END_OF_HEAD)
        if self._lengths.get(sha256(head).digest()) != len(body) or self.is_draining:
            return None
        if self._forget_if_keys_changed():
            return None
        services = self._services
        try:
            event = parse_event(body)
            services.batcher.check_room(1)
            return services.intake.submission(event, now_ms=services.now_ms(), knows=services.model.knows)
        except WillbuyError:
            return None

    @property
    def is_draining(self) -> bool:
        """Whether callers are to connect anew."""
        return self._services.drain.draining

    def enqueue(self, submission: QueuedEvent, caller: Caller[Score], now_s: float) -> None:
        """Have an event folded; `now_s` is the event loop's clock."""
        self._services.batcher.enqueue(submission, caller, give_up_at=now_s + self._timeout_s)

    def withdraw(self, submission: QueuedEvent, caller: Caller[Score]) -> Exception:
        """Take back the event of a caller whose time is up; return what it is to be told."""
        self._services.batcher.withdraw(submission, caller)
        return DeadlineExceededError(too_late(self._timeout_s))

    def answer(self, score: Score, server_headers: list[tuple[bytes, bytes]], *, is_last: bool) -> bytes:
        """Return the bytes of an answer.

        Args:
            score: the answer.
            server_headers: what the server puts before every answer's headers; a new list when they change.
            is_last: whether the connection is closed after it.
        """
        if server_headers is not self._server_headers:
            self._server_headers = server_headers
            lines = (b"%b: %b\r\n" % header for header in server_headers)
            self._start_of_answers = b"".join(chain([b"HTTP/1.1 200 OK\r\n"], lines))
        body = score_json(score)
        return b"%bcontent-length: %d\r\ncontent-type: application/json\r\nx-request-id: %b\r\n%b\r\n%b" % (
            self._start_of_answers,
            len(body),
            self._tally.new_name(),
            b"connection: close\r\n" if is_last else b"",
            body,
        )

    def observe(self, seconds: float) -> None:
        """Count an answer, which took so long."""
        self._tally.observe("POST", EVENTS_PATH, 200, seconds)

    def _forget_if_keys_changed(self) -> bool:
        if self._keys is self._access.changed:
            return False
        self._lengths.clear()
        self._keys = self._access.changed
        return True
