"""From the body of an event to what waits for a batch: canonical name, time within the bounds, code.

`app.scoring.parsing` makes the body of the bytes of a request.
"""

import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import inf
from typing import Final, Protocol
from zlib import crc32

import msgspec
from msgspec import UNSET, UnsetType
from opentelemetry.trace import Span
from structlog.typing import FilteringBoundLogger

from app.errors import InvalidEventError, InvalidRequestError, shortened
from app.monitoring import tracing
from app.monitoring.metrics import Metrics
from app.schemas.events import EventBody, OutcomeIn
from app.settings import Settings
from app.store.record_codec import ID_BYTES
from model.events import PURCHASE, Event, PropertyValue, identifier_code
from model.purchase_names import looks_like_purchase
from model.text_rules import currency_code, is_placeholder_id

_encode: Final = msgspec.msgpack.Encoder().encode
_ID_MASK: Final = (1 << 8 * ID_BYTES) - 1
_CODE_MASK: Final = (1 << 64) - 1
_LOG_EVERY_MS: Final = 60_000
_MOST_LOGGED: Final = 1024
# A price so many times outside of the training log's has another unit: cents, or another currency.
_OTHER_SCALE: Final = 10.0


class QueuedEvent(msgspec.Struct, frozen=True):
    """A checked event that waits for its batch.

    Attributes:
        session_id: the session.
        event: what happened; its time is within the bounds.
        code: code of event id and body; random without an id, so that a commit whose reply was lost is recognised.
        id_code: code of the id alone, as earlier releases stored it.
        has_event_id: whether the caller gave an id.
        received_ms: the server's clock on arrival.
        warnings: what was accepted though it looks wrong.
        span: span of the request; None when the request is not sampled.
        give_up_at: the request's deadline, by the event loop's clock; later, the event is not stored any more.
        visitor_id: the shop's id of the visitor, for rules; None: not sent.
    """

    session_id: str
    event: Event
    code: int
    has_event_id: bool
    received_ms: int
    id_code: int = 0
    warnings: tuple[str, ...] = ()
    span: Span | None = None
    give_up_at: float = inf
    visitor_id: str | None = None

    @property
    def is_purchase(self) -> bool:
        """Whether the event closes the session."""
        return self.event.event_name == PURCHASE


class Vocabulary(Protocol):
    """What a model knows of names and values; see `model.interface.Model`."""

    def canonical_name(self, event_name: str) -> str: ...
    def knows(self, event_name: str) -> bool: ...
    def unknown_properties(self, properties: Mapping[str, PropertyValue]) -> Sequence[str]: ...
    def undeclared_properties(self, properties: Mapping[str, PropertyValue]) -> Sequence[str]: ...
    @property
    def usual_prices(self) -> tuple[float, float]: ...


class EventValidator:
    """Makes queued events of parsed bodies: canonical names, times within the bounds, codes.

    Args:
        settings: bounds on times.
        metrics: counts future times and unseen names.
        logger: gets names that read like a purchase; None: no log.
    """

    def __init__(self, settings: Settings, metrics: Metrics, logger: FilteringBoundLogger | None = None) -> None:
        self._allows_placeholders = settings.allow_placeholder_ids
        self._logger = logger
        self._logged_ms: OrderedDict[str, int] = OrderedDict()
        self._max_age_ms = settings.max_event_age_s * 1000
        self._max_ahead_ms = settings.max_event_ahead_s * 1000
        self._metrics = metrics

    def submission(self, body: EventBody, *, now_ms: int, model: Vocabulary, give_up_at: float = inf) -> QueuedEvent:
        """Return the queued event of a body that arrived at `now_ms`.

        Args:
            body: the event.
            now_ms: the server's clock.
            model: reads names as its training log was read, and knows which names and values the log had.
            give_up_at: the request's deadline, by the event loop's clock.

        Raises:
            InvalidEventError: the timestamp is out of bounds, or an id stands for nothing.
        """
        event_name, event_id = model.canonical_name(body.event_name), body.event_id
        properties: dict[str, PropertyValue] = body.properties or {}
        warnings = []
        if not self._allows_placeholders:
            _check_ids(body.session_id, event_id)
        timestamp_ms = body.timestamp if isinstance(body.timestamp, int) else now_ms
        if not self._is_within_bounds(timestamp_ms, now_ms):
            raise InvalidEventError(*self._out_of_bounds(timestamp_ms, now_ms))
        if timestamp_ms > now_ms:
            self._metrics.future_events.inc()
            ahead_s = (timestamp_ms - now_ms) / 1000
            warnings.append(f"timestamp: {ahead_s:g} s ahead of the server's clock; taken as now")
            timestamp_ms = now_ms
        if event_name != PURCHASE and not model.knows(event_name):
            self._metrics.unseen_names.inc()
            warnings.append('event_name: the model does not know this name; it counts as "other"')
            if looks_like_purchase(event_name):
                warnings.append(
                    "event_name: reads like a purchase, but is not one of its names (docs/reference/event-names.md)"
                )
                self._metrics.purchase_like_names.inc()
                self._log("purchase_like_name", event_name, now_ms, event_name=event_name)
        item_id = body.item_id or None
        if item_id is not None and is_placeholder_id(item_id):
            warnings.append(f"item_id: {shortened(item_id)!r} stands for no item; it counts as absent")
            item_id = None
        price = None if body.price is UNSET else body.price
        if properties or price:
            warnings += self._suspicions(properties, price, model, now_ms)
        currency = None
        if body.currency and (currency := currency_code(body.currency)) is None:
            text = f"{shortened(body.currency)!r} is no ISO 4217 code; it counts as absent"
            warnings.append(self._suspicious("unknown_currency", "currency", text, now_ms))
        event = Event(
            event_name=event_name,
            timestamp_ms=timestamp_ms,
            item_id=item_id,
            item_category=body.item_category or None,
            price=price,
            quantity=None if body.quantity is UNSET else body.quantity,
            properties=properties,
            value=None if body.value is UNSET else body.value,
            currency=currency,
        )
        id_code = identifier_code(event_id) if event_id else 0
        return QueuedEvent(
            session_id=body.session_id,
            event=event,
            code=_with_digest(id_code, event) if event_id else _random_code(),
            has_event_id=bool(event_id),
            received_ms=now_ms,
            id_code=id_code,
            warnings=tuple(warnings),
            span=tracing.current_span(),
            give_up_at=give_up_at,
            visitor_id=self._visitor_id(body.visitor_id) if body.visitor_id else None,
        )

    def check_session_id(self, session_id: str) -> None:
        """Raise `InvalidRequestError` for a session's id in a path that stands for nothing."""
        if not self._allows_placeholders and is_placeholder_id(session_id):
            raise InvalidRequestError(*_placeholder("session_id", session_id))

    def _visitor_id(self, given: str) -> str | None:
        """Return a visitor's id; None where it stands for nothing, as all such visitors would share a group."""
        return None if not self._allows_placeholders and is_placeholder_id(given) else given

    def outcome_ms(self, body: OutcomeIn, *, now_ms: int) -> int:
        """Return when the outcome was known, ms; raise `InvalidRequestError` for a time out of bounds."""
        timestamp_ms = now_ms if body.timestamp is None else body.timestamp
        if not self._is_within_bounds(timestamp_ms, now_ms):
            raise InvalidRequestError(*self._out_of_bounds(timestamp_ms, now_ms))
        return min(timestamp_ms, now_ms)

    def _is_within_bounds(self, timestamp_ms: int, now_ms: int) -> bool:
        return now_ms - self._max_age_ms <= timestamp_ms <= now_ms + self._max_ahead_ms

    def _suspicions(
        self, properties: Mapping[str, PropertyValue], price: float | None, model: Vocabulary, now_ms: int
    ) -> list[str]:
        """Return a warning for each value that the training log makes unlikely."""
        found = []
        for name in model.unknown_properties(properties):
            text = 'the model does not know this value; it counts as "other", or as missing'
            found.append(self._suspicious("unknown_value", f"properties.{name}", text, now_ms))
        for name in model.undeclared_properties(properties):
            text = "the model does not know this property, and does not use it"
            found.append(self._suspicious("unknown_property", f"properties.{name}", text, now_ms))
        low, high = model.usual_prices
        if price and not low / _OTHER_SCALE <= price <= high * _OTHER_SCALE:
            text = f"the training log's prices are about {low:.4g} to {high:.4g}; is this another unit or currency?"
            found.append(self._suspicious("price_scale", "price", text, now_ms))
        return found

    def _suspicious(self, kind: str, field: str, text: str, now_ms: int) -> str:
        """Count a value that was accepted though it looks wrong, log it, and return the warning."""
        self._metrics.suspicious_fields.labels(kind).inc()
        self._log("suspicious_field", f"{kind} {field}", now_ms, kind=kind, field=field, detail=text)
        return f"{field}: {text}"

    def _log(self, event: str, of: str, now_ms: int, **values: str) -> None:
        """Log a warning, once a minute for each name or field."""
        key = f"{event} {of}"
        if self._logger is None or now_ms - self._logged_ms.get(key, now_ms - _LOG_EVERY_MS) < _LOG_EVERY_MS:
            return
        self._logged_ms[key] = now_ms
        if len(self._logged_ms) > _MOST_LOGGED:
            self._logged_ms.popitem(last=False)
        self._logger.warning(event, **values)

    def _out_of_bounds(self, timestamp_ms: int, now_ms: int) -> tuple[str, list[dict[str, str]]]:
        for unit, factor in (("seconds", 1000), ("microseconds", 1 / 1000), ("nanoseconds", 1 / 1_000_000)):
            if self._is_within_bounds(int(timestamp_ms * factor), now_ms):
                message = f"these look like {unit}; expected milliseconds since the epoch"
                break
        else:
            message = self._bound(timestamp_ms - now_ms)
        error = {"field": "timestamp", "message": message, "code": "timestamp_out_of_bounds"}
        return f"timestamp: {message}", [error]

    def _bound(self, offset_ms: int) -> str:
        if offset_ms < 0:
            return f"expected a time at most {self._max_age_ms // 1000} s in the past"
        return f"expected a time at most {self._max_ahead_ms // 1000} s ahead of the server's clock"


def _check_ids(session_id: str, event_id: str | UnsetType | None) -> None:
    if is_placeholder_id(session_id):
        raise InvalidEventError(*_placeholder("session_id", session_id))
    if event_id and is_placeholder_id(event_id):
        raise InvalidEventError(*_placeholder("event_id", event_id))


def _placeholder(field: str, value: str) -> tuple[str, list[dict[str, str]]]:
    """Return the detail and the fault of an id that stands for nothing."""
    message = f"{shortened(value)!r} stands for no id: all senders of it would share one"
    return f"{field}: {message}", [{"field": field, "message": message, "code": "placeholder_id"}]


def _with_digest(id_code: int, event: Event) -> int:
    """Return a code of six bytes of the id's code and two of a digest of the body.

    The time is no part of it, as many senders write the time of sending, nor is the order of the properties.
    """
    fields: tuple[str | float | None, ...]
    fields = (event.event_name, event.item_id, event.item_category, event.price, event.quantity, event.value)
    if event.currency is not None:
        # Without it, the digest is that of releases which did not know the field.
        fields += (event.currency,)
    digest = crc32(_encode((*fields, sorted(event.properties.items()))))
    code = (digest << 8 * ID_BYTES) & _CODE_MASK | id_code & _ID_MASK
    # As a signed number of eight bytes.
    return code - (code >> 63 << 64)


def _random_code() -> int:
    return int.from_bytes(os.urandom(8), "little", signed=True)
