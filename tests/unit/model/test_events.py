import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.events import (
    ALIASES,
    FIELD_NAMES,
    GA4_EVENT_NAMES,
    PURCHASE,
    Event,
    EventNames,
    canonical_event_name,
    identifier_code,
)
from model.text_rules import canonical_text

GA4 = {
    "page_view": "page_view",
    "add_to_cart": "add_to_cart",
    "view_item_list": "view_item_list",
    "purchase": "purchase",
}
# https://segment.com/docs/connections/spec/ecommerce/v2/, whose names RudderStack took over.
SEGMENT = {
    "Products Searched": "search",
    "Product List Viewed": "view_item_list",
    "Product List Filtered": "view_item_list",
    "Promotion Viewed": "view_promotion",
    "Promotion Clicked": "select_promotion",
    "Product Clicked": "select_item",
    "Product Viewed": "view_item",
    "Product Added": "add_to_cart",
    "Product Removed": "remove_from_cart",
    "Cart Viewed": "view_cart",
    "Checkout Started": "begin_checkout",
    "Payment Info Entered": "add_payment_info",
    "Order Completed": "purchase",
    "Order Refunded": "refund",
    "Product Added to Wishlist": "add_to_wishlist",
    "Product Shared": "share",
    "Cart Shared": "share",
    "Signed Up": "sign_up",
    "Signed In": "login",
    "page": "page_view",
}
# https://cloud.google.com/retail/docs/user-events
GOOGLE_RETAIL = {
    "add-to-cart": "add_to_cart",
    "category-page-view": "view_item_list",
    "detail-page-view": "view_item",
    "home-page-view": "page_view",
    "promotion-offered": "view_promotion",
    "purchase-complete": "purchase",
    "remove-from-cart": "remove_from_cart",
    "search": "search",
    "shopping-cart-page-view": "view_cart",
}


@pytest.mark.parametrize(("sent", "canonical"), [*GA4.items(), *SEGMENT.items(), *GOOGLE_RETAIL.items()])
def test_names_of_known_trackers_become_ga4_names(sent, canonical):
    assert canonical_event_name(sent) == canonical


def test_every_alias_leads_to_a_ga4_name_and_is_none_itself():
    assert set(ALIASES.values()) <= GA4_EVENT_NAMES
    assert not set(ALIASES) & GA4_EVENT_NAMES


@pytest.mark.parametrize("alias", [*ALIASES, *sorted(GA4_EVENT_NAMES)])
@pytest.mark.parametrize("separator", ["_", "-", " ", "  ", " - ", "\t"])
def test_case_separators_and_outer_space_do_not_matter_in_known_names(alias, separator):
    expected = ALIASES.get(alias, alias)
    spelt = alias.replace("_", separator)
    assert {canonical_event_name(name) for name in (spelt, spelt.upper(), spelt.title(), f" {spelt}\n")} == {expected}


@pytest.mark.parametrize(
    "spelling", ["Purchase", " PURCHASE ", "Order Completed", "order-completed", "ORDER_COMPLETED"]
)
def test_no_spelling_of_a_purchase_slips_past_the_leak_guard(spelling):
    assert canonical_event_name(spelling) == PURCHASE


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("Size Guide Opened", "Size Guide Opened"),
        ("  Gift-Wrap ", "Gift-Wrap"),
        ("produktseite", "produktseite"),
        ("商品ページ", "商品ページ"),
        ("productviewed", "productviewed"),
        ("", ""),
    ],
)
def test_a_shops_own_name_is_kept_but_for_outer_space(sent, kept):
    assert canonical_event_name(sent) == kept


@given(st.text(max_size=40))
def test_a_canonical_name_is_its_own_canonical_name(name):
    canonical = canonical_event_name(name)
    assert canonical_event_name(canonical) == canonical
    assert canonical in GA4_EVENT_NAMES or canonical == (canonical_text(name) or "")


# By the documentation of each system.
PURCHASES = {
    "GA4": ["purchase", "in_app_purchase", "ecommerce_purchase"],
    "Universal Analytics": ["transaction", "Purchase"],
    "Segment": ["Order Completed", "Completed Order"],
    "Shopify": ["checkout_completed"],
    "Snowplow": ["transaction"],
    "Matomo": ["ecommerceOrder"],
    "PrestaShop": ["Order Placed", "order-confirmation", "actionValidateOrder"],
    "Magento": ["checkout_onepage_success", "place-order", "sales_order_place_after"],
    "WooCommerce": ["order-received", "woocommerce_thankyou"],
    "Klaviyo": ["Placed Order"],
    "TikTok": ["CompletePayment", "PlaceAnOrder"],
    "Taobao": ["buy"],
    "public logs": ["purchase", "transaction", "buys", "orders", "purchases"],
}


@pytest.mark.parametrize("name", [name for names in PURCHASES.values() for name in names])
def test_documented_names_of_a_purchase_are_one(name):
    assert canonical_event_name(name) == PURCHASE


@pytest.mark.parametrize("name", ["AddToCart", "\ufeffadd to cart", "add\u00a0to\u00a0cart", "add\u200b_to_cart"])
def test_camel_case_and_odd_blanks_do_not_matter_in_known_names(name):
    assert canonical_event_name(name) == "add_to_cart"


def test_a_logs_own_names_are_read_before_the_aliases():
    names = EventNames({"payres": "purchase", " put ": "Product Added", "transaction": "transaction"}, kept=["orders"])
    read = {name: names.canonical(name) for name in ("payres", "put ", "transaction", "orders", "Orders", "buy")}
    assert read == {
        "payres": "purchase",
        "put ": "add_to_cart",
        "transaction": "transaction",
        "orders": "orders",
        "Orders": "purchase",
        "buy": "purchase",
    }


# Stored states and artifacts hold these: another value would make every item of a live shop a stranger.
GOLDEN_CODES = {
    "": "e4a6a0577479b2b4",
    "SKU-1": "9a7cf2e7f647b9d4",
    "page_view": "ca81f37aed27cb81",
    "größe 42": "7668dfedf2949e60",
    "\ud800": "4208783e927d0d68",
}


@pytest.mark.parametrize(("identifier", "code"), GOLDEN_CODES.items())
def test_codes_are_the_golden_ones(identifier, code):
    assert identifier_code(identifier).to_bytes(8, "little", signed=True).hex() == code


@given(st.text(max_size=50), st.text(max_size=50))
def test_codes_are_64_bits_never_zero_and_differ_where_strings_differ(one, other):
    assert identifier_code(one) != 0
    assert -(2**63) <= identifier_code(one) < 2**63
    assert (identifier_code(one) == identifier_code(other)) == (one == other)


def test_a_digest_of_zeros_is_not_taken_for_no_value(monkeypatch):
    class Zeros:
        def digest(self):
            return bytes(8)

    monkeypatch.setattr("model.events.blake2b", lambda *_, **__: Zeros())
    assert identifier_code("unlucky") == 1


def test_codes_do_not_depend_on_the_process():
    program = "from model.events import identifier_code; print(identifier_code('SKU-1'))"
    printed = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True
    )
    assert int(printed.stdout) == identifier_code("SKU-1")


def test_an_event_cannot_be_changed():
    event = Event("view_item", 1)
    with pytest.raises(AttributeError, match="immutable"):
        event.timestamp_ms = 2  # type: ignore[misc]  # that it is frozen is what is tested


def test_an_event_has_exactly_the_fields_of_the_table():
    assert [name for name in Event.__struct_fields__ if name in FIELD_NAMES] == list(FIELD_NAMES)
    assert set(Event.__struct_fields__) == {"event_name", "timestamp_ms", "properties", *FIELD_NAMES}
