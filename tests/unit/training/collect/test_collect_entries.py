"""From the JSON of ended sessions to canonical events, and back out of the files."""

import json

import polars as pl
import pytest

from training.collect.entries import EntryId, ended_session, events_of
from training.collect.errors import CollectError
from training.data.prepare import prepare
from training.data.sources.canonical import DISTINCT, EQUAL_ROWS_KEY, write_events

ENTRY = EntryId(0xA7, "1-0")


def session(*events, outcome="none", outcome_ms=None, session_id="s"):
    said = {
        "format": 1,
        "session_id": session_id,
        "outcome": outcome,
        "closed_by": "idle",
        "outcome_ms": outcome_ms,
        "closed_ms": 99,
        "last_seen_ms": 98,
        "events": list(events),
    }
    return json.dumps(said).encode()


def event(timestamp_ms, name="page_view", **facts):
    return {"event_name": name, "timestamp_ms": timestamp_ms} | facts


def read(*texts):
    return events_of([found for text in texts if (found := ended_session(ENTRY, text)) is not None])


def test_a_session_of_unknown_outcome_is_no_example():
    assert ended_session(ENTRY, session(event(1), outcome="unknown")) is None


def test_a_session_without_a_purchase_is_its_events():
    rows = read(session(event(1), event(5, "view_item", item_id="SKU", price=1.5, quantity=2.0, probability=0.5)))
    assert rows.rows(named=True) == [
        {
            "session_id": "s@1",
            "timestamp_ms": timestamp_ms,
            "event_name": name,
            "item_id": item_id,
            "item_category": None,
            "price": price,
            "quantity": quantity,
            "value": None,
            "currency": None,
            "outcome": False,
        }
        for timestamp_ms, name, item_id, price, quantity in [
            (1, "page_view", None, None, None),
            (5, "view_item", "SKU", 1.5, 2.0),
        ]
    ]


def test_a_late_event_has_the_time_that_it_was_scored_with():
    rows = read(session(event(5), event(3), event(7), event(6)))
    assert rows["timestamp_ms"].to_list() == [5, 5, 7, 7]
    assert rows["session_id"].unique().to_list() == ["s@5"]


def test_value_and_currency_of_events_and_purchase_are_kept():
    events = [event(1, value=3.0, currency="EUR"), event(5)]
    said = json.loads(session(*events, outcome="purchase", outcome_ms=9)) | {"value": 59.9, "currency": "CHF"}
    rows = read(json.dumps(said))
    assert rows.select("event_name", "price", "value", "currency").rows() == [
        ("page_view", None, 3.0, "EUR"),
        ("page_view", None, None, None),
        ("purchase", None, 59.9, "CHF"),
    ]


@pytest.mark.parametrize(("outcome_ms", "expected_ms"), [(20, 20), (7, 8), (3, 8)])
def test_a_purchase_stands_after_everything_before_it(outcome_ms, expected_ms):
    rows = read(session(event(5), event(7), outcome="purchase", outcome_ms=outcome_ms))
    assert rows["event_name"].to_list() == ["page_view", "page_view", "purchase"]
    assert rows["timestamp_ms"].to_list() == [5, 7, expected_ms]
    assert rows["outcome"].to_list() == [True] * 3


def test_a_purchase_without_any_event_is_only_that():
    rows = read(session(outcome="purchase", outcome_ms=7))
    assert rows.select("session_id", "timestamp_ms", "event_name").rows() == [("s@7", 7, "purchase")]


def test_properties_are_numbers_where_all_are_else_texts():
    rows = read(
        session(event(1, properties={"visits": 3.0, "new": True, "mixed": 2.0})),
        session(event(2, properties={"new": False, "mixed": "two", "flag": True})),
        session(event(3, properties={"flag": 0.5})),
    )
    assert rows["property.visits"].to_list() == [3.0, None, None]
    assert rows["property.new"].dtype == pl.Boolean
    assert rows["property.mixed"].to_list() == ["2", "two", None]
    assert rows["property.flag"].to_list() == [None, 1.0, 0.5]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"{", "not a session"),
        (b"[]", "not a session"),
        (b"\xff", "not a session"),
        (session().replace(b'"none"', b'"maybe"'), "not a session"),
        (session().replace(b'"format": 1', b'"format": 2'), "format 2, this release reads format 1"),
    ],
)
def test_what_is_no_session_is_refused_by_the_name_of_its_entry(text, reason):
    with pytest.raises(CollectError, match=f"entry a7:1-0: {reason}"):
        ended_session(ENTRY, text)


def test_collected_files_are_prepared_as_they_are(tmp_path):
    # Given two files, of which the second has a property that the first did not know, and equal rows
    folder = tmp_path / "collected"
    folder.mkdir()
    first = [session(event(1), event(1), event(9), session_id="a")]
    second = [
        session(event(2, properties={"visits": 1.0}), outcome="purchase", outcome_ms=2, session_id="b"),
        session(event(5_000_000), event(5_000_001), session_id="late"),
    ]
    for number, texts in enumerate((first, second)):
        write_events(read(*texts), folder / f"{number}.parquet", clock="calendar", metadata={EQUAL_ROWS_KEY: DISTINCT})
    # When they are prepared
    dataset = prepare(folder, tmp_path / "prepared", keep_open_sessions=True, earliest="1970-01-01")
    # Then no row is lost but the purchase, and the property is there
    rows = pl.concat([pl.read_parquet(shard) for shard in dataset.shards]).sort("session_id", "timestamp_ms")
    assert rows["session_id"].to_list() == ["a@1"] * 3 + ["b@2"] + ["late@5000000"] * 2
    assert rows.filter(pl.col("session_id") == "b@2")["outcome"].to_list() == [True]
    assert rows["property.visits"].to_list() == [None, None, None, 1.0, None, None]
    assert dataset.counts.sessions.rows_duplicate == 0
    assert [spec.kind for spec in dataset.properties] == ["number"]


def test_equal_rows_of_other_logs_are_one_event_still(tmp_path):
    write_events(read(session(event(1), event(1))), tmp_path / "log.parquet", clock="calendar")
    dataset = prepare(
        tmp_path / "log.parquet",
        tmp_path / "prepared",
        keep_open_sessions=True,
        earliest="1970-01-01",
        needs_buyers=False,
    )
    assert dataset.counts.sessions.rows_duplicate == 1
