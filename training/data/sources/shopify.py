"""Shopify: events of a custom web pixel, one JSON object a line, as `analytics.subscribe` gives them.

Events: https://shopify.dev/docs/api/web-pixels-api/standard-events. Shopify has no export of them: a shop's own pixel
collects them. Visitors (`clientId`) are split into sessions at idle times. An item is a variant's `sku`, else its `id`;
an event with several items has the values of the first one, and their number as `items`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from model.vendors.paths import value_at
from training.data.sources.base import EventFile, adapter_of_tables
from training.data.sources.json_lines import is_json, sample
from training.data.sources.mapping import ColumnMapping, PropertyColumn

REQUIRED: Final = frozenset({"clientId", "timestamp", "name", "data"})
# Where an event's items are, and the variant and the quantity of one; the first that is there counts.
_ITEMS: Final = (
    ("productVariant", "", ""),
    ("cartLine", "merchandise", "quantity"),
    ("checkout.lineItems", "variant", "quantity"),
    ("cart.lines", "merchandise", "quantity"),
    ("collection.productVariants", "", ""),
    ("searchResult.productVariants", "", ""),
)
_VARIANT: Final = {"category": "product.type", "price": "price.amount", "currency": "price.currencyCode"}
# What an event is worth.
_TOTALS: Final = ("checkout.totalPrice", "cartLine.cost.totalAmount")
MAPPING: Final = ColumnMapping(
    visitor_id="clientId",
    timestamp="timestamp",
    event_name="name",
    item_id="item",
    item_category="category",
    price="price",
    quantity="quantity",
    value="value",
    currency="currency",
    properties=(PropertyColumn("items", "items", "number"),),
)


def _records(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the event with the values of its first item."""
    data = event.get("data")
    facts = data if isinstance(data, dict) else {}
    items, variant_at, quantity_at = _items(facts)
    first = next((item for item in items if isinstance(item, dict)), {})
    variant = (value_at(first, variant_at) if variant_at else first) or {}
    row = {name: event.get(name) for name in ("clientId", "timestamp", "name")}
    row |= {name: value_at(variant, path) for name, path in _VARIANT.items()}
    row["quantity"] = value_at(first, quantity_at) if quantity_at else None
    total = next((found for path in _TOTALS if isinstance(found := value_at(facts, path), dict)), {})
    row |= {"value": total.get("amount"), "currency": total.get("currencyCode") or row["currency"]}
    yield row | {"item": variant.get("sku") or variant.get("id"), "items": len(items)}


def _items(data: dict[str, Any]) -> tuple[list[Any], str, str]:
    """Return an event's items, and where each has its variant and its quantity."""
    for path, variant_at, quantity_at in _ITEMS:
        found = value_at(data, path)
        if found is not None:
            return (found if isinstance(found, list) else [found]), variant_at, quantity_at
    return [], "", ""


def _is_ours(path: Path) -> bool:
    events = sample(path)[:1] if is_json(path) else []
    return any(event.keys() >= REQUIRED for event in events)


ADAPTER: Final = adapter_of_tables(
    "shopify",
    "Shopify: events of a web pixel as JSON Lines",
    _is_ours,
    "no events of a Shopify web pixel, one JSON object a line",
    lambda file: EventFile(file, MAPPING, records=_records, may_lack=True),
)
