import pytest

from model.events import ALIASES, PURCHASE, canonical_event_name
from model.purchase_names import looks_like_purchase


@pytest.mark.parametrize(
    "name",
    [
        "order paid",
        "OrderSuccess",
        "payment_success",
        "Thank You",
        "checkout-success",
        "Bestellung abgeschlossen",
        "compra",
        "Покупка",
        "购买",
        "item_bought",
        "Product Purchased",
    ],
)
def test_unknown_names_that_read_like_a_purchase(name):
    assert looks_like_purchase(name)
    assert canonical_event_name(name) != PURCHASE


@pytest.mark.parametrize(
    "name",
    [
        "view_item",
        "page",
        "Order Cancelled",
        "order history",
        "payment_failed",
        "Checkout Started",
        "Buy Button Clicked",
        "Size Guide Opened",
        "payment",
        "add_to_cart",
        "",
        *(alias for alias, canonical in ALIASES.items() if canonical == PURCHASE),
    ],
)
def test_other_names_and_known_ones_do_not(name):
    assert not looks_like_purchase(name)
