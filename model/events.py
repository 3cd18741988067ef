"""Events, the table of their fields, and the names they may carry.

Names follow Google Analytics 4 (https://developers.google.com/analytics/devguides/collection/ga4/ecommerce). Names of
Segment and RudderStack (https://segment.com/docs/connections/spec/ecommerce/v2/) and of Google Retail
(https://cloud.google.com/retail/docs/user-events) are accepted as aliases, and so are the documented names under which
other systems and public logs record a purchase. Any other name is a page type of the shop's own and is kept as it is.

To add a field, add it to `FIELDS` and `Event` here, to `VendorTable` in `model.vendors.table`, and to both bodies in
`app.schemas.events`. Then add it to `app.scoring.parsing`, to `EventValidator` in `app.scoring.events`, to
`app.store.history_codec`, and to `ColumnMapping` in `training.data.sources.mapping`. All else derives from `FIELDS`.
Tests compare these seven with the table.
"""

import re
import unicodedata
from collections.abc import Collection, Mapping
from functools import lru_cache
from hashlib import blake2b
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

import msgspec

from model.text_rules import canonical_text

PropertyValue = str | float | bool

PURCHASE: Final = "purchase"
ADD_TO_CART: Final = "add_to_cart"
REMOVE_FROM_CART: Final = "remove_from_cart"

GA4_EVENT_NAMES: Final = frozenset(
    {
        "add_payment_info",
        "add_shipping_info",
        "add_to_cart",
        "add_to_wishlist",
        "begin_checkout",
        "click",
        "first_visit",
        "generate_lead",
        "login",
        "page_view",
        "purchase",
        "refund",
        "remove_from_cart",
        "scroll",
        "search",
        "select_content",
        "select_item",
        "select_promotion",
        "session_start",
        "share",
        "sign_up",
        "user_engagement",
        "view_cart",
        "view_item",
        "view_item_list",
        "view_promotion",
        "view_search_results",
    }
)

# Keys have the form that `folded` returns: lower case, words joined by one underscore.
ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        # Segment and RudderStack, e-commerce specification
        "products_searched": "search",
        "product_list_viewed": "view_item_list",
        "product_list_filtered": "view_item_list",
        "promotion_viewed": "view_promotion",
        "promotion_clicked": "select_promotion",
        "product_clicked": "select_item",
        "product_viewed": "view_item",
        "product_added": "add_to_cart",
        "product_removed": "remove_from_cart",
        "cart_viewed": "view_cart",
        "checkout_started": "begin_checkout",
        "payment_info_entered": "add_payment_info",
        "order_completed": "purchase",
        "order_refunded": "refund",
        "product_added_to_wishlist": "add_to_wishlist",
        "wishlist_product_added_to_cart": "add_to_cart",
        "product_shared": "share",
        "cart_shared": "share",
        "page": "page_view",
        "page_viewed": "page_view",
        "signed_up": "sign_up",
        "signed_in": "login",
        # Shopify, web pixels: https://shopify.dev/docs/api/web-pixels-api/standard-events
        "collection_viewed": "view_item_list",
        "search_submitted": "search",
        "product_added_to_cart": "add_to_cart",
        "product_removed_from_cart": "remove_from_cart",
        "checkout_shipping_info_submitted": "add_shipping_info",
        "payment_info_submitted": "add_payment_info",
        # Google Retail, user event types
        "category_page_view": "view_item_list",
        "detail_page_view": "view_item",
        "home_page_view": "page_view",
        "promotion_offered": "view_promotion",
        "purchase_complete": "purchase",
        "shopping_cart_page_view": "view_cart",
        # Purchases of other systems, each under the name that its documentation has.
        "ecommerce_purchase": "purchase",  # Firebase before GA4
        "in_app_purchase": "purchase",  # Firebase
        "transaction": "purchase",  # Universal Analytics, Snowplow, RetailRocket
        "completed_order": "purchase",  # Segment, e-commerce specification 1
        "order_placed": "purchase",  # PrestaShop's and Braze's
        "placed_order": "purchase",  # Klaviyo
        "checkout_completed": "purchase",  # Shopify, web pixels
        "checkout_complete": "purchase",  # Shopify and BigCommerce
        "ecommerce_order": "purchase",  # Matomo, Piwik PRO
        "track_ecommerce_order": "purchase",  # Matomo
        "track_transaction": "purchase",  # Snowplow, Criteo
        "order_confirmation": "purchase",  # PrestaShop's page
        "action_validate_order": "purchase",  # PrestaShop's hook
        "display_order_confirmation": "purchase",  # PrestaShop's hook
        "place_order": "purchase",  # Adobe Commerce
        "checkout_onepage_success": "purchase",  # Magento's page
        "sales_order_place_after": "purchase",  # Magento's event
        "checkout_onepage_controller_success_action": "purchase",  # Magento's event
        "order_received": "purchase",  # WooCommerce's page
        "woocommerce_thankyou": "purchase",  # WooCommerce's hook
        "woocommerce_payment_complete": "purchase",  # WooCommerce's hook
        "complete_payment": "purchase",  # TikTok
        "place_an_order": "purchase",  # TikTok
        "buy": "purchase",  # Taobao
        "buys": "purchase",  # YooChoose
        "orders": "purchase",  # OTTO
        "purchases": "purchase",  # Diginetica
    }
)

_ZERO_WIDTH: Final = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")
_QUOTES: Final = "'\"`\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb"
_SEPARATORS: Final = re.compile(r"[\s_-]+")
_WORD_ENDS: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class EventField(NamedTuple):
    """An optional field of an event.

    Attributes:
        name: its name in the API, the history, the outcomes, the event table and `Event`.
        kind: `text` (an identifier or a word) or `amount` (a finite number, not negative).
        is_input: whether artifacts have a column for it (`model.columns`). Other fields are kept and passed on.
    """

    name: str
    kind: Literal["text", "amount"]
    is_input: bool = True


# All fields of an event but its name, time and properties. A new one goes to the end, and to the end of `Event`.
FIELDS: Final = (
    EventField("item_id", "text"),
    EventField("item_category", "text"),
    EventField("price", "amount"),
    EventField("quantity", "amount"),
    EventField("value", "amount", is_input=False),
    EventField("currency", "text", is_input=False),
)
FIELD_NAMES: Final = tuple(field.name for field in FIELDS)


class Event(msgspec.Struct, frozen=True):
    """One thing a visitor did: name, time, `FIELDS`, properties.

    A msgspec struct, as one is made for every event, in a fifth of a dataclass' time.

    Attributes:
        event_name: canonical name, see `canonical_event_name`.
        timestamp_ms: milliseconds since the Unix epoch or, in logs without calendar time, since the session's start.
        item_id: the shop's id of the item shown or acted on.
        item_category: the item's category.
        price: price of one unit in the shop's currency, finite and not negative.
        quantity: number of units, finite and not negative; None counts as one.
        properties: further facts of the event or the session; the artifact's manifest lists those that the model uses.
        value: what the event is worth, finite and not negative: of a purchase, the session's revenue.
        currency: of price and value: an ISO 4217 code in upper case.
    """

    event_name: str
    timestamp_ms: int
    item_id: str | None = None
    item_category: str | None = None
    price: float | None = None
    quantity: float | None = None
    properties: Mapping[str, PropertyValue] = {}
    value: float | None = None
    currency: str | None = None

    @property
    def worth(self) -> float | None:
        """Its value: as it was sent, else price times quantity; None: not known."""
        if self.value is not None or self.price is None:
            return self.value
        return self.price * (1.0 if self.quantity is None else self.quantity)


def folded(name: str) -> str:
    """Return the form in which spellings of a known name are equal: lower case, words joined by one underscore."""
    # Form KC makes full-width letters plain ones. Turkish programs write I without, and i with, the other one's dot.
    plain = unicodedata.normalize("NFKC", _ZERO_WIDTH.sub("", name)).replace("\u0130", "I").replace("\u0131", "i")
    words = _WORD_ENDS.sub("_", (canonical_text(plain) or "").strip(_QUOTES))
    return _SEPARATORS.sub("_", words).strip("_").lower()


@lru_cache(maxsize=4096)
def canonical_event_name(name: str) -> str:
    """Return the GA4 name of which `name` is an alias, or `name`'s own canonical text when it is a shop's own.

    Case, spaces, hyphens and underscores do not matter in known names: `Product Viewed`, `detail-page-view`,
    `View_Item` and `ViewItem` are all `view_item`.
    """
    key = folded(name)
    if key in GA4_EVENT_NAMES:
        return key
    return ALIASES.get(key) or canonical_text(name) or ""


class EventNames:
    """Reads event names as a log's preparation did: renamed names first, then aliases.

    Args:
        renames: the log's own names, each with the name that it means; a name renamed to itself is kept, though it may
            be an alias.
        kept: names that are kept although they are aliases: those of a model's vocabulary.
    """

    def __init__(self, renames: Mapping[str, str] = MappingProxyType({}), kept: Collection[str] = ()) -> None:
        self._renames = {canonical_text(theirs): ours for theirs, ours in renames.items()}
        self._kept = frozenset(kept)
        self.canonical = lru_cache(maxsize=4096)(self._canonical)

    def _canonical(self, name: str) -> str:
        own = canonical_text(name) or ""
        ours = self._renames.get(own)
        if ours is not None:
            return own if canonical_text(ours) == own else canonical_event_name(ours)
        return own if own in self._kept else canonical_event_name(own)


def identifier_code(identifier: str) -> int:
    """Return a signed 64-bit code of a string, the same on every machine and release; never 0.

    BLAKE2b (RFC 7693), 8 bytes, little endian. Two strings share a code with a probability of 2**-64 a pair. Names,
    item ids and categories reach the artifact as (a part of) such codes: a fixed-width column costs one tensor a
    batch where strings would cost an object an event, and the artifact needs no list of all items.
    """
    digest = blake2b(identifier.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1
