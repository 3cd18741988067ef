"""From the bytes of a request to the bodies of its events.

Two parsers accept the same bodies. msgspec reads an event in 1.7 us, pydantic in 4.6. Where msgspec finds a fault or
is not sure, pydantic reads the body again (`app.schemas.events.EventIn`) and names every field at fault.

A batch is split into its events first, which is cheap, and each event is read for itself. The event loop serves other
requests in between. So neither many bad events nor a large one holds up the others for long.

Fields are spelt out here, as loops over `model.events.FIELDS` would take three times as long.
"""

import json
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET
from msgspec.structs import astuple
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from app.errors import (
    MAX_FIELD_ERRORS,
    OWN_FACTS,
    UNKNOWN_FIELD,
    BodyTooLargeError,
    InvalidEventError,
    InvalidJsonError,
    InvalidRequestError,
    TooManyEventsError,
    field_errors,
    shortened,
    without_traceback,
)
from app.runtime.slices import Slices
from app.schemas.events import LONGEST_EVENT_ID, EventBody, EventIn, timestamp_ms
from model.text_rules import session_id_text

_BOM: Final = b"\xef\xbb\xbf"
# A line that is not blank, from its first character that is no white space.
_LINE: Final = re.compile(rb"\S[^\n]*")
_BLANK: Final = re.compile(r"[ \t\n\r]*")
# Larger bodies are parsed in slices.
_SMALL_BODY: Final = 65536
# Of a literal or an escape sequence that the end of a window may cut.
_LONGEST_TOKEN: Final = 16
# Most events have fewer characters.
_COMMON_EVENT: Final = 2048
# An event of all fields and the most properties has fewer. A body of more for each event may have millions of elements.
_MOST_COMMAS: Final = 64
# The largest body of real events has fewer, and a list of numbers has more.
_MOST_COMMAS_OF_PARTS: Final = 400_000
_Read = TypeVar("_Read")
_Body = TypeVar("_Body", bound=BaseModel)

_event_decoder: Final = msgspec.json.Decoder(EventBody)
_events_decoder: Final = msgspec.json.Decoder(list[EventBody])
_parts_decoder: Final = msgspec.json.Decoder(list[msgspec.Raw])
_document_decoder: Final = msgspec.json.Decoder()


def parse_event(body: bytes) -> EventBody:
    """Return the event in a body.

    Raises:
        InvalidJsonError: the body is empty, not UTF-8, not JSON, too deeply nested, or has a key twice.
        InvalidEventError: it is JSON, but not an event; every field at fault is named.
    """
    event = read_event(body)
    return _careful_event(_value(body)) if event is None else event


async def parse_events(
    body: bytes,
    *,
    is_lines: bool,
    max_events: int,
    max_event_bytes: int,
    count: Callable[[int], Awaitable[None]] | None = None,
) -> list[EventBody | Exception]:
    """Return each event of a body, or the error that says what is wrong with it, in order.

    Args:
        body: a JSON array, or lines of JSON; blank lines are skipped.
        is_lines: whether the body is lines.
        max_events: the largest number of events allowed.
        max_event_bytes: the largest size of one event.
        count: called with the number of events before they are looked at; may raise.

    Raises:
        InvalidJsonError: the body is empty, or the array as a whole is no JSON.
        InvalidRequestError: the body is JSON, but no array, or there is no event.
        TooManyEventsError: there are more than `max_events`.
    """
    if not body:
        raise InvalidJsonError("The body is empty; expected events.")
    fast = None if is_lines or len(body) > _SMALL_BODY else _all_fast(body)
    events = _lines(body, max_events) if is_lines else fast or await _elements(body, max_events, max_event_bytes)
    if not events:
        error = {"field": "body", "message": "expected at least one event", "code": "no_events"}
        raise InvalidRequestError("The request has no events.", [error])
    if len(events) > max_events:
        raise TooManyEventsError(f"Expected at most {max_events} events; the request has more.")
    if count is not None:
        await count(len(events))
    if fast is not None:
        return list(fast)
    parsed: list[EventBody | Exception] = []
    slices = Slices()
    for part in events:
        try:
            parsed.append(_parsed(part, max_event_bytes))
        except Exception as exc:  # noqa: BLE001 - whatever an event raises is answered to that event
            parsed.append(without_traceback(exc))
        await slices.pause()
    return parsed


def checked_event(value: dict[str, Any]) -> EventBody:
    """Return the event of its members; raise `InvalidEventError`, which names every field at fault."""
    return _careful_event(value)


def document_parts(body: bytes) -> list[bytes]:
    """Return the elements of the list that a body has; none for other values, and for a list that is not JSON."""
    body = body.removeprefix(_BOM).lstrip()
    if not body.startswith(b"[") or body.count(b",") > _MOST_COMMAS_OF_PARTS:
        return []
    try:
        return [bytes(part) for part in _parts_decoder.decode(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []


def read_document(text: bytes) -> Any:  # noqa: ANN401 - JSON
    """Return the value of a JSON text as `willbuy prepare` reads it: of equal keys, the last one counts.

    Raises:
        InvalidJsonError: the text is not UTF-8, not JSON, or too deeply nested.
    """
    try:
        return _document_decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # half a surrogate pair or NaN, which Python reads, or no JSON
    with _refusals():
        return json.loads(_text(text.removeprefix(_BOM)))


def parse_object(body: bytes, kind: type[_Body]) -> _Body:
    """Return the object in a body, of a kind that is no event.

    Raises:
        InvalidJsonError: as for `parse_event`.
        InvalidRequestError: the body is JSON, but not of the kind; every field at fault is named.
    """
    value = _value(body)
    if not isinstance(value, dict):
        error = {"field": "body", "message": "expected a JSON object", "code": "not_an_object"}
        raise InvalidRequestError("The body is JSON, but not an object.", [error])
    try:
        return kind.model_validate(_bounded(value, kind))
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


def with_idempotency_key(event: EventBody, header: bytes) -> EventBody:
    """Return an event without an id with the one of its `Idempotency-Key` header, which may be in quotation marks.

    Raises:
        InvalidEventError: the header is no event id.
    """
    key = header.decode("latin-1").strip().removeprefix('"').removesuffix('"')
    if not 0 < len(key) <= LONGEST_EVENT_ID or not (key.isascii() and key.isprintable()):
        message = f"expected 1 to {LONGEST_EVENT_ID} printable ASCII characters"
        error = {"field": "Idempotency-Key", "message": message, "code": "idempotency_key"}
        raise InvalidEventError(f"Idempotency-Key: {message}", [error])
    return msgspec.structs.replace(event, event_id=key)


def _all_fast(body: bytes) -> list[EventBody] | None:
    try:
        return read_events(body)
    except Exception:  # noqa: BLE001 - an event raises it, and raises it again when each is read for itself
        return None


def event_body(event: EventIn) -> EventBody:
    """Return the body of an event that pydantic has validated."""
    return EventBody(**event.model_dump(exclude_unset=True))


def _decoded(decoder: msgspec.json.Decoder[_Read], body: bytes) -> _Read | None:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _checked(event: EventBody) -> EventBody | None:
    """Return the event with its time and its session's id read; None: the careful parser must look at it."""
    name = event.event_name
    # Printable texts have no forbidden characters (`model.text_rules`); others may have some.
    event_id, item_id, category, properties = event.event_id, event.item_id, event.item_category, event.properties
    visitor_id, currency = event.visitor_id, event.currency
    texts = "".join(
        (name, event.session_id, event_id or "", item_id or "", category or "", visitor_id or "", currency or "")
    )
    if not texts.isprintable() or name.isspace():
        return None
    if properties:
        for key, value in properties.items():
            if not key.isprintable() or (type(value) is str and not value.isprintable()):
                return None
    if (session_id := session_id_text(event.session_id)) != event.session_id:
        event = msgspec.structs.replace(event, session_id=session_id)
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
    fields = len(events) * len(EventBody.__struct_fields__)
    for event in events:
        fields += len(event.properties or ()) - astuple(event).count(UNSET)
    if body.count(b":") == fields:
        return True
    if b" :" in body or b"\t:" in body or b"\n:" in body or b"\r:" in body:
        return False
    return body.count(b'":') == fields


def _lines(body: bytes, max_events: int) -> list[bytes]:
    """Return the lines of a body that are not blank, but no more than show that there are too many."""
    found = _LINE.finditer(body.removeprefix(_BOM))
    return [line.group().rstrip() for line in islice(found, max_events + 1)]


async def _elements(body: bytes, max_events: int, max_event_bytes: int) -> Sequence["bytes | _Element"]:
    """Return the elements of the array in a body, but no more than show that there are too many."""
    body = body.removeprefix(_BOM)
    if body.count(b",") <= max_events * _MOST_COMMAS:
        try:
            return [bytes(part) for part in _parts_decoder.decode(body)[: max_events + 1]]
        except (msgspec.DecodeError, RecursionError):
            # A lone surrogate is a fault of one event, but the fast parser stops at it.
            pass
    elements: list[_Element] = []
    slices = Slices()
    for element in _scanned(_text(body), max_event_bytes):
        elements.append(element)
        if len(elements) > max_events:
            break
        await slices.pause()
    return elements


class _Element(NamedTuple):
    """An element of an array: its value, or the error that says why it has none."""

    value: Any
    error: InvalidJsonError | None


def _scanned(text: str, max_chars: int) -> Iterator[_Element]:
    """Yield the elements of the array in a text, one by one.

    Raises:
        InvalidJsonError: the text is no JSON.
        InvalidRequestError: the text is not an array.
        BodyTooLargeError: an element is larger than `max_chars`, so that its end is not looked for.
    """
    at = _skip_blanks(text, 0)
    if text[at : at + 1] != "[":
        if len(text) <= _SMALL_BODY:
            _read_all(text)
        fault = {"field": "body", "message": "expected a JSON array of events", "code": "not_an_array"}
        raise InvalidRequestError("The body is no JSON array.", [fault])
    at = _skip_blanks(text, at + 1)
    if text[at : at + 1] == "]":
        _check_end(text, at + 1)
        return
    while True:
        value, end, error = _read_element(text, at, max_chars)
        yield _Element(value, error)
        at = _skip_blanks(text, end)
        delimiter = text[at : at + 1]
        if delimiter == "]":
            _check_end(text, at + 1)
            return
        if delimiter != ",":
            raise _not_json(json.JSONDecodeError("Expecting ',' delimiter", text, at))
        at = _skip_blanks(text, at + 1)


def _read_element(text: str, at: int, max_chars: int) -> tuple[Any, int, InvalidJsonError | None]:
    """Return the JSON value at a place of a text, its end, and what is wrong with its keys; reads no further."""
    for chars in (_COMMON_EVENT, max_chars + 1):
        window = text[at : at + chars]
        try:
            value, end, error = _read_value(window, 0)
        except InvalidJsonError as exc:
            cause = exc.__cause__
            if not isinstance(cause, json.JSONDecodeError):
                raise
            is_cut = cause.pos > chars - _LONGEST_TOKEN or cause.msg.startswith("Unterminated string")
            if len(window) < chars or not is_cut:
                raise _not_json(json.JSONDecodeError(cause.msg, text, at + cause.pos)) from exc
            continue
        # A number may continue behind the window.
        if end < chars:
            return value, at + end, error
    raise BodyTooLargeError(f"An event is no JSON, or has more than {max_chars} bytes.")


def _parsed(part: "bytes | _Element | EventBody", max_bytes: int) -> EventBody:
    if isinstance(part, EventBody):
        return part
    if isinstance(part, _Element):
        if part.error is not None:
            raise part.error
        return _careful_event(part.value)
    if len(part) > max_bytes:
        raise BodyTooLargeError(f"Expected an event of at most {max_bytes} bytes.")
    return parse_event(part)


def _value(body: bytes) -> Any:  # noqa: ANN401 - JSON
    if not body:
        raise InvalidJsonError("The body is empty; expected JSON.")
    return _read_all(_text(body.removeprefix(_BOM)))


def _text(body: bytes) -> str:
    # Decoded first, as json.loads would also accept UTF-16 and lone surrogates.
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidJsonError(f"The body is not UTF-8: byte {exc.start} cannot be decoded.") from exc


def _read_all(text: str) -> Any:  # noqa: ANN401 - JSON
    value, end, error = _read_value(text, _skip_blanks(text, 0))
    _check_end(text, end)
    if error is not None:
        raise error
    return value


def _read_value(text: str, at: int) -> tuple[Any, int, InvalidJsonError | None]:
    """Return the JSON value at a place of a text, its end, and what is wrong with its keys."""
    twice: list[str] = []

    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Return the object of these members; note equal keys, as JSON does not define which of them counts."""
        found = dict(pairs)
        if len(found) < len(pairs) and not twice:
            twice.append(_repeated(key for key, _ in pairs))
        return found

    with _refusals():
        value, end = json.JSONDecoder(object_pairs_hook=members).raw_decode(text, at)
    error = InvalidJsonError(f"The key {shortened(repr(twice[0]))} appears twice in one object.") if twice else None
    return value, end, error


@contextmanager
def _refusals() -> Iterator[None]:
    """Raise `InvalidJsonError` for a text that Python's JSON parser refuses."""
    try:
        yield
    except json.JSONDecodeError as exc:
        raise _not_json(exc) from exc
    except RecursionError as exc:
        raise InvalidJsonError("The body is nested too deeply.") from exc
    except ValueError as exc:
        # Python refuses to convert an integer of thousands of digits.
        raise InvalidJsonError("The body has a number with too many digits.") from exc


def _repeated(keys: Iterable[str]) -> str:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    raise ValueError("no key is repeated")


def _skip_blanks(text: str, at: int) -> int:
    blanks = _BLANK.match(text, at)
    return at if blanks is None else blanks.end()


def _check_end(text: str, at: int) -> None:
    at = _skip_blanks(text, at)
    if at < len(text):
        raise _not_json(json.JSONDecodeError("Extra data", text, at))


def _not_json(error: json.JSONDecodeError) -> InvalidJsonError:
    return InvalidJsonError(f"{error.msg} at line {error.lineno}, column {error.colno}.")


def _careful_event(value: object) -> EventBody:
    if not isinstance(value, dict):
        error = {"field": "body", "message": "expected one event as a JSON object", "code": "not_an_object"}
        raise InvalidEventError("The body is JSON, but not an object.", [error])
    try:
        return event_body(EventIn.model_validate(_bounded(value, EventIn)))
    except ValidationError as exc:
        raise InvalidEventError(*_faults(exc, OWN_FACTS)) from exc


def _bounded(value: dict[str, Any], kind: type[BaseModel]) -> dict[str, Any]:
    """Return an object with no more unknown members than are named in an answer."""
    known = kind.model_fields
    if len(value) <= len(known) + MAX_FIELD_ERRORS:
        return value
    unknown = islice((name for name in value if name not in known), MAX_FIELD_ERRORS)
    return {name: value[name] for name in (*(name for name in known if name in value), *unknown)}


def _faults(invalid: ValidationError, unknown: str = UNKNOWN_FIELD) -> tuple[str, list[dict[str, str]]]:
    """Return what is wrong, as one line and field by field; `unknown` says that there is no such field."""
    errors = field_errors(invalid.errors(include_url=False, include_context=False, include_input=False), unknown)
    return "; ".join(f"{error['field']}: {error['message']}" for error in errors), errors
