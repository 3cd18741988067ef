"""From the bytes of a request to a checked event.

Two parsers accept the same bodies. msgspec reads an event in 1.7 us, pydantic in 4.6. Where msgspec finds a fault or
is not sure, pydantic reads the body again (`app.schemas.events.EventIn`) and names every field at fault.

Fields are spelt out here, as loops over `model.events.FIELDS` would take three times as long.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import msgspec
from msgspec import UNSET
from opentelemetry.trace import Span
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

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
from app.schemas.events import EventBody, EventIn, OutcomeIn, timestamp_ms
from app.settings import Settings
from model.events import PURCHASE, Event, PropertyValue, identifier_code

NDJSON: Final = "application/x-ndjson"
_Read = TypeVar("_Read")

_event_decoder: Final = msgspec.json.Decoder(EventBody)
_events_decoder: Final = msgspec.json.Decoder(list[EventBody])


class QueuedEvent(msgspec.Struct, frozen=True):
    """A checked event that waits for its batch.

    Attributes:
        session_id: the session.
        event: what happened; its time is within the bounds.
        code: code of the event id; random without one, so that a commit whose reply was lost is recognised.
        has_event_id: whether the caller gave an id.
        received_ms: the server's clock on arrival.
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
        """Whether the event closes the session."""
        return self.event.event_name == PURCHASE


class Vocabulary(Protocol):
    """What a model knows of names and values; see `model.interface.Model`."""

    def canonical_name(self, event_name: str) -> str: ...
    def knows(self, event_name: str) -> bool: ...
    def unknown_properties(self, properties: Mapping[str, PropertyValue]) -> Sequence[str]: ...


class _DuplicateKeyError(ValueError):
    pass


def check_headers(content_type: str | None, content_encoding: str | None, *, or_lines: bool = False) -> bool:
    """Return whether the headers declare lines of JSON; raise if they declare neither lines nor plain JSON.

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
    return _careful_event(_value(body)) if event is None else event


def parse_events(body: bytes, *, is_lines: bool, max_events: int) -> list[EventBody | WillbuyError]:
    """Return each event of a body, or the error that says what is wrong with it, in order.

    Args:
        body: a JSON array, or lines of JSON; blank lines are skipped.
        is_lines: whether the body is lines.
        max_events: the largest number of events allowed.

    Raises:
        InvalidJsonError: the array as a whole is no JSON.
        InvalidRequestError: the body is JSON, but no array.
        TooManyEventsError: there are more than `max_events`.
    """
    fast = None if is_lines else read_events(body)
    if fast is not None and len(fast) <= max_events:
        return list(fast)
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
            events.append(parse_event(part) if is_lines else _careful_event(part))
        except WillbuyError as exc:
            events.append(exc)
    return events


def parse_outcome(body: bytes) -> OutcomeIn:
    """Return the outcome of a session in a body.

    Raises:
        InvalidJsonError: as for `parse_event`.
        InvalidRequestError: the body is JSON, but no outcome; every field at fault is named.
    """
    value = _value(body)
    if not isinstance(value, dict):
        error = {"field": "body", "message": "expected an outcome as a JSON object", "code": "not_an_object"}
        raise InvalidRequestError("The body is JSON, but not an object.", [error])
    try:
        return OutcomeIn.model_validate(value)
    except ValidationError as exc:
        raise InvalidRequestError(*_faults(exc)) from exc


def read_event(body: bytes) -> EventBody | None:
    """Return the event in a body; None where only the careful parser can tell."""
    decoded = _decoded(_event_decoder, body)
    event = None if decoded is None else _checked(decoded)
    return event if event is not None and _has_each_key_once(body, (event,)) else None


def read_events(body: bytes) -> list[EventBody] | None:
    """Return the events of the array in a body; None where only the careful parser can tell."""
    decoded = _decoded(_events_decoder, body)
    events = [] if decoded is None else [event for event in map(_checked, decoded) if event is not None]
    is_sure = decoded is not None and len(events) == len(decoded) and _has_each_key_once(body, events)
    return events if is_sure else None


def event_body(event: EventIn) -> EventBody:
    """Return the body of an event that pydantic has validated."""
    return EventBody(**event.model_dump(exclude_unset=True))


def _decoded(decoder: msgspec.json.Decoder[_Read], body: bytes) -> _Read | None:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _checked(event: EventBody) -> EventBody | None:
    """Return the event with its time read; None: the careful parser must look at it."""
    name = event.event_name
    # One check over all texts. Printable texts have no control characters; others may have some.
    identifiers = (event.session_id, event.event_id or "", event.item_id or "", event.item_category or "")
    texts = "".join((name, *identifiers, *(event.properties or ())))
    if not texts.isprintable() or name.isspace():
        return None
    if not isinstance(event.timestamp, str):
        return event
    try:
        return msgspec.structs.replace(event, timestamp=timestamp_ms(event.timestamp))
    except PydanticCustomError:
        return None


def _has_each_key_once(body: bytes, events: Sequence[EventBody]) -> bool:
    """Return whether no object of the body has equal keys; False too where that is not sure.

    The parser takes the last of two equal keys. A colon follows every key, so as many colons as fields means that each
    key was there once. Where strings contain colons, only colons directly after a quotation mark count, which needs a
    body without white space before colons.
    """
    fields = 0
    for event in events:
        properties = event.properties
        fields += (
            2
            + (event.event_id is not UNSET)
            + (event.timestamp is not UNSET)
            + (event.item_id is not UNSET)
            + (event.item_category is not UNSET)
            + (event.price is not UNSET)
            + (event.quantity is not UNSET)
        )
        if properties is not UNSET:
            fields += 1 + len(properties)
    if body.count(b":") == fields:
        return True
    if b" :" in body or b"\t:" in body or b"\n:" in body or b"\r:" in body:
        return False
    return body.count(b'":') == fields


def _value(body: bytes) -> Any:  # noqa: ANN401 - JSON
    if not body:
        raise InvalidJsonError("The body is empty; expected JSON.")
    try:
        # Decoded first, as json.loads would also accept UTF-16 and lone surrogates.
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
        # Python refuses to convert an integer of thousands of digits.
        raise InvalidJsonError("The body has a number with too many digits.") from exc


def _careful_event(value: object) -> EventBody:
    if not isinstance(value, dict):
        error = {"field": "body", "message": "expected one event as a JSON object", "code": "not_an_object"}
        raise InvalidEventError("The body is JSON, but not an object.", [error])
    try:
        return event_body(EventIn.model_validate(value))
    except ValidationError as exc:
        raise InvalidEventError(*_faults(exc)) from exc


def _faults(invalid: ValidationError) -> tuple[str, list[dict[str, str]]]:
    """Return what is wrong, as one line and field by field."""
    errors = field_errors(invalid.errors(include_url=False, include_context=False, include_input=False))
    return "; ".join(f"{error['field']}: {error['message']}" for error in errors), errors


class EventValidator:
    """Makes queued events of parsed bodies: canonical names, times within the bounds, codes.

    Args:
        settings: bounds on times.
        metrics: counts future times and unseen names.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._max_age_ms = settings.max_event_age_s * 1000
        self._max_ahead_ms = settings.max_event_ahead_s * 1000
        self._metrics = metrics

    def submission(self, body: EventBody, *, now_ms: int, model: Vocabulary) -> QueuedEvent:
        """Return the queued event of a body that arrived at `now_ms`.

        Args:
            body: the event.
            now_ms: the server's clock.
            model: reads names as its training log was read, and knows which names and values the log had.

        Raises:
            InvalidEventError: the timestamp is out of bounds.
        """
        event_name, event_id = model.canonical_name(body.event_name), body.event_id
        properties = body.properties or {}
        warnings = []
        timestamp_ms = body.timestamp if isinstance(body.timestamp, int) else now_ms
        if not self._is_within_bounds(timestamp_ms, now_ms):
            raise InvalidEventError(*self._out_of_bounds(timestamp_ms - now_ms))
        if timestamp_ms > now_ms:
            self._metrics.future_events.inc()
            ahead_s = (timestamp_ms - now_ms) / 1000
            warnings.append(f"timestamp: {ahead_s:g} s ahead of the server's clock; taken as now")
            timestamp_ms = now_ms
        if event_name != PURCHASE and not model.knows(event_name):
            self._metrics.unseen_names.inc()
            warnings.append('event_name: the model does not know this name; it counts as "other"')
        if properties:
            warnings += [
                f'properties.{name}: the model does not know this value; it counts as "other", or as missing'
                for name in model.unknown_properties(properties)
            ]
        return QueuedEvent(
            session_id=body.session_id,
            event=Event(
                event_name=event_name,
                timestamp_ms=timestamp_ms,
                item_id=body.item_id or None,
                item_category=body.item_category or None,
                price=None if body.price is UNSET else body.price,
                quantity=None if body.quantity is UNSET else body.quantity,
                properties=properties,
            ),
            code=identifier_code(event_id) if event_id else _random_code(),
            has_event_id=bool(event_id),
            received_ms=now_ms,
            warnings=tuple(warnings),
            span=tracing.current_span(),
        )

    def outcome_ms(self, body: OutcomeIn, *, now_ms: int) -> int:
        """Return when the outcome was known, ms; raise `InvalidRequestError` for a time out of bounds."""
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
    """Return the object of these members; refuse equal keys, as JSON does not define which of them counts."""
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(shortened(repr(key)))
            seen.add(key)
    return members
