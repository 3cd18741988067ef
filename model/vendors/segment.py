"""Segment and RudderStack: their calls as JSON, and the columns of their warehouses, which have the same facts.

Calls: https://www.twilio.com/docs/segment/connections/spec/common and
https://www.rudderstack.com/docs/event-spec/standard-events/common-fields/. A call has no session. An event with several
products is one event and has the values of the first product; the property `items` is their number.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

import msgspec

from model.vendors.paths import scalar_text, value_at
from model.vendors.table import Record, UnreadableError, Vendor, VendorProperty, VendorTable, iso_ms

# Tables and calls of pages, with the name that their events get.
PAGES: Final = MappingProxyType(
    {"pages": "page_view", "page": "page_view", "screens": "screen_view", "screen": "screen_view"}
)
NO_EVENTS: Final = frozenset(
    {"identifies", "identify", "users", "groups", "group", "accounts", "aliases", "alias", "delete"}
)
ITEM: Final = ("product_id", "sku", "category", "price", "quantity")
# The products of an event: JSON in a table's column or a call, or a nested column of Parquet.
PRODUCTS: Final = "products"
_COUNT: Final = " number of products"
TIMES: Final = ("timestamp", "original_timestamp", "sent_at", "received_at")
# Columns of a warehouse's table, and where a call has the value.
CALL: Final[Mapping[str, str]] = MappingProxyType(
    {
        "anonymous_id": "anonymousId",
        "user_id": "userId",
        "event_text": "event",
        "id": "messageId",
        "timestamp": "timestamp",
        "original_timestamp": "originalTimestamp",
        "sent_at": "sentAt",
        "received_at": "receivedAt",
        "context_device_type": "context.device.type",
        "context_campaign_source": "context.campaign.source",
        "context_campaign_medium": "context.campaign.medium",
        "context_locale": "context.locale",
    }
)
# What a batch says once for all its calls.
_OF_A_BATCH: Final = ("sentAt", "receivedAt", "context")
# What an order is worth.
_VALUE: Final = ("revenue", "total", "value")


def _first(name: str) -> str:
    """Return the column of the first product's value."""
    return f" first {name}"


def _of_item(name: str) -> tuple[str, str, str]:
    return name, _first(name), f"{PRODUCTS}[0].{name}"


TABLE: Final = VendorTable(
    timestamp=TIMES,
    event_name=("event_text", "event"),
    event_id=("id",),
    visitor_id=("anonymous_id", "user_id"),
    item_id=(*_of_item("product_id"), *_of_item("sku")),
    item_category=_of_item("category"),
    price=_of_item("price"),
    quantity=_of_item("quantity"),
    properties=(
        VendorProperty("device", ("context_device_type",)),
        VendorProperty("source", ("context_campaign_source",)),
        VendorProperty("medium", ("context_campaign_medium",)),
        VendorProperty("locale", ("context_locale",)),
        VendorProperty("items", (_COUNT, f"{PRODUCTS}[#]"), "number", absent="0", absent_with_item="1"),
    ),
    value=_VALUE,
    currency=("currency",),
)


def product_columns(products: object) -> dict[str, str | None]:
    """Return the columns of the first product's values and of the number of products.

    Args:
        products: a list, or the JSON of one; anything else has no products.
    """
    if isinstance(products, str) and products.lstrip().startswith("["):
        try:
            products = msgspec.json.decode(products)
        except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
            products = None
    found = products if isinstance(products, list) else None
    first = next((product for product in found or () if isinstance(product, dict)), {})
    values = {_first(name): scalar_text(first.get(name)) or None for name in ITEM}
    return {**values, _COUNT: None if found is None else str(len(found))}


def corrected_time(original: str | None, sent: str | None, received: str | None) -> str | None:
    """Return the time of an event by the vendor's clock, for records that have only the device's; None: not known.

    The device's clock may be wrong, but it is so for the event and for the sending:
    https://www.twilio.com/docs/segment/connections/spec/common#timestamps.
    """
    times = [iso_ms(text) if text else None for text in (original, sent, received)]
    original_ms, sent_ms, received_ms = times
    if original_ms is None or sent_ms is None or received_ms is None:
        return None
    seconds, milliseconds = divmod(received_ms - (sent_ms - original_ms), 1000)
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"


def units(document: Any) -> Sequence[Any]:  # noqa: ANN401 - any JSON
    """Return the calls of a request: one, a list, or `batch` of one."""
    if isinstance(document, list):
        return document
    batch = document.get("batch") if isinstance(document, dict) else None
    if not isinstance(batch, list):
        return [document]
    common = {name: document[name] for name in _OF_A_BATCH if name in document}
    return [{**common, **call} if isinstance(call, dict) else call for call in batch]


def row(call: Any) -> Record | None:  # noqa: ANN401 - any JSON
    """Return the columns of a call; None for calls that are no events.

    Raises:
        UnreadableError: this is no call.
    """
    if not isinstance(call, dict):
        raise UnreadableError("body", "expected a call as a JSON object")
    kind = call.get("type", "track")
    if not isinstance(kind, str) or (kind != "track" and kind not in PAGES):
        if isinstance(kind, str) and kind in NO_EVENTS:
            return None
        raise UnreadableError("type", "no kind of call that is known")
    found: Record = {column: value_at(call, path) for column, path in CALL.items()}
    held = call.get("properties")
    facts = held if isinstance(held, dict) else {}
    found |= {name: facts.get(name) for name in (*ITEM, *_VALUE, "currency")}
    found |= product_columns(facts.get(PRODUCTS))
    if not scalar_text(found["timestamp"]):
        found["timestamp"] = corrected_time(*(scalar_text(found[name]) for name in TIMES[1:]))
    return found if kind == "track" else found | {"event_text": PAGES[kind]}


SEGMENT: Final = Vendor("segment", TABLE, units, row)
RUDDERSTACK: Final = Vendor("rudderstack", TABLE, units, row)
