"""Snowplow's enriched events: the JSON of its analytics SDKs, which a table of atomic events has as columns.

Fields: https://docs.snowplow.io/docs/fundamentals/canonical-event/. Items come from the classic `ti_` fields, from the
product entity of the e-commerce tracking, and from the older `add_to_cart` and `remove_from_cart` events. Apps have no
`domain_sessionid`: their session is in the entity `client_session`. A tag manager's server writes `x-sp-` before names.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

from model.vendors.paths import scalar_text
from model.vendors.table import Record, UnreadableError, Vendor, VendorProperty, VendorTable

# Where the JSON and the tables have the parts of entities and of self-describing events.
ACTION: Final = "unstruct_event_com_snowplowanalytics_snowplow_ecommerce_snowplow_ecommerce_action_1"
PRODUCT: Final = "contexts_com_snowplowanalytics_snowplow_ecommerce_product_1"
TRANSACTION: Final = "contexts_com_snowplowanalytics_snowplow_ecommerce_transaction_1"
SESSION: Final = "contexts_com_snowplowanalytics_snowplow_client_session_1"
CARTS: Final = tuple(
    f"unstruct_event_com_snowplowanalytics_snowplow_{name}_1" for name in ("add_to_cart", "remove_from_cart")
)
# The columns that together name a session, and the column that has both.
SESSION_PARTS: Final = ("domain_userid", "domain_sessionidx")
SESSION_INDEX: Final = " session of visitor"
_PREFIX: Final = "x-sp-"


def _of_item(field: str, entity: str, older: str) -> tuple[str, ...]:
    return field, f"{PRODUCT}[0].{entity}", *(f"{cart}.{older}" for cart in CARTS)


TABLE: Final = VendorTable(
    timestamp=("derived_tstamp", "collector_tstamp"),
    event_name=("event_name", "event"),
    event_id=("event_id",),
    session_id=("domain_sessionid", f"{SESSION}[0].sessionId", SESSION_INDEX),
    visitor_id=("domain_userid",),
    needs_session=True,
    item_id=_of_item("ti_sku", "id", "sku"),
    item_category=_of_item("ti_category", "category", "category"),
    price=_of_item("ti_price", "price", "unitPrice"),
    quantity=_of_item("ti_quantity", "quantity", "quantity"),
    properties=(
        VendorProperty("device", ("dvce_type",)),
        VendorProperty("country", ("geo_country",)),
        VendorProperty("source", ("mkt_source",)),
        VendorProperty("medium", ("refr_medium",)),
    ),
    names_by=(
        ("event_name", "snowplow_ecommerce_action", (f"{ACTION}.type",)),
        ("event", "struct", ("se_action",)),
    ),
    # The types of e-commerce actions that are no names of Google Analytics.
    events=MappingProxyType(
        {
            "product_view": "view_item",
            "list_view": "view_item_list",
            "list_click": "select_item",
            "checkout_step": "begin_checkout",
            "promo_view": "view_promotion",
            "promo_click": "select_promotion",
            "transaction": "purchase",
            # It tells of the purchase, and is none.
            "transaction_item": "transaction_item",
        }
    ),
    value=("tr_total", f"{TRANSACTION}[0].revenue"),
    currency=(
        *("tr_currency", "ti_currency", f"{TRANSACTION}[0].currency", f"{PRODUCT}[0].currency"),
        *(f"{cart}.currency" for cart in CARTS),
    ),
)


def units(document: Any) -> Sequence[Any]:  # noqa: ANN401 - any JSON
    """Return the events of a request: one, or a list."""
    return document if isinstance(document, list) else [document]


def row(event: Any) -> Record:  # noqa: ANN401 - any JSON
    """Return the columns of an event.

    Raises:
        UnreadableError: this is no JSON object.
    """
    if not isinstance(event, dict):
        raise UnreadableError("body", "expected an event as a JSON object")
    found = {name.removeprefix(_PREFIX): value for name, value in event.items()}
    parts = [scalar_text(found.get(name)) for name in SESSION_PARTS]
    found[SESSION_INDEX] = "-".join(filter(None, parts)) if all(part and not part.isspace() for part in parts) else None
    return found


SNOWPLOW: Final = Vendor("snowplow", TABLE, units, row)
