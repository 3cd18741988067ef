import io
import json

import pytest
from support.fakes import FakeModel

from app.api.bodies import check_headers
from app.errors import (
    InvalidEventError,
    InvalidJsonError,
    InvalidRequestError,
    UnsupportedEncodingError,
    UnsupportedMediaTypeError,
)
from app.monitoring.logging import build_logger
from app.monitoring.metrics import Metrics
from app.schemas.events import EVENT_EXAMPLE, EventBody, EventIn, OutcomeIn
from app.scoring import events
from app.scoring.events import EventValidator
from app.scoring.parsing import event_body, parse_event, read_event
from app.settings import Settings
from model.events import FIELD_NAMES, FIELDS

NOW_MS = 1_795_392_000_000


def body(**changes):
    return json.dumps({"session_id": "s", "event_name": "page_view"} | changes).encode()


def faults(data):
    with pytest.raises(InvalidEventError) as caught:
        parse_event(data)
    return {error["field"]: error["message"] for error in caught.value.errors}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"{", "line 1"),
        (b'{"session_id": "\xff"}', "not UTF-8"),
        ('{"session_id": "s"}'.encode("utf-16"), "not UTF-8"),
        (b"[" * 60_000, "too deeply"),
        (b'{"a":' * 10_000, "too deeply"),
        (b'{"session_id": "a", "session_id": "b"}', "'session_id' appears twice"),
        (b'{"properties": {"k": 1, "k": 2}}', "'k' appears twice"),
        (b'{"price": ' + b"9" * 5000 + b"}", "too many digits"),
        (body() + b" x", "Extra data at line 1, column 48"),
    ],
)
def test_what_is_not_json_is_refused_with_the_reason(data, says):
    with pytest.raises(InvalidJsonError, match=says):
        parse_event(data)


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b'"text"', b"NaN"])
def test_json_that_is_no_object_is_no_event(data):
    assert faults(data) == {"body": "expected one event as a JSON object"}


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"session_id": ""}, "session_id", "at least 1"),
        ({"session_id": "x" * 5000}, "session_id", "at most 256"),
        ({"session_id": "a\nb"}, "session_id", "control"),
        ({"session_id": "a\x85b"}, "session_id", "control"),
        ({"session_id": "\ud800"}, "session_id", "surrogates"),
        ({"session_id": 7}, "session_id", "string"),
        ({"session_id": None}, "session_id", "string"),
        ({"event_name": "  "}, "event_name", "white space"),
        ({"event_name": "x" * 129}, "event_name", "at most 128"),
        ({"event_id": "a\x00"}, "event_id", "control"),
        ({"timestamp": "2026-11-22T10:15:00"}, "timestamp", "RFC 3339"),
        ({"timestamp": "2026-11-22"}, "timestamp", "RFC 3339"),
        ({"timestamp": "2026-02-30T10:15:00Z"}, "timestamp", "RFC 3339"),
        ({"timestamp": "2026-11-22T10:15:00+01:00:30"}, "timestamp", "RFC 3339"),
        ({"timestamp": "2026-13-01T10:15:00Z"}, "timestamp", "RFC 3339"),
        ({"timestamp": 1.5}, "timestamp", "whole number"),
        ({"timestamp": True}, "timestamp", "whole number"),
        ({"timestamp": 10**30}, "timestamp", "whole number"),
        ({"item_id": "x" * 257}, "item_id", "at most 256"),
        ({"price": -0.01}, "price", "greater than or equal to 0"),
        ({"price": float("nan")}, "price", "finite"),
        ({"price": float("inf")}, "price", "finite"),
        ({"price": 1e13}, "price", "less than or equal to"),
        ({"price": "12"}, "price", "number"),
        ({"quantity": True}, "quantity", "number"),
        ({"properties": []}, "properties", "dictionary"),
        ({"properties": {"a": []}}, "properties.a", "finite number"),
        ({"properties": {"a": float("nan")}}, "properties.a", "finite number"),
        ({"properties": {"a": 10**400}}, "properties.a", "finite number"),
        ({"properties": {"a": {"b": 1}}}, "properties.a", "finite number"),
        ({"properties": {"a": "x" * 257}}, "properties.a", "256"),
        ({"properties": {"a": "b\x07"}}, "properties.a", "control"),
        ({"properties": {"": 1}}, "properties.", "at least 1"),
        ({"properties": {"a\x07": 1}}, "properties.a\x07", "control"),
        ({"properties": {str(i): 1 for i in range(33)}}, "properties", "at most 32"),
        ({"device": "mobile"}, "device", "belong into `properties`"),
        ({"properties": {"k" * 500: 1}}, "properties." + "k" * 53 + "…", "at most 64"),
    ],
)
def test_each_bad_field_is_named_with_what_was_expected(changes, field, says):
    found = faults(body(**changes))
    assert list(found) == [field]
    assert says in found[field]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (None, {}),
        ("", {}),
        ({"a": None, "c": "x"}, {"c": "x"}),
        ({"b": "", "c": "x"}, {"c": "x"}),
        ({"a": "x" * 256, "b": 1, "c": False, "": None}, {"a": "x" * 256, "b": 1.0, "c": False}),
        ({str(number): 1 for number in range(32)} | {"absent": None}, {str(number): 1.0 for number in range(32)}),
    ],
)
def test_properties_without_a_value_are_absent_and_others_are_read_up_to_their_limits(given, read):
    properties = parse_event(body(properties=given)).properties or {}
    assert properties == read
    assert [type(value) for value in properties.values()] == [type(value) for value in read.values()]


def test_all_bad_fields_are_named_together():
    assert set(faults(b'{"event_name": 1, "price": -1}')) == {"session_id", "event_name", "price"}


def test_a_flood_of_faults_is_cut_short():
    found = faults(body(**{f"unknown_{i}": 1 for i in range(1000)}))
    assert len(found) == 20
    # Fields that are right are not among them.
    assert all(name.startswith("unknown_") for name in found)


def test_the_documented_example_is_an_event():
    event = parse_event(json.dumps(EVENT_EXAMPLE).encode())
    # Without a time, which would be too old some day
    assert event.properties == {"device": "mobile"}


@pytest.mark.parametrize(
    "timestamp",
    [
        "2026-11-22T10:15:00.250Z",
        "2026-11-22t10:15:00.25z",
        "2026-11-22T11:15:00.250000+01:00",
        "2026-11-22T10:15:00.250999999Z",
        1_795_342_500_250,
    ],
)
def test_forms_of_one_moment(timestamp):
    assert parse_event(body(timestamp=timestamp)).timestamp == 1_795_342_500_250


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=utf-8", "application/ld+json"])
def test_json_media_types_are_taken(content_type):
    check_headers(content_type, None)
    check_headers(content_type, "identity")


@pytest.mark.parametrize("content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "json"])
def test_other_media_types_are_refused(content_type):
    with pytest.raises(UnsupportedMediaTypeError):
        check_headers(content_type, None)


@pytest.mark.parametrize("coding", ["br", "deflate", "zstd", "gzip, gzip", "gzip;q=1"])
def test_other_compression_than_gzip_is_refused(coding):
    with pytest.raises(UnsupportedEncodingError):
        check_headers("application/json", coding)


class Known(FakeModel):
    """A model that knows all names, or none."""

    def __init__(self, known):
        super().__init__()
        self.known = known

    def knows(self, event_name):
        return self.known


def submitted(event, *, knows=True, metrics=None, **settings):
    return EventValidator(
        Settings(artifact="model.pt", max_event_age_s=100, **settings), metrics or Metrics()
    ).submission(event_body(EventIn(**event)), now_ms=NOW_MS, model=Known(knows), give_up_at=7.5)


def an_event(**changes):
    return {"session_id": "s", "event_name": "Product Viewed"} | changes


def test_a_plain_event_gets_the_clock_and_its_canonical_name():
    submission = submitted(an_event())
    assert submission.event.event_name == "view_item"
    assert submission.event.timestamp_ms == NOW_MS
    assert submission.warnings == ()
    assert not submission.has_event_id
    assert (submission.received_ms, submission.give_up_at) == (NOW_MS, 7.5)


def test_events_without_id_never_share_a_code_and_those_with_one_do():
    assert submitted(an_event()).code != submitted(an_event()).code
    assert submitted(an_event(event_id="e")).code == submitted(an_event(event_id="e")).code


@pytest.mark.parametrize(
    "change",
    [
        {"value": 2.0},
        {"currency": "USD"},
        {"price": 1.0},
        {"quantity": 3.0},
        {"item_category": "c"},
        {"properties": {}},
    ],
)
def test_an_id_with_another_body_is_another_code_and_the_order_of_properties_is_none(change):
    event = an_event(event_id="e", value=1.0, currency="EUR", properties={"a": 1, "b": "x"})
    assert submitted(event).code == submitted(event | {"properties": {"b": "x", "a": 1}, "timestamp": NOW_MS - 1}).code
    assert submitted(event).code != submitted(event | change).code


@pytest.mark.parametrize(("price", "code"), [(1.0, -7447493975211649008), (4.0, 3738321599269820432)])
def test_an_event_has_the_code_that_earlier_releases_stored(price, code):
    assert submitted(an_event(event_id="e", price=price)).code == code


@pytest.mark.parametrize("offset_ms", [-100_000, 0])
def test_times_within_the_bound_are_kept(offset_ms):
    submission = submitted(an_event(timestamp=NOW_MS + offset_ms))
    assert submission.event.timestamp_ms == NOW_MS + offset_ms
    assert submission.warnings == ()


@pytest.mark.parametrize("ahead_ms", [1, 300_000])
def test_times_a_little_ahead_are_taken_as_now_and_counted(ahead_ms):
    metrics = Metrics()
    submission = submitted(an_event(timestamp=NOW_MS + ahead_ms), metrics=metrics)
    assert submission.event.timestamp_ms == NOW_MS
    ahead_s = f"{ahead_ms / 1000:g}"
    assert submission.warnings == (f"timestamp: {ahead_s} s ahead of the server's clock; taken as now",)
    assert metrics.registry.get_sample_value("willbuy_future_events_total") == 1


@pytest.mark.parametrize(("offset_ms", "says"), [(-100_001, "100 s in the past"), (300_001, "300 s ahead")])
def test_times_out_of_bounds_are_refused_with_the_bound(offset_ms, says):
    with pytest.raises(InvalidEventError, match=says) as caught:
        submitted(an_event(timestamp=NOW_MS + offset_ms))
    assert caught.value.errors[0]["field"] == "timestamp"


@pytest.mark.parametrize(
    ("timestamp", "says"),
    [
        (0, "100 s in the past"),
        (NOW_MS // 1000, "look like seconds"),
        (NOW_MS * 1000, "look like microseconds"),
        (2**53, "300 s ahead"),
    ],
)
def test_times_of_another_unit_are_refused_with_its_name_for_events_and_outcomes(timestamp, says):
    with pytest.raises(InvalidEventError, match=says):
        submitted(an_event(timestamp=timestamp))
    validator = EventValidator(Settings(artifact="model.pt", max_event_age_s=100), Metrics())
    with pytest.raises(InvalidRequestError, match=says):
        validator.outcome_ms(OutcomeIn(outcome="none", timestamp=timestamp), now_ms=NOW_MS)


@pytest.mark.parametrize(("timestamp", "read"), [(None, 0), (NOW_MS - 5, -5), (NOW_MS + 5, 0)])
def test_an_outcome_is_of_now_at_the_latest(timestamp, read):
    validator = EventValidator(Settings(artifact="model.pt"), Metrics())
    assert validator.outcome_ms(OutcomeIn(outcome="none", timestamp=timestamp), now_ms=NOW_MS) == NOW_MS + read


def test_ids_that_stand_for_nothing_are_refused_or_absent_unless_they_are_allowed():
    for field in ("session_id", "event_id"):
        with pytest.raises(InvalidEventError, match=f"{field}: 'undefined' stands for no id"):
            submitted(an_event(**{field: "undefined"}))
        submitted(an_event(**{field: "undefined"}), allow_placeholder_ids=True)
    assert submitted(an_event(visitor_id="(not set)")).visitor_id is None
    assert submitted(an_event(visitor_id="(not set)"), allow_placeholder_ids=True).visitor_id == "(not set)"
    assert submitted(an_event(visitor_id="v")).visitor_id == "v"
    # A placeholder is never an item.
    for allowed in (False, True):
        queued = submitted(an_event(item_id="null"), allow_placeholder_ids=allowed)
        assert queued.event.item_id is None
        assert queued.warnings == ("item_id: 'null' stands for no item; it counts as absent",)


def test_a_session_of_a_path_may_stand_for_nothing_only_where_that_is_allowed():
    strict, lenient = (
        EventValidator(Settings(artifact="model.pt", allow_placeholder_ids=allowed), Metrics())
        for allowed in (False, True)
    )
    with pytest.raises(InvalidRequestError, match="session_id: 'null' stands for no id"):
        strict.check_session_id("null")
    strict.check_session_id("s")
    lenient.check_session_id("null")


def test_amounts_of_zero_are_amounts():
    event = submitted(an_event(price=0, quantity=0, value=0)).event
    assert (event.price, event.quantity, event.value) == (0.0, 0.0, 0.0)


def test_an_unknown_name_that_reads_like_a_purchase_is_told_and_counted():
    metrics = Metrics()
    for name in ("Order Paid", "size_guide"):
        fields = [
            warning.partition(":")[0]
            for warning in submitted(an_event(event_name=name), knows=False, metrics=metrics).warnings
        ]
        assert fields == ["event_name"] * (1 + (name == "Order Paid"))
    assert metrics.registry.get_sample_value("willbuy_purchase_like_names_total") == 1


def test_an_unknown_name_is_taken_counted_and_told():
    metrics = Metrics()
    assert submitted(an_event(), knows=False, metrics=metrics).warnings[0].startswith("event_name: ")
    assert metrics.registry.get_sample_value("willbuy_unseen_names_total") == 1


def test_a_value_that_the_model_does_not_know_is_told():
    warnings = submitted(an_event(properties={"device": "unheard_of", "plan": "basic"})).warnings
    assert [warning.partition(":")[0] for warning in warnings] == ["properties.device"]


def test_a_purchase_is_never_an_unknown_name():
    submission = submitted(an_event(event_name="Order Completed"), knows=False)
    assert submission.is_purchase
    assert submission.warnings == ()


def test_both_parsers_know_exactly_the_fields_of_the_table():
    names = {"session_id", "event_name", "event_id", "timestamp", "visitor_id", "properties", *FIELD_NAMES}
    assert set(EventIn.model_fields) == names
    assert EventBody.__struct_fields__ == tuple(EventIn.model_fields)


def test_every_field_of_the_table_reaches_the_event():
    given = {field.name: "x" if field.kind == "text" else 2.5 for field in FIELDS} | {"currency": "EUR"}
    event = submitted(an_event(**given)).event
    assert {name: getattr(event, name) for name in FIELD_NAMES} == given


def test_every_field_of_the_table_is_read_by_the_fast_parser_and_texts_are_checked():
    given = {field.name: "x" if field.kind == "text" else 2.5 for field in FIELDS}
    assert read_event(body(**given)) is not None
    for field in FIELDS:
        assert read_event(body(**given | {field.name: None})) is not None
        if field.kind == "text":
            assert read_event(body(**given | {field.name: "a\x07b"})) is None
            assert list(faults(body(**given | {field.name: "a\x07b"}))) == [field.name]


@pytest.mark.parametrize(
    ("sent", "read"), [("EUR", "EUR"), (" eur ", "EUR"), ("euro", None), ("EUE", None), ("", None), (None, None)]
)
def test_a_currency_is_an_iso_code_or_absent_with_a_warning(sent, read):
    queued = submitted(an_event(event_name="purchase", value=3, currency=sent))
    assert (queued.event.currency, queued.event.value) == (read, 3.0)
    assert [warning.partition(":")[0] for warning in queued.warnings] == ["currency"] * bool(sent and not read)


def test_what_looks_wrong_is_accepted_warned_of_counted_and_logged_once_a_minute():
    metrics, log = Metrics(), io.StringIO()
    logger = build_logger(log_level="info", stream=log)
    validator = EventValidator(Settings(artifact="model.pt"), metrics, logger)
    wrong = parse_event(body(properties={"device": "unheard_of", "undeclared": 1, "known": 2}, price=5990))
    fields = ["properties.device", "properties.undeclared", "price"]
    for at_ms in (NOW_MS, NOW_MS + 59_999, NOW_MS + 60_000):
        queued = validator.submission(wrong, now_ms=at_ms, model=FakeModel())
        assert [warning.partition(":")[0] for warning in queued.warnings] == fields
        assert queued.event.price == 5990
    told = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["field"] for line in told] == fields * 2
    assert {line["event"] for line in told} == {"suspicious_field"}
    for kind in ("unknown_value", "unknown_property", "price_scale"):
        assert metrics.registry.get_sample_value("willbuy_suspicious_fields_total", {"kind": kind}) == 3


def test_the_names_that_were_logged_are_forgotten_beyond_a_bound(monkeypatch):
    monkeypatch.setattr(events, "_MOST_LOGGED", 2)  # private: a bound of two names
    log = io.StringIO()
    validator = EventValidator(Settings(artifact="model.pt"), Metrics(), build_logger(log_level="info", stream=log))
    for name in ("Order Paid", "Danke", "Order Confirmed", "Danke", "Order Paid"):
        validator.submission(parse_event(body(event_name=name)), now_ms=NOW_MS, model=Known(known=False))
    assert [json.loads(line)["event_name"] for line in log.getvalue().splitlines()] == [
        "Order Paid",
        "Danke",
        "Order Confirmed",
        "Order Paid",
    ]


@pytest.mark.parametrize(
    ("price", "is_usual"), [(59.9, True), (0, True), (0.4, False), (0.5, True), (1000, True), (1001, False)]
)
def test_prices_of_another_scale_are_told(price, is_usual):
    queued = EventValidator(Settings(artifact="model.pt"), Metrics()).submission(
        parse_event(body(price=price)), now_ms=NOW_MS, model=FakeModel()
    )
    assert (queued.warnings == ()) is is_usual
