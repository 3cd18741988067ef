"""What a caller asks of the board: the query string, checked."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Final, Self
from urllib.parse import parse_qsl

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from app.board.cursor import InvalidCursorError, decode_cursor
from app.errors import InvalidRequestError, field_errors
from app.schemas.events import timestamp_ms
from app.store.board import Order, Position, Selection
from app.store.record_codec import Outcome, Record

LARGEST_LIMIT: Final = 200
LARGEST_RECENT: Final = 32
# A cursor of the longest session id, and then some.
_LONGEST_CURSOR: Final = 2048
_MOST_PARAMETERS: Final = 16
_MOST_DIGITS: Final = 16


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
    seen_since: Annotated[
        int | None,
        BeforeValidator(_since),
        WithJsonSchema({"anyOf": [{"type": "string", "format": "date-time"}, {"type": "integer"}]}),
    ] = None
    """Only sessions that were seen at or after this time: RFC 3339 with an offset, or milliseconds since the epoch."""
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
        selection: what the sorted sets can tell.
        min_events: fewest events of a session; its record tells.
        limit: most sessions.
        recent: last probabilities of each.
        after: where the page before ended; None: from the top.
    """

    selection: Selection = field(default_factory=Selection)
    min_events: int = 0
    limit: int = 50
    recent: int = 0
    after: Position | None = None

    def admits(self, record: Record) -> bool:
        """Return whether a session, as its record is now, belongs to what was asked for."""
        selection = self.selection
        if record.events < self.min_events:
            return False
        if selection.order is Order.PROBABILITY and record.outcome is not Outcome.OPEN:
            return False
        if record.probability is None:
            return selection.min_probability <= 0.0 and selection.max_probability >= 1.0
        return selection.min_probability <= record.probability <= selection.max_probability


# Who polls sends the same string each time.
@lru_cache(maxsize=256)
def parse_query(query_string: bytes, *, with_cursor: bool = True) -> BoardQuery:
    """Return what a query string asks for.

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
        parameters.order, parameters.min_probability, parameters.max_probability, max(0, parameters.seen_since or 0)
    )
    after = None
    if parameters.cursor is not None:
        if not with_cursor:
            raise _invalid("cursor", "a stream always begins at the top; leave it out", "extra_forbidden")
        try:
            after = decode_cursor(parameters.cursor, selection, parameters.min_events)
        except InvalidCursorError as exc:
            message = "expected next_cursor of an answer with the same order and filters"
            raise _invalid("cursor", message, "invalid_cursor") from exc
    return BoardQuery(selection, parameters.min_events, parameters.limit, parameters.recent, after)


def _invalid(field: str, message: str, code: str) -> InvalidRequestError:
    return InvalidRequestError(f"{field}: {message}", [{"field": field, "message": message, "code": code}])
