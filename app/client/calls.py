"""The service's calls as requests and answers, written once for the sync and the async client.

A method here is a generator: it yields requests and waits (`app.client.retries`), receives their results, and returns
the typed answer. It uses neither network nor clock.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, Literal, TypedDict, TypeVar
from urllib.parse import quote
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from app.client.errors import (
    ClientError,
    IncompleteBatchError,
    ProblemError,
    SentEvent,
    UnavailableError,
    UnexpectedAnswerError,
)
from app.client.retries import (
    DEFAULT_BATCH_DEADLINE_S,
    RETRIED_STATUSES,
    Answer,
    Exchange,
    Pause,
    Request,
    Retries,
    exchange,
    retry_after_s,
)
from app.schemas.board import BoardOut, HistoryOut, StatsOut
from app.schemas.events import BatchOut, EventIn, ItemOut, ScoreOut
from app.schemas.interventions import InterventionsOut
from app.schemas.model import ModelOut
from app.schemas.problems import Problem
from app.schemas.sessions import SessionOut, TracedSessionOut
from app.schemas.tokens import TokenOut
from model.text_rules import session_id_text

Event = Mapping[str, Any] | EventIn
Timestamp = datetime | str | int

DEFAULT_BATCH_EVENTS: Final = 1000
DEFAULT_BATCH_BYTES: Final = 4_000_000
DEFAULT_SESSION_EVENTS: Final = 64
DEFAULT_TOKEN_LIFETIME_S: Final = 300
_JSON: Final = "application/json"
_NDJSON: Final = "application/x-ndjson"
_EXCERPT: Final = 200
_Body = TypeVar("_Body", bound=BaseModel)


class Limits(TypedDict, total=False):
    """Limits of one call, instead of the client's: see `app.client.retries.Retries`."""

    timeout_s: float
    deadline_s: float


class BoardQuery(TypedDict, total=False):
    """Parameters of `GET /v1/sessions`; None counts as not given."""

    order: Literal["probability", "last_seen"]
    limit: int
    min_probability: float | None
    max_probability: float | None
    min_events: int | None
    rule: str | None
    seen_since: Timestamp | None
    active_s: int | None
    id_prefix: str | None
    property: str | None
    min_cart_value: float | None
    crossed: float | None
    recent: int
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Calls:
    """The service's calls.

    Attributes:
        retries: limits of a call.
        batch_retries: limits of each request of a batch.
        batch_events: most events of one request.
        batch_bytes: largest body of one request.
        session_events: most events of one session in a request. The service stores the answers of so many, so sending
            them again is safe.
    """

    retries: Retries = field(default_factory=Retries)
    batch_events: int = DEFAULT_BATCH_EVENTS
    batch_bytes: int = DEFAULT_BATCH_BYTES
    session_events: int = DEFAULT_SESSION_EVENTS
    batch_retries: Retries = field(default_factory=lambda: Retries(deadline_s=DEFAULT_BATCH_DEADLINE_S))

    def __post_init__(self) -> None:
        for name in ("batch_events", "batch_bytes", "session_events"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a whole number from 1 up, not {getattr(self, name)}")

    def within(self, limits: Limits) -> "Calls":
        """Return the calls with other limits."""
        if not limits:
            return self
        return replace(
            self, retries=replace(self.retries, **limits), batch_retries=replace(self.batch_retries, **limits)
        )

    def send(self, event: Event, *, control: bool = False) -> Exchange[ScoreOut]:
        """Send one event."""
        body = with_event_id(event)
        params = _flags(control=control)
        try:
            answer = yield from exchange(
                Request("POST", "/v1/events", params, content=_json(body), content_type=_JSON), self.retries
            )
            return _body(answer, ScoreOut)
        except ClientError as exc:
            exc.event_id = body["event_id"]
            raise

    def send_batch(self, events: Sequence[Event], *, control: bool = False) -> Exchange[list[SentEvent]]:
        """Send many events, in order, in as many requests as needed."""
        bodies = [with_event_id(event) for event in events]
        results: list[SentEvent] = []
        for count, lines in self._requests(bodies):
            chunk = bodies[len(results) : len(results) + count]
            try:
                items = yield from self._batch(lines, _flags(control=control))
            except ClientError as exc:
                raise IncompleteBatchError(exc, results, bodies[len(results) :]) from exc
            results += [
                SentEvent(body["event_id"], item.score, item.problem) for body, item in zip(chunk, items, strict=True)
            ]
        return results

    def session(
        self, session_id: str, *, trace: bool = False, why: bool = False
    ) -> Exchange[SessionOut | TracedSessionOut]:
        """Read a session."""
        params = _flags(trace=trace, why=why)
        answer = yield from exchange(Request("GET", session_path(session_id), params), self.retries)
        return _body(answer, TracedSessionOut if params else SessionOut)

    def sessions(self, query: BoardQuery) -> Exchange[BoardOut]:
        """Read a page of the board."""
        given = {name: _parameter(value) for name, value in query.items() if value is not None}
        return _body((yield from exchange(Request("GET", "/v1/sessions", given), self.retries)), BoardOut)

    def stats(self) -> Exchange[StatsOut]:
        """Read the statistics of the service."""
        return _body((yield from exchange(Request("GET", "/v1/stats"), self.retries)), StatsOut)

    def history(self, hours: int) -> Exchange[HistoryOut]:
        """Read the last hours."""
        return _body(
            (yield from exchange(Request("GET", "/v1/history", {"hours": str(hours)}), self.retries)), HistoryOut
        )

    def interventions(self) -> Exchange[InterventionsOut]:
        """Read the rules and their experiments."""
        return _body((yield from exchange(Request("GET", "/v1/interventions"), self.retries)), InterventionsOut)

    def token(self, session_id: str | None, lifetime_s: int) -> Exchange[TokenOut]:
        """Make a token for a browser."""
        content = _json({"session_id": session_id, "lifetime_s": lifetime_s})
        request = Request("POST", "/v1/tokens", content=content, content_type=_JSON)
        return _body((yield from exchange(request, self.retries)), TokenOut)

    def model(self) -> Exchange[ModelOut]:
        """Read the model in use."""
        return _body((yield from exchange(Request("GET", "/v1/model"), self.retries)), ModelOut)

    def outcome(
        self, session_id: str, outcome: Literal["purchase", "none"], timestamp: Timestamp | None
    ) -> Exchange[SessionOut]:
        """Record the outcome of a session."""
        body = {"outcome": outcome} if timestamp is None else {"outcome": outcome, "timestamp": timestamp}
        path = f"{session_path(session_id)}/outcome"
        answer = yield from exchange(Request("POST", path, content=_json(body), content_type=_JSON), self.retries)
        return _body(answer, SessionOut)

    def delete(self, session_id: str) -> Exchange[None]:
        """Erase a session."""
        answer = yield from exchange(Request("DELETE", session_path(session_id)), self.retries)
        if answer.status != HTTPStatus.NO_CONTENT:
            raise _refusal(answer)

    def _requests(self, bodies: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, list[bytes]]]:
        """Yield the events in order as lines of JSON, split into requests within the limits."""
        # All at once, so that an event that is no JSON raises before any is sent.
        encoded = [_json(body) for body in bodies]
        lines: list[bytes] = []
        size, of_session = 0, Counter[Any]()
        for body, line in zip(bodies, encoded, strict=True):
            # Texts that the service reads as one id are one session.
            session_id = session_id_text(given) if isinstance(given := body.get("session_id"), str) else given
            is_full = len(lines) == self.batch_events or size + len(line) >= self.batch_bytes
            if lines and (is_full or of_session[session_id] == self.session_events):
                yield len(lines), lines
                lines, size, of_session = [], 0, Counter()
            lines.append(line)
            size += len(line) + 1
            of_session[session_id] += 1
        if lines:
            yield len(lines), lines

    def _batch(self, lines: list[bytes], params: Mapping[str, str]) -> Exchange[list[ItemOut]]:
        """Send one request, and send again those of its events that the service could not take."""
        retries = self.batch_retries
        give_up_at = retries.clock() + retries.deadline_s
        items: list[ItemOut | None] = [None] * len(lines)
        waiting, attempts = list(range(len(lines))), 0
        while True:
            content = b"\n".join(lines[position] for position in waiting)
            request = Request("POST", "/v1/events/batch", params, content=content, content_type=_NDJSON)
            answer = yield from exchange(request, retries, give_up_at)
            attempts += 1
            results = _body(answer, BatchOut).results
            if len(results) != len(waiting):
                raise UnexpectedAnswerError(f"{len(results)} results for {len(waiting)} events", answer.status)
            for position, item in zip(waiting, results, strict=True):
                items[position] = item
            waiting = [at for at, item in zip(waiting, results, strict=True) if item.status in RETRIED_STATUSES]
            wait_s = retries.wait_s(attempts)
            if not waiting or retries.clock() + wait_s >= give_up_at:
                return [item for item in items if item is not None]
            yield Pause(wait_s)


def with_event_id(event: Event) -> dict[str, Any]:
    """Return the event as a mapping, with a new id if it has none."""
    body = event.model_dump(exclude_none=True) if isinstance(event, EventIn) else dict(event)
    return {**body, "event_id": body.get("event_id") or str(uuid4())}


def session_path(session_id: str) -> str:
    """Return the path of a session, with each character of its id escaped that has a meaning in paths."""
    if not session_id:
        raise ValueError("session_id: expected at least one character")
    # Clients and proxies resolve the ids `.` and `..` as path segments.
    return f"/v1/sessions/{quote(session_id, safe='').replace('.', '%2E')}"


def _flags(**flags: bool) -> dict[str, str]:
    """Return the query parameters of the flags that are set."""
    return {name: "true" for name, is_set in flags.items() if is_set}


def _json(value: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_time).encode()
    except UnicodeEncodeError:
        # A lone surrogate. Escaped, it reaches the service, which names the field.
        return json.dumps(value, allow_nan=False, separators=(",", ":"), default=_time).encode()


def _time(value: object) -> str:
    if not isinstance(value, datetime):
        raise TypeError(f"expected what JSON can hold or a datetime, not {value!r}")
    if value.tzinfo is None:
        raise ValueError(f"expected a datetime with an offset, not {value!r}")
    return value.isoformat()


def _parameter(value: object) -> str:
    return _time(value) if isinstance(value, datetime) else str(value)


def _body(answer: Answer, kind: type[_Body]) -> _Body:
    if answer.status != HTTPStatus.OK:
        raise _refusal(answer)
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError as exc:
        raise UnexpectedAnswerError(f"not an answer of willbuy: {_excerpt(answer)}", answer.status) from exc


def _refusal(answer: Answer) -> ClientError:
    if answer.status < HTTPStatus.BAD_REQUEST:
        return UnexpectedAnswerError(f"status {answer.status}, which willbuy does not use here", answer.status)
    try:
        problem = Problem.model_validate_json(answer.content)
    except ValidationError:
        # A proxy answered, not the service.
        title = f"HTTP status {answer.status}"
        problem = Problem(
            type="about:blank", title=title, status=answer.status, detail=_excerpt(answer), code=f"http_{answer.status}"
        )
    kind = UnavailableError if answer.status in RETRIED_STATUSES else ProblemError
    return kind(problem, retry_after_s(answer))


def _excerpt(answer: Answer) -> str:
    return answer.content[:_EXCERPT].decode(errors="replace") or "an empty body"
