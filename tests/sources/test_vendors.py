"""A vendor's record gives the same event whether a log or a request has it."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from model.events import FIELD_NAMES, EventNames
from model.vendors.ga4 import GA4
from model.vendors.segment import RUDDERSTACK, SEGMENT, corrected_time
from model.vendors.snowplow import SNOWPLOW
from model.vendors.table import UnreadableError, Vendor, iso_ms, read_row
from training.data.sources import open_source, values
from training.data.sources.conversion import EVENT_ID, PROPERTY_PREFIX

LOGS = Path(__file__).parent / "logs"
Read = tuple[Any, ...]


def read_as_log(path: Path, format: str) -> list[Read]:  # noqa: A002 - as the option
    """Return key, time, name, fields, properties and id of every event of a log, as `willbuy prepare` reads them."""
    source = open_source(path, format)
    frames = [batch.events for batch in source.batches()]
    names = [declared.name for declared in source.properties]
    events = []
    for row in pl.concat(frames).iter_rows(named=True):
        fields = {name: row[name] for name in FIELD_NAMES if row[name] is not None}
        found = {name: row[PROPERTY_PREFIX + name] for name in names}
        properties = {name: value for name, value in found.items() if value is not None}
        key = (row["session_id"], row["timestamp_ms"], row["event_name"])
        events.append((*key, fields, properties, row.get(EVENT_ID)))
    return events


def read_as_requests(vendor: Vendor, documents: list[Any]) -> list[Read]:
    """Return the same of the events that the service reads."""
    names = EventNames(vendor.table.events)
    events = []
    for document in documents:
        for unit in vendor.units(document):
            try:
                row = vendor.row(unit)
                event = None if row is None else read_row(vendor.table, row)
            except UnreadableError:
                continue
            # A request's event without a session belongs to its visitor, and one without a time happens now.
            is_of_log = event is not None and (event.session_id or not vendor.table.session_id)
            if event is not None and is_of_log and event.timestamp_ms is not None:
                name = names.canonical(event.own_name)
                event_id = None if event.event_id is None or event.event_id.startswith("row-") else event.event_id
                key = (event.session_id or event.visitor_id, event.timestamp_ms, name)
                events.append((*key, event.fields, event.properties, event_id))
    return events


def by_key(events: list[Read]) -> list[str]:
    return sorted(json.dumps(event, sort_keys=True) for event in events)


MP_REQUESTS = [
    {
        "client_id": "1034.55",
        "timestamp_micros": 1778400000123456,
        "events": [
            {"name": "view_item_list", "params": {"session_id": "1778400000", "engagement_time_msec": 100}},
            {
                "name": "view_item",
                "params": {
                    "session_id": 1778400000,
                    "currency": "EUR",
                    "value": 59.9,
                    "items": [{"item_id": "SKU-1", "item_name": "Boot", "item_category": "shoes", "price": 59.9}],
                },
            },
        ],
    },
    {
        "client_id": "1034.55",
        "events": [
            {
                "name": "purchase",
                "timestamp_micros": "1778400060000000",
                "params": {
                    "session_id": "1778400000",
                    "transaction_id": "T-1",
                    "items": [{"item_id": "SKU-1", "price": "59.90", "quantity": 2}, {"item_id": "SKU-2"}],
                },
            }
        ],
        "device": {"category": "mobile"},
    },
]


@pytest.mark.parametrize(
    ("vendor", "log"),
    [
        (SEGMENT, "segment_calls.jsonl"),
        (RUDDERSTACK, "segment_calls.jsonl"),
        (SNOWPLOW, "snowplow.jsonl"),
        (GA4, "ga4.jsonl"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_log_and_requests_of_its_records_have_the_same_events(vendor: Vendor, log: str) -> None:
    documents = [json.loads(line) for line in (LOGS / log).read_text().splitlines()]
    as_log = read_as_log(LOGS / log, "segment" if vendor is RUDDERSTACK else vendor.name)
    assert by_key(read_as_requests(vendor, documents)) == by_key(as_log)
    assert len(as_log) > 3


def test_requests_of_the_measurement_protocol_are_a_log_too(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(map(json.dumps, MP_REQUESTS)))
    as_log = read_as_log(path, "auto")
    assert by_key(read_as_requests(GA4, MP_REQUESTS)) == by_key(as_log)
    assert [row[:3] for row in as_log] == [
        ("1034.55:1778400000", 1778400000123, "view_item_list"),
        ("1034.55:1778400000", 1778400000123, "view_item"),
        ("1034.55:1778400000", 1778400060000, "purchase"),
    ]
    assert as_log[2][3:5] == ({"item_id": "SKU-1", "price": 59.9, "quantity": 2.0}, {"device": "mobile", "items": 2.0})


# What senders write where a value belongs.
ODD = st.sampled_from(
    [
        *(None, "", " ", "0", 0, -1, 1, 1.5, 1e300, 12.0, "12.0", "007", True, False, "true", "n/a", "(not set)"),
        *(
            "undefined",
            "SKU-1",
            " SKU-1 ",
            "1.43322E+12",
            "1e5",
            "5,5",
            "1_000",
            "inf",
            "nan",
            "+3",
            ".5",
            "4.",
            "\u00e9",
        ),
        *("e\u0301", "x\u200b", [], {}, ["a"], {"a": 1}, "Product Viewed", "transaction", "page_view", 10**25),
    ]
)
TIMES = st.sampled_from(
    [
        *("2026-05-10T08:00:00.000Z", "2026-05-10T08:00:00Z", "2026-05-10 08:00:00.5", "2026-05-10T10:00:00+02:00"),
        *("2026-05-10", "2026-05-10T08:00", "2026-05-10T08:00:00.123456789Z", "2026-05-10T08:00:00.9999 UTC", None),
        *("yesterday", "", 7, "1969-12-31T23:59:59Z", "2026-13-01T00:00:00Z", "2026-05-10T08:00:00.123+0530"),
    ]
)
MICROS = st.sampled_from([1778400000123456, "1778400000000000", 1.7784e15, None, "soon", -5, 0, ""])
NAMES = st.sampled_from(["Product Viewed", "page_view", "Order Completed", "transaction", "product_view", " ", None, 7])


def thinned(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


PRODUCTS = thinned(product_id=ODD, sku=ODD, category=ODD, price=ODD, quantity=ODD)
CALLS = thinned(
    type=st.sampled_from(["track", "page", "screen", "identify", "purchase", 7]),
    messageId=ODD,
    anonymousId=ODD,
    userId=ODD,
    event=NAMES,
    timestamp=TIMES,
    originalTimestamp=TIMES,
    sentAt=TIMES,
    receivedAt=TIMES,
    properties=st.one_of(
        ODD,
        thinned(
            product_id=ODD,
            sku=ODD,
            category=ODD,
            price=ODD,
            quantity=ODD,
            products=st.one_of(ODD, st.lists(st.one_of(PRODUCTS, ODD), max_size=2)),
        ),
    ),
    context=st.one_of(ODD, thinned(locale=ODD, device=st.one_of(ODD, thinned(type=ODD)))),
)
PRODUCT = "contexts_com_snowplowanalytics_snowplow_ecommerce_product_1"
ACTION = "unstruct_event_com_snowplowanalytics_snowplow_ecommerce_snowplow_ecommerce_action_1"
CART = "unstruct_event_com_snowplowanalytics_snowplow_add_to_cart_1"
ENTITIES = thinned(id=ODD, category=ODD, price=ODD, quantity=ODD)
ENRICHED = thinned(
    event=st.sampled_from(["struct", "unstruct", "page_view", None, " "]),
    event_name=st.one_of(NAMES, st.just("snowplow_ecommerce_action")),
    event_id=ODD,
    domain_sessionid=ODD,
    domain_userid=ODD,
    domain_sessionidx=ODD,
    derived_tstamp=TIMES,
    collector_tstamp=TIMES,
    se_action=NAMES,
    ti_sku=ODD,
    ti_price=ODD,
    dvce_type=ODD,
    **{
        PRODUCT: st.one_of(ODD, st.lists(ENTITIES, max_size=2)),
        ACTION: st.one_of(ODD, thinned(type=NAMES)),
        CART: thinned(sku=ODD, unitPrice=ODD, quantity=ODD),
    },
)
REQUESTS = st.fixed_dictionaries(
    {
        "client_id": ODD,
        "events": st.lists(
            st.one_of(
                ODD,
                thinned(
                    name=NAMES,
                    timestamp_micros=MICROS,
                    params=st.one_of(
                        ODD,
                        thinned(
                            session_id=ODD,
                            items=st.one_of(
                                ODD, st.lists(thinned(item_id=ODD, price=ODD, item_category=ODD), max_size=2)
                            ),
                        ),
                    ),
                ),
            ),
            max_size=3,
        ),
    },
    optional={"timestamp_micros": MICROS, "device": st.one_of(ODD, thinned(category=ODD))},
)


@pytest.mark.parametrize(
    ("vendor", "records"), [(SEGMENT, CALLS), (SNOWPLOW, ENRICHED), (GA4, REQUESTS)], ids=["segment", "snowplow", "ga4"]
)
# Without shrinking, which would take minutes: a failure shows its records.
@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate])
@given(data=st.data())
def test_any_record_is_read_alike(
    tmp_path_factory: pytest.TempPathFactory, vendor: Vendor, records: st.SearchStrategy[Any], data: st.DataObject
) -> None:
    # Given records with odd values in every place, and one with which the format is plain
    plain = {
        "segment": {"type": "page", "anonymousId": "a", "sentAt": "2026-05-10T08:00:00Z"},
        "snowplow": {"collector_tstamp": "2026-05-10T08:00:00Z", "domain_sessionid": "s", "event_name": "page_view"},
        "ga4": MP_REQUESTS[0],
    }[vendor.name]
    documents = [plain, *data.draw(st.lists(records, min_size=8, max_size=20))]
    path = tmp_path_factory.mktemp("log") / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, documents)))
    # When they are read as a log and as requests, then what the log takes is the same event of a request
    as_log = read_as_log(path, vendor.name)
    assert by_key(read_as_requests(vendor, documents)) == by_key(as_log)


@given(text=st.one_of(TIMES.filter(lambda value: isinstance(value, str)), st.datetimes().map(str)))
def test_a_time_is_read_as_a_log_has_it(text: str) -> None:
    read, problems = values.time_ms(pl.Series([text], dtype=pl.String), "iso")
    log_ms = None if any(mask.any() for mask, _ in problems) else read[0]
    request_ms = iso_ms(text)
    assert (request_ms if request_ms is not None and request_ms >= 0 else None) == log_ms


def test_the_vendors_clock_corrects_the_devices() -> None:
    # Given a device that is an hour ahead, and a batch that was sent five seconds after the event
    original, sent, received = "2026-05-10T09:00:00.250Z", "2026-05-10T09:00:05.250Z", "2026-05-10T08:00:07.000Z"
    # Then the event happened five seconds before the batch arrived
    assert corrected_time(original, sent, received) == "2026-05-10T08:00:02.000Z"
    assert corrected_time(original, sent, None) is None
