"""From the bytes of a request to an event that may be folded."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from msgspec import UNSET
from opentelemetry.trace import Span
from pydantic import ValidationError

from app.errors import (
    InvalidEventError,
    InvalidJsonError,
    InvalidRequestError,
    TooManyEventsError,
    UnsupportedEncodingError,
    UnsupportedMediaTypeError,
    WillbuyError,
    field_errors,
    shortened,
)
from app.monitoring import tracing
from app.monitoring.metrics import Metrics
from app.schemas.events import EventIn, OutcomeIn
from app.scoring.event_body import EventBody, read_event, read_events, received
from app.settings import Settings
from model.events import PURCHASE, Event, canonical_event_name, identifier_code

NDJSON: Final = "application/x-ndjson"


class QueuedEvent(msgspec.Struct, frozen=True):
    """An event on its way to its session.

    Attributes:
        session_id: the session.
        event: what happened; its time is within the bounds.
        code: code of the event id; random when there was none, so that a commit whose reply was lost is recognised.
        has_event_id: whether the caller gave an id.
        received_ms: the server's clock when it came.
        warnings: what was accepted though it looks wrong.
        span: span of the request; None when the request is not sampled.
    """

    session_id: str
    event: Event
    code: int
    has_event_id: bool
    received_ms: int
    warnings: tuple[str, ...] = ()
    span: Span | None = None

    @property
    def is_purchase(self) -> bool:
        """Whether it closes the session."""
        return self.event.event_name == PURCHASE


class _DuplicateKeyError(ValueError):
    pass


def check_headers(content_type: str | None, content_encoding: str | None, *, or_lines: bool = False) -> bool:
    """Return whether the headers declare lines of JSON; raise when they declare neither that nor plain JSON.

    Args:
        content_type: the header, None without one.
        content_encoding: the header, None without one.
        or_lines: whether `application/x-ndjson` is accepted too.
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    is_lines = or_lines and media_type == NDJSON
    is_json = media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
    if not is_lines and not is_json:
        accepted = f"application/json` or `{NDJSON}" if or_lines else "application/json"
        raise UnsupportedMediaTypeError(f"Expected the header `Content-Type: {accepted}`.")
    if content_encoding and content_encoding.strip().lower() != "identity":
        raise UnsupportedEncodingError("Expected no `Content-Encoding`: bodies are small and are read uncompressed.")
    return is_lines


def parse_event(body: bytes) -> EventBody:
    """Return the event in a body.

    Raises:
        InvalidJsonError: the body is empty, not UTF-8, not JSON, too deeply nested, or has a key twice.
        InvalidEventError: it is JSON, but not an event; every field at fault is named.
    """
    event = read_event(body)
    return _event(_value(body)) if event is None else event


def parse_events(body: bytes, *, is_lines: bool, max_events: int) -> list[EventBody | WillbuyError]:
    """Return the events in a body, or what is wrong with each, in order.

    Args:
        body: a JSON array, or lines of JSON, of which blank ones are skipped.
        is_lines: which of the two.
        max_events: most events that it may have.

    Raises:
        InvalidJsonError: the array as a whole is no JSON.
        InvalidRequestError: it is JSON, but no array.
        TooManyEventsError: there are more than `max_events`.
    """
    quick = None if is_lines else read_events(body)
    if quick is not None and len(quick) <= max_events:
        return list(quick)
    parts: Sequence[Any]
    if is_lines:
        parts = [line for line in body.split(b"\n") if line.strip()]
    else:
        parts = _value(body)
        if not isinstance(parts, list):
            error = {"field": "body", "message": "expected a JSON array of events", "code": "not_an_array"}
            raise InvalidRequestError("The body is JSON, but not an array.", [error])
    if len(parts) > max_events:
        raise TooManyEventsError(f"Expected at most {max_events} events, not {len(parts)}.")
    events: list[EventBody | WillbuyError] = []
    for part in parts:
        try:
            events.append(parse_event(part) if is_lines else _event(part))
        except WillbuyError as exc:
            events.append(exc)
    return events


def parse_outcome(body: bytes) -> OutcomeIn:
    """Return what a body says of a session's end.

    Raises:
        InvalidJsonError: as for `parse_event`.
        InvalidRequestError: it is JSON, but no outcome; every field at fault is named.
    """
    value = _value(body)
    if not isinstance(value, dict):
        error = {"field": "body", "message": "expected an outcome as a JSON object", "code": "not_an_object"}
        raise InvalidRequestError("The body is JSON, but not an object.", [error])
    try:
        return OutcomeIn.model_validate(value)
    except ValidationError as exc:
        raise InvalidRequestError(*_faults(exc)) from exc


def _value(body: bytes) -> Any:  # noqa: ANN401 - JSON
    if not body:
        raise InvalidJsonError("The body is empty; expected JSON.")
    try:
        # Decoded here, as json.loads would also take UTF-16 and lone surrogates.
        return json.loads(body.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as exc:
        raise InvalidJsonError(f"The body is not UTF-8: byte {exc.start} cannot be decoded.") from exc
    except json.JSONDecodeError as exc:
        raise InvalidJsonError(f"{exc.msg} at line {exc.lineno}, column {exc.colno}.") from exc
    except _DuplicateKeyError as exc:
        raise InvalidJsonError(f"The key {exc} appears twice in one object.") from exc
    except RecursionError as exc:
        raise InvalidJsonError("The body is nested too deeply.") from exc
    except ValueError as exc:
        # Python converts no integer of thousands of digits.
        raise InvalidJsonError("The body has a number with too many digits.") from exc


def _event(value: object) -> EventBody:
    if not isinstance(value, dict):
        error = {"field": "body", "message": "expected one event as a JSON object", "code": "not_an_object"}
        raise InvalidEventError("The body is JSON, but not an object.", [error])
    try:
        return received(EventIn.model_validate(value))
    except ValidationError as exc:
        raise InvalidEventError(*_faults(exc)) from exc


def _faults(invalid: ValidationError) -> tuple[str, list[dict[str, str]]]:
    """Return what is wrong, as one line and field by field."""
    errors = field_errors(invalid.errors(include_url=False, include_context=False, include_input=False))
    return "; ".join(f"{error['field']}: {error['message']}" for error in errors), errors


class EventValidator:
    """Turns checked bodies into submissions: canonical names, times within the bounds, codes.

    Args:
        settings: bounds on times.
        metrics: where oddities are counted.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._max_age_ms = settings.max_event_age_s * 1000
        self._max_ahead_ms = settings.max_event_ahead_s * 1000
        self._metrics = metrics

    def submission(self, body: EventBody, *, now_ms: int, knows: Callable[[str], bool]) -> QueuedEvent:
        """Return the submission of an event that came at `now_ms`.

        Args:
            body: the event.
            now_ms: the server's clock.
            knows: whether the model's vocabulary has a canonical name.

        Raises:
            InvalidEventError: its timestamp is out of bounds.
        """
        event_name, event_id = canonical_event_name(body.event_name), body.event_id
        warnings = []
        timestamp_ms = body.timestamp if isinstance(body.timestamp, int) else now_ms
        if not self._is_within_bounds(timestamp_ms, now_ms):
            raise InvalidEventError(*self._out_of_bounds(timestamp_ms - now_ms))
        if timestamp_ms > now_ms:
            self._metrics.future_events.inc()
            ahead_s = (timestamp_ms - now_ms) / 1000
            warnings.append(f"timestamp: {ahead_s:g} s ahead of the server's clock; taken as now")
            timestamp_ms = now_ms
        if event_name != PURCHASE and not knows(event_name):
            self._metrics.unseen_names.inc()
            warnings.append('event_name: the model does not know this name; it counts as "other"')
        return QueuedEvent(
            session_id=body.session_id,
            event=Event(
                event_name=event_name,
                timestamp_ms=timestamp_ms,
                item_id=body.item_id or None,
                item_category=body.item_category or None,
                price=None if body.price is UNSET else body.price,
                quantity=None if body.quantity is UNSET else body.quantity,
                properties=body.properties or {},
            ),
            code=identifier_code(event_id) if event_id else _random_code(),
            has_event_id=bool(event_id),
            received_ms=now_ms,
            warnings=tuple(warnings),
            span=tracing.current_span(),
        )

    def outcome_ms(self, body: OutcomeIn, *, now_ms: int) -> int:
        """Return when what became of a session was known; raise `InvalidRequestError` for a time out of bounds."""
        timestamp_ms = now_ms if body.timestamp is None else body.timestamp
        if not self._is_within_bounds(timestamp_ms, now_ms):
            raise InvalidRequestError(*self._out_of_bounds(timestamp_ms - now_ms))
        return min(timestamp_ms, now_ms)

    def _is_within_bounds(self, timestamp_ms: int, now_ms: int) -> bool:
        return now_ms - self._max_age_ms <= timestamp_ms <= now_ms + self._max_ahead_ms

    def _out_of_bounds(self, offset_ms: int) -> tuple[str, list[dict[str, str]]]:
        if offset_ms < 0:
            message = f"expected a time at most {self._max_age_ms // 1000} s in the past"
        else:
            message = f"expected a time at most {self._max_ahead_ms // 1000} s ahead of the server's clock"
        error = {"field": "timestamp", "message": message, "code": "timestamp_out_of_bounds"}
        return f"timestamp: {message}", [error]


def _random_code() -> int:
    return int.from_bytes(os.urandom(8), "little", signed=True)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these members; JSON leaves open which of two equal keys counts, so neither does."""
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(shortened(repr(key)))
            seen.add(key)
    return members
