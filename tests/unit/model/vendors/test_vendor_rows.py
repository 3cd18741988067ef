"""Which of a vendor's fields count where several say the same, for logs and requests alike."""

import pytest

from model.vendors.ga4 import GA4
from model.vendors.segment import SEGMENT
from model.vendors.snowplow import SNOWPLOW
from model.vendors.table import read_row


def read(vendor, document):
    """The event of a request of one."""
    (unit,) = vendor.units(document)
    return read_row(vendor.table, vendor.row(unit), placeholders_count=False)


def track(**properties):
    return {
        "type": "track",
        "messageId": "m-1",
        "anonymousId": "v-1",
        "event": "Product Viewed",
        "timestamp": "2026-11-22T10:16:40Z",
        "properties": properties,
    }


@pytest.mark.parametrize(
    ("properties", "items", "item_id"),
    [
        ({}, 0, None),
        ({"product_id": "A"}, 1, "A"),
        ({"sku": "A"}, 1, "A"),
        ({"products": []}, 0, None),
        ({"products": [{"product_id": "A"}, {"product_id": "B"}]}, 2, "A"),
        ({"products": '[{"product_id": "A"}, {"product_id": "B"}]'}, 2, "A"),
        ({"products": "none", "product_id": "A"}, 1, "A"),
        ({"products": None, "product_id": "A"}, 1, "A"),
    ],
)
def test_items_are_the_products_or_the_one_of_the_event(properties, items, item_id):
    found = read(SEGMENT, track(**properties))
    assert (float(found.properties["items"]), found.fields.get("item_id")) == (items, item_id)


def test_a_call_goes_before_what_its_batch_says():
    batch = {"batch": [track() | {"context": {"locale": "de"}}], "context": {"locale": "en"}}
    assert read(SEGMENT, batch).properties["locale"] == "de"
    batch = {"batch": [track()], "context": {"locale": "en"}}
    assert read(SEGMENT, batch).properties["locale"] == "en"


SNOW = {"event": "page_view", "event_name": "page_view", "event_id": "e", "domain_userid": "v", "domain_sessionid": "s"}


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"derived_tstamp": "2026-11-22T10:16:40Z", "collector_tstamp": "2026-11-22T10:17:40Z"}, 1_795_342_600_000),
        ({"collector_tstamp": "2026-11-22T10:17:40Z"}, 1_795_342_660_000),
    ],
)
def test_an_event_has_the_time_of_the_visitor_corrected_and_else_that_of_its_arrival(times, expected):
    assert read(SNOWPLOW, SNOW | times).timestamp_ms == expected


@pytest.mark.parametrize(("client", "visitor"), [("client_id", "c"), ("app_instance_id", "a")])
def test_the_user_of_the_web_and_of_an_app(client, visitor):
    request = {client: visitor, "events": [{"name": "page_view", "params": {"session_id": "7"}}]}
    found = read(GA4, request | {"timestamp_micros": 1_795_342_600_000_000})
    assert found.timestamp_ms == 1_795_342_600_000
    assert visitor in (found.session_id or "")
    # An event's own time goes first
    request["events"][0]["timestamp_micros"] = 1_795_342_601_000_000
    assert read(GA4, request | {"timestamp_micros": 1_795_342_600_000_000}).timestamp_ms == 1_795_342_601_000
