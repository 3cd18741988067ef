"""Bodies of requests and answers about events and outcomes.

Values are never converted: `"12"` is no price. Unknown fields are refused, since ignoring a misspelt field would lose
data silently.
"""

import re
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from app.schemas.problems import Problem
from model.events import PropertyValue
from model.text_rules import has_forbidden_character, session_id_text

LARGEST_AMOUNT: Final = 1e12
# Farther from the epoch than any clock; keeps later arithmetic within 64 bits.
LARGEST_TIMESTAMP_MS: Final = 2**53
LONGEST_SESSION_ID: Final = 256
LONGEST_NAME: Final = 128
LONGEST_EVENT_ID: Final = 128
LONGEST_IDENTIFIER: Final = 256
LARGEST_PROPERTY_COUNT: Final = 32
LONGEST_PROPERTY_KEY: Final = 64
LONGEST_PROPERTY_VALUE: Final = 256

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)


def without_forbidden_characters(value: object) -> object:
    """Return `value`; raise for a text with a control character or a surrogate (`model.text_rules`)."""
    if isinstance(value, str) and has_forbidden_character(value):
        raise PydanticCustomError("forbidden_character", "expected no control characters and no lone surrogates")
    return value


def _not_blank(value: str) -> str:
    if value.isspace():
        raise PydanticCustomError("blank", "expected something other than white space")
    return value


def timestamp_ms(value: object) -> int | None:
    """Return milliseconds since the epoch of an RFC 3339 time or of a whole number of milliseconds."""
    if value is None:
        return None
    if isinstance(value, str) and _RFC3339.fullmatch(value.upper()):
        try:
            return (datetime.fromisoformat(value.upper()) - _EPOCH) // timedelta(milliseconds=1)
        except (ValueError, OverflowError):
            pass  # the form of a time, but no such time
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_TIMESTAMP_MS:
        return value
    raise PydanticCustomError(
        "timestamp",
        "expected RFC 3339 with an offset (2026-11-22T10:15:00Z) or a whole number of milliseconds since the epoch",
    )


def _property_value(value: object) -> PropertyValue:
    if isinstance(value, str):
        if len(value) <= LONGEST_PROPERTY_VALUE:
            without_forbidden_characters(value)
            return value
    elif isinstance(value, bool):
        return value
    elif isinstance(value, (int, float)) and abs(value) <= LARGEST_AMOUNT and isfinite(value):
        return float(value)
    raise PydanticCustomError(
        "property_value",
        f"expected a string of at most {LONGEST_PROPERTY_VALUE} characters, a finite number of at most 1e12 either "
        "way, true or false",
    )


# Each type carries its limits twice: for pydantic, which words the errors, and as `Meta` for msgspec, which is faster.
SessionId = Annotated[
    str,
    Field(min_length=1, max_length=LONGEST_SESSION_ID),
    BeforeValidator(without_forbidden_characters),
    # As `willbuy prepare` reads ids, so that a log and the service have the same sessions.
    AfterValidator(session_id_text),
    Meta(min_length=1, max_length=LONGEST_SESSION_ID),
]
_Name = Annotated[
    str,
    Field(min_length=1, max_length=LONGEST_NAME),
    BeforeValidator(without_forbidden_characters),
    AfterValidator(_not_blank),
    Meta(min_length=1, max_length=LONGEST_NAME),
]
# Optional texts may be empty, which means that they are absent.
_EventId = Annotated[
    str,
    Field(max_length=LONGEST_EVENT_ID),
    BeforeValidator(without_forbidden_characters),
    Meta(min_length=1, max_length=LONGEST_EVENT_ID),
]
_Identifier = Annotated[
    str,
    Field(max_length=LONGEST_IDENTIFIER),
    BeforeValidator(without_forbidden_characters),
    Meta(min_length=1, max_length=LONGEST_IDENTIFIER),
]
_Amount = Annotated[float, Field(ge=0, le=LARGEST_AMOUNT, allow_inf_nan=False), Meta(ge=0, le=LARGEST_AMOUNT)]
_REQUIRED: Final = frozenset({"session_id", "event_name", "outcome"})
_EMPTY: Final[dict[str, Any]] = {"type": "string", "maxLength": 0}
_NULL: Final[dict[str, Any]] = {"type": "null"}
_OptionalAmount = Annotated[
    _Amount | None,
    WithJsonSchema(
        {"anyOf": [{"type": "number", "minimum": 0, "maximum": LARGEST_AMOUNT}, _EMPTY, _NULL], "default": None}
    ),
]
_Timestamp = Annotated[
    int | None,
    BeforeValidator(timestamp_ms),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string", "format": "date-time"}, {"type": "integer"}, _EMPTY, _NULL],
            "default": None,
        }
    ),
]
_TimestampBody = Annotated[int, Meta(ge=-LARGEST_TIMESTAMP_MS, le=LARGEST_TIMESTAMP_MS)] | str
_PropertyKey = Annotated[
    str,
    Field(min_length=1, max_length=LONGEST_PROPERTY_KEY),
    BeforeValidator(without_forbidden_characters),
    Meta(min_length=1, max_length=LONGEST_PROPERTY_KEY),
]
_PropertyBody = (
    Annotated[str, Meta(min_length=1, max_length=LONGEST_PROPERTY_VALUE)]
    | Annotated[float, Meta(ge=-LARGEST_AMOUNT, le=LARGEST_AMOUNT)]
    | bool
)


def _present(values: object) -> object:
    """Return an object with null for each empty text: both mean that an optional field is absent."""
    if isinstance(values, dict) and "" in values.values():
        return {
            name: None if isinstance(value, str) and not value and name not in _REQUIRED else value
            for name, value in values.items()
        }
    return values


def _properties(value: object) -> object:
    """Return the properties that are present, counted before any is looked at: a body may have thousands."""
    if isinstance(value, dict):
        if any(one is None or one == "" for one in value.values()):
            value = {name: one for name, one in value.items() if one is not None and one != ""}
        if len(value) > LARGEST_PROPERTY_COUNT:
            many = f"expected at most {LARGEST_PROPERTY_COUNT} properties, not {len(value)}"
            raise PydanticCustomError("too_long", "{many}", {"many": many})
    return {} if value is None else value


EVENT_EXAMPLE: Final[dict[str, Any]] = {
    "event_id": "b7e2f3a0-5d0c-4a7e-9d8b-2f6f4c1f7a10",
    "session_id": "s-81",
    "event_name": "view_item",
    "item_id": "SKU-1",
    "item_category": "shoes",
    "price": 59.9,
    "quantity": 1,
    "properties": {"device": "mobile"},
}


_PROPERTIES_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {
            "type": "object",
            "propertyNames": {"minLength": 1, "maxLength": LONGEST_PROPERTY_KEY},
            "maxProperties": LARGEST_PROPERTY_COUNT,
            "additionalProperties": {
                "anyOf": [
                    {"type": "string", "maxLength": LONGEST_PROPERTY_VALUE},
                    {"type": "number", "minimum": -LARGEST_AMOUNT, "maximum": LARGEST_AMOUNT},
                    {"type": "boolean"},
                    _NULL,
                ]
            },
        },
        _EMPTY,
        _NULL,
    ]
}


class EventIn(BaseModel):
    """One thing a visitor did."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, json_schema_extra={"title": "Event"}
    )

    session_id: SessionId
    """The shop's id of the session. An unknown one starts a session. Blanks at its ends go, and `7.0` is `7`."""

    event_name: _Name
    """What happened: a Google Analytics 4 name, one of Segment's, RudderStack's or Google Retail's, or the shop's own.
    `purchase` closes the session."""

    event_id: _EventId | None = None
    """Id of this event; the same one again gets the same answer and changes nothing. Without it every POST counts."""

    timestamp: _Timestamp = None
    """When it happened: RFC 3339 with an offset, or milliseconds since the epoch. Without it: now."""

    item_id: _Identifier | None = None
    """The item that was shown or acted on."""

    item_category: _Identifier | None = None
    """The item's category."""

    price: _OptionalAmount = None
    """Price of one unit, in the shop's currency."""

    quantity: _OptionalAmount = None
    """Number of units; absent counts as one."""

    visitor_id: _Identifier | None = None
    """The shop's id of the visitor. Rules keep a visitor in one group over all sessions; the model never sees it."""

    value: _OptionalAmount = None
    """What the event is worth in all; of a purchase, the session's revenue. The model never sees it. Without it: price
    times quantity, where there is a price."""

    currency: _Identifier | None = None
    """Currency of price and value, an ISO 4217 code; without it, the one that the session sent last. The model never
    sees it. Values of different currencies are never added. Any other text is warned of and counts as absent."""

    properties: Annotated[
        dict[_PropertyKey, Annotated[PropertyValue, BeforeValidator(_property_value)]],
        Field(max_length=LARGEST_PROPERTY_COUNT),
        BeforeValidator(_properties),
        WithJsonSchema(_PROPERTIES_SCHEMA),
    ] = Field(default_factory=dict)
    """Further facts of the event or the session; the model uses those it was trained with."""

    @model_validator(mode="before")
    @classmethod
    def _without_absent_fields(cls, values: object) -> object:
        """Null and an empty text mean that an optional field is absent."""
        return _present(values)


class EventBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The fields and limits of `EventIn`, for the fast parser; None and UNSET both mean that a field is absent.

    Empty texts, and properties of null, are left to the careful parser, which takes them for absent.

    Attributes:
        timestamp: milliseconds since the epoch; a text only until `app.scoring.events` has read it.
    """

    session_id: SessionId
    event_name: _Name
    event_id: _EventId | UnsetType | None = UNSET
    timestamp: _TimestampBody | UnsetType | None = UNSET
    item_id: _Identifier | UnsetType | None = UNSET
    item_category: _Identifier | UnsetType | None = UNSET
    price: _Amount | UnsetType | None = UNSET
    quantity: _Amount | UnsetType | None = UNSET
    visitor_id: _Identifier | UnsetType | None = UNSET
    value: _Amount | UnsetType | None = UNSET
    currency: _Identifier | UnsetType | None = UNSET
    properties: Annotated[dict[_PropertyKey, _PropertyBody], Meta(max_length=LARGEST_PROPERTY_COUNT)] | UnsetType = (
        UNSET
    )


class InterventionOut(BaseModel):
    """That a rule has fired."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"title": "Intervention"})

    name: str
    """Name of the rule."""
    group: Literal["treatment", "control"]
    """`treatment`: act. `control`: held out; told only where the rule has `tell_control`."""
    probability: float
    """Probability of a purchase when the rule fired."""


class ScoreOut(BaseModel):
    """The answer to an event."""

    model_config = ConfigDict(
        use_attribute_docstrings=True,
        protected_namespaces=(),
        json_schema_extra={
            "title": "Score",
            "examples": [
                {
                    "session_id": "s-81",
                    "probability": 0.137,
                    "events": 4,
                    "model": "9f86d081884c7d65",
                    "outcome": "open",
                    "folded": True,
                    "duplicate": False,
                    "warnings": [],
                    "interventions": [{"name": "voucher", "group": "treatment", "probability": 0.137}],
                }
            ],
        },
    )

    session_id: str
    """The session."""
    probability: float | None
    """Probability that the session ends in a purchase; null once the outcome is known."""
    events: int
    """Number of events folded into the session."""
    model: str
    """Fingerprint of the model that gave the probability."""
    outcome: Literal["open", "purchase", "none"]
    """`purchase` once the session has bought, `none` once the shop said that it will not; then there is no probability
    any more."""
    folded: bool
    """Whether this event is part of the probability: not the purchase itself, and nothing after it."""
    duplicate: bool
    """Whether this `event_id` was answered before; the answer is the one given then."""
    warnings: list[str]
    """What was accepted though it looks wrong, each starting with the field's name."""
    interventions: list[InterventionOut] = []
    """The rules that fired at this event; none without rules. A repeated `event_id` gets the same ones again."""


class ItemOut(BaseModel):
    """What became of one event of a batch: a score, or the problem that its own request would have got."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"title": "Item"})

    status: int
    """200, or the problem's status."""
    score: ScoreOut | None = None
    """The answer, with status 200."""
    problem: Problem | None = None
    """What went wrong, with any other status."""


class BatchOut(BaseModel):
    """The answer to a batch."""

    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra={"title": "Batch"})

    results: list[ItemOut]
    """One an event, in the request's order; blank lines of NDJSON are no events."""


class OutcomeIn(BaseModel):
    """What became of a session."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, json_schema_extra={"title": "Outcome"}
    )

    outcome: Literal["purchase", "none"]
    """Whether it ended in a purchase."""

    timestamp: _Timestamp = None
    """When: RFC 3339 with an offset, or milliseconds since the epoch. Without it: now."""

    value: _OptionalAmount = None
    """Value of the purchase: the session's revenue."""

    currency: _Identifier | None = None
    """Its currency, as of an event."""

    @model_validator(mode="before")
    @classmethod
    def _without_absent_fields(cls, values: object) -> object:
        return _present(values)
