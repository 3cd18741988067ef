"""Queries of the board: the checked query string, and the cursor of a page.

A cursor is the end of a page, which the caller sends back for the next one. It is URL-safe Base64 of: version byte,
score as float64 little endian, for `active_s` the earliest last commit as int64, session id in UTF-8, and eight bytes
of BLAKE2b over these and the page's selection. The hash detects a cursor that was changed, cut, or sent with another
order or other filters. It is not a signature: callers may read any position anyway.
"""

import binascii
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated, Final, Self
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from app.errors import InvalidRequestError, field_errors
from app.schemas.events import timestamp_ms
from app.store.board import Order, Position, Row, Selection
from app.store.record_codec import Outcome
from model.text_rules import canonical_text

LARGEST_LIMIT: Final = 200
LARGEST_RECENT: Final = 32
_LONGEST_ID: Final = 256
# Longer than the cursor of the longest session id.
_LONGEST_CURSOR: Final = 2048
_MOST_PARAMETERS: Final = 16
_MOST_DIGITS: Final = 16
_CURSOR_VERSION: Final = 1
_CURSOR_HEAD: Final = struct.Struct("<Bd")
_CURSOR_SINCE: Final = struct.Struct("<q")
# The earliest last commit is rounded, so that the next pages' cursor, and with it the entity tag, stays for a while.
_ACTIVE_STEPS: Final = 60
_CHECK_BYTES: Final = 8
# Events within which a session that crosses a probability has just done so.
_CROSSED_WITHIN: Final = 8


class InvalidCursorError(ValueError):
    """The text is no cursor of this selection."""


def _since(value: object) -> object:
    is_number = isinstance(value, str) and value.isdecimal() and len(value) <= _MOST_DIGITS
    return timestamp_ms(int(str(value)) if is_number else value)


class BoardParameters(BaseModel):
    """The parameters of `GET /v1/sessions`."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    order: Order = Order.PROBABILITY
    """`probability`: open sessions, the most likely first. `last_seen`: bought ones too, the last seen first."""
    limit: Annotated[int, Field(ge=1, le=LARGEST_LIMIT)] = 50
    """Most sessions of the answer."""
    min_probability: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    """Only sessions of at least this probability."""
    max_probability: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    """Only sessions of at most this probability."""
    min_events: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Only sessions with at least so many events."""
    rule: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    """Only sessions in which the rule of this name has fired."""
    seen_since: Annotated[
        int | None,
        BeforeValidator(_since),
        WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "integer"}]}),
    ] = None
    """Only sessions that were seen at or after this time: RFC 3339 with an offset, or milliseconds since the epoch."""
    active_s: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Only sessions that were seen within so many seconds before the first page."""
    id_prefix: Annotated[str, Field(min_length=1, max_length=_LONGEST_ID)] | None = None
    """Only sessions whose id begins with this text, in upper and lower case as it is."""
    property: Annotated[str, Field(pattern=r"^[^=]{1,64}=.{1,256}$")] | None = None
    """Only sessions in which this property last had this value: `device=mobile`."""
    min_cart_value: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)] = 0.0
    """Only sessions whose cart is worth at least this, whatever the currency."""
    crossed: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    """Only sessions that just crossed this probability: now at least so high, and below it in their last 8 events."""
    recent: Annotated[int, Field(ge=0, le=LARGEST_RECENT)] = 0
    """How many of each session's last probabilities to add."""
    cursor: Annotated[str, Field(min_length=1, max_length=_LONGEST_CURSOR)] | None = None
    """`next_cursor` of the page before, with the same order and filters."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if self.min_probability > self.max_probability:
            raise ValueError("min_probability must not be larger than max_probability")
        return self


@dataclass(frozen=True, slots=True)
class BoardQuery:
    """One page of the board.

    Attributes:
        selection: order and filters that the sorted sets answer.
        min_events: fewest events of a session; needs its record.
        limit: most sessions.
        recent: number of last probabilities of each session.
        after: end of the previous page; None: from the top.
        rule: name of a rule that has fired in a session; None: any session. Needs its record.
        active_s: most seconds between a session's last commit and the first page; None: any session.
        active_since_ms: the time that `active_s` means, the same on all pages; 0 until the first page is read.
        wanted_property: name and canonical text of a property; None: any. Needs the history.
        min_cart_value: least value of the cart; 0: any session.
        crossed: the probability that a session has just crossed; None: any session.
    """

    selection: Selection = field(default_factory=Selection)
    min_events: int = 0
    limit: int = 50
    recent: int = 0
    after: Position | None = None
    rule: str | None = None
    active_s: int | None = None
    active_since_ms: int = 0
    wanted_property: tuple[str, str] | None = None
    min_cart_value: float = 0.0
    crossed: float | None = None

    def begun(self, now_ms: int) -> Self:
        """Return the query with the time that `active_s` means; later pages keep that of the first."""
        if self.active_s is None:
            return self
        step_ms = 1000 * max(1, self.active_s // _ACTIVE_STEPS)
        since_ms = self.active_since_ms or max(0, now_ms - 1000 * self.active_s) // step_ms * step_ms
        return replace(self, active_since_ms=since_ms)

    @property
    def narrowed(self) -> Selection:
        """The selection without sessions that were last active before the query's time."""
        seen_since_ms = max(self.selection.seen_since_ms, self.active_since_ms)
        least = max(self.selection.min_probability, self.crossed or 0.0)
        return replace(self.selection, seen_since_ms=seen_since_ms, min_probability=least)

    @property
    def probabilities_read(self) -> int:
        """How many of each session's last probabilities the query needs."""
        return self.recent if self.crossed is None else max(self.recent, _CROSSED_WITHIN + 1)

    def admits(self, row: Row) -> bool:
        """Return whether a session matches the query by its current row."""
        selection, record = self.selection, row.record
        if record.events < self.min_events or (row.cart_value or 0.0) < self.min_cart_value:
            return False
        if self.rule is not None and all(decision.rule != self.rule for decision in record.decisions):
            return False
        if selection.order is Order.PROBABILITY and record.outcome is not Outcome.OPEN:
            return False
        if not (self._has_property(row) and self._has_crossed(row)):
            return False
        if record.probability is None:
            return selection.min_probability <= 0.0 and selection.max_probability >= 1.0
        return selection.min_probability <= record.probability <= selection.max_probability

    def _has_property(self, row: Row) -> bool:
        if self.wanted_property is None:
            return True
        name, text = self.wanted_property
        return canonical_text(row.properties.get(name)) == text

    def _has_crossed(self, row: Row) -> bool:
        if self.crossed is None:
            return True
        before = row.recent_probabilities[-_CROSSED_WITHIN - 1 : -1]
        is_above = row.record.outcome is Outcome.OPEN and (row.record.probability or 0.0) >= self.crossed
        return is_above and min(before, default=1.0) < self.crossed


# A poller sends the same string each time.
@lru_cache(maxsize=256)
def parse_query(query_string: bytes, *, with_cursor: bool = True) -> BoardQuery:
    """Return the query of a query string.

    Raises:
        InvalidRequestError: a parameter is unknown, given twice, or not as it must be.
    """
    try:
        pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=_MOST_PARAMETERS)
    except ValueError as exc:
        raise _invalid("query", f"expected at most {_MOST_PARAMETERS} parameters", "too_many_parameters") from exc
    values = dict(pairs)
    for name in values:
        if sum(name == other for other, _ in pairs) > 1:
            raise _invalid(name[:64], "expected once, found several times", "repeated")
    try:
        parameters = BoardParameters.model_validate(values)
    except ValidationError as exc:
        errors = field_errors([{**error, "loc": error["loc"] or ("min_probability",)} for error in exc.errors()])
        detail = "; ".join(f"{error['field']}: {error['message']}" for error in errors)
        raise InvalidRequestError(detail, errors) from exc
    selection = Selection(
        parameters.order,
        parameters.min_probability,
        parameters.max_probability,
        max(0, parameters.seen_since or 0),
        parameters.id_prefix or "",
    )
    query = BoardQuery(
        selection,
        parameters.min_events,
        parameters.limit,
        parameters.recent,
        rule=parameters.rule,
        active_s=parameters.active_s,
        wanted_property=_wanted_property(parameters.property),
        min_cart_value=parameters.min_cart_value,
        crossed=parameters.crossed,
    )
    if parameters.cursor is None:
        return query
    if not with_cursor:
        raise _invalid("cursor", "a stream always begins at the top; leave it out", "extra_forbidden")
    try:
        return decode_cursor(parameters.cursor, query)
    except InvalidCursorError as exc:
        message = "expected next_cursor of an answer with the same order and filters"
        raise _invalid("cursor", message, "invalid_cursor") from exc


def _wanted_property(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    name, _, value = text.partition("=")
    return name, canonical_text(value) or ""


def _invalid(field: str, message: str, code: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {message}", [{"field": field, "message": message, "code": code}])


def encode_cursor(position: Position, query: BoardQuery) -> str:
    """Return the cursor of the page of a query after a position."""
    payload = _CURSOR_HEAD.pack(_CURSOR_VERSION, position.score)
    if query.active_s is not None:
        payload += _CURSOR_SINCE.pack(query.active_since_ms)
    payload += position.session_id.encode()
    return urlsafe_b64encode(payload + _check(payload, query)).rstrip(b"=").decode()


def decode_cursor(cursor: str, query: BoardQuery) -> BoardQuery:
    """Return the page of a query that a cursor stands for; raise `InvalidCursorError` if it is not one of the query."""
    try:
        data = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
    except (UnicodeEncodeError, binascii.Error) as exc:
        raise InvalidCursorError from exc
    payload, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if len(payload) <= _CURSOR_HEAD.size or check != _check(payload, query):
        raise InvalidCursorError
    # Base64 has several texts for one value, and takes characters that it ignores.
    if urlsafe_b64encode(data).rstrip(b"=").decode() != cursor:
        raise InvalidCursorError
    _version, score = _CURSOR_HEAD.unpack_from(payload)
    rest, since_ms = payload[_CURSOR_HEAD.size :], 0
    if query.active_s is not None:
        (since_ms,) = _CURSOR_SINCE.unpack_from(rest)
        rest = rest[_CURSOR_SINCE.size :]
    return replace(query, after=Position(score, rest.decode()), active_since_ms=since_ms)


def _check(payload: bytes, query: BoardQuery) -> bytes:
    selection, rule = query.selection, query.rule
    bound = (
        f"{selection.order} {selection.min_probability!r} {selection.max_probability!r} "
        f"{selection.seen_since_ms} {query.min_events} {'' if rule is None else f'{rule} '}"
    )
    if query.active_s is not None or selection.id_prefix:
        bound += f"{query.active_s} {selection.id_prefix!r} "
    of_rows = (query.wanted_property, query.min_cart_value, query.crossed)
    if of_rows != (None, 0.0, None):
        bound += repr(of_rows)
    return blake2b(bound.encode() + payload, digest_size=_CHECK_BYTES, person=b"willbuy-cursor").digest()
