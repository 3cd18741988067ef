"""Every known format on rows made by hand after its published description, and telling formats apart."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from training.data.sources import FORMATS, ColumnMapping, SourceError, detect, open_source
from training.data.sources.canonical import write_events

REES46 = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
CLICKSTREAM = "session_id,elapsed_s,page,flag_1,flag_2,flag_3,flag_4,level,bought\n"
SECOND_MS = 1_569_888_000_000  # 2019-10-01T00:00:00Z


def test_rees46_rows_become_events(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write(
        "2019-Oct.csv.gz",
        REES46
        + "2019-10-01 00:00:00 UTC,view,44600062,2103807459595387724,,shiseido,35.79,541312140,s-1\r\n"
        + "2019-10-01 00:00:01 UTC,cart,3900821,205301,appliances.kettle,,33.20,541312140,s-1\r\n"
        + "2019-10-01 00:00:02 UTC,remove_from_cart,3900821,205301,appliances.kettle,aqua,33.20,541312140,s-1\r\n"
        + "2019-10-01 00:00:03 UTC,purchase,44600062,2103807459595387724,,shiseido,35.79,541312140,s-1\r\n",
    )
    reading = read(path)
    assert reading.source.format == "rees46"
    assert reading.source.clock == "calendar"
    columns = ("session_id", "timestamp_ms", "event_name", "item_id", "item_category", "price", "property.brand")
    assert reading.rows(*columns) == [
        ("s-1", SECOND_MS, "view_item", "44600062", "2103807459595387724", 35.79, "shiseido"),
        ("s-1", SECOND_MS + 1000, "add_to_cart", "3900821", "appliances.kettle", 33.2, None),
        ("s-1", SECOND_MS + 2000, "remove_from_cart", "3900821", "appliances.kettle", 33.2, "aqua"),
        ("s-1", SECOND_MS + 3000, "purchase", "44600062", "2103807459595387724", 35.79, "shiseido"),
    ]


def test_malformed_rees46_rows_are_reported(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write(
        "2019-Oct.csv",
        REES46
        + "2019-10-01 00:00:00 UTC,view,1,2,,b,35.79,5,\n"
        + "2019-10-01 00:00:00,view,1,2,,b,free,5,s\n"
        + "01/10/2019,view,1,2,,b,1,5,s\n"
        + "2019-10-01 02:50:00 UTC,view,10900305,2053013555069845885,appliances.kitchen.mixer,elenberg,25.71,52040330",
    )
    reading = read(path)
    assert reading.nulled == [("2019-Oct.csv", 3, "price", "not a number")]
    assert reading.rejected == [
        ("2019-Oct.csv", 2, "user_session", "missing"),
        ("2019-Oct.csv", 4, "event_time", "not a time"),
        ("2019-Oct.csv", 5, "user_session", "too few fields"),
    ]


def test_a_folder_of_monthly_rees46_files_is_one_log(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    row = "2019-10-01 00:00:00 UTC,view,1,2,,b,1,5,s\n"
    write("log/2019-Nov.csv", REES46 + row)
    path = write("log/2019-Oct.csv.gz", REES46 + row + "broken\n").parent
    reading = read(path)
    assert reading.events["file"].to_list() == ["2019-Nov.csv", "2019-Oct.csv.gz"]
    assert reading.rejected == [("2019-Oct.csv.gz", 3, "event_type", "too few fields")]


def test_rees46_as_typed_parquet_gives_the_same_events(tmp_path: Path, read: Callable[..., Any]) -> None:
    row = {
        "event_time": "2019-10-01 00:00:00 UTC",
        "event_type": "view",
        "product_id": 5,
        "category_id": 2103807459595387724,
        "brand": None,
        "price": 35.79,
        "user_id": 1,
        "user_session": "s",
    }
    path = tmp_path / "2019-Oct.parquet"
    pl.DataFrame([{**row, "category_code": None}, {**row, "category_code": "kids.toys"}]).write_parquet(path)
    assert read(path).rows("timestamp_ms", "event_name", "item_id", "item_category", "price") == [
        (SECOND_MS, "view_item", "5", "2103807459595387724", 35.79),
        (SECOND_MS, "view_item", "5", "kids.toys", 35.79),
    ]


@pytest.mark.parametrize("names", ["sessionId;userId;itemId", "session_id;user_id;item_id"])
def test_diginetica_joins_three_files(write: Callable[..., Path], read: Callable[..., Any], names: str) -> None:
    write("cup/train-item-views.csv", f"{names};timeframe;eventdate\n1;NA;81766;526309;2016-05-09\n1;NA;9;1;2016-05-09")
    write(
        "cup/train-purchases.csv.gz",
        "sessionId;userId;timeframe;eventdate;ordernumber;itemId\n1;7;600000;2016-05-09;16421;81766\n1;7;x;2016-05-09;1;2\n",
    )
    path = write("cup/product-categories.csv", "itemId;categoryId\n81766;999\n5\n7;\n81766;1096\n").parent
    reading = read(path)
    assert reading.source.format == "diginetica"
    assert reading.source.clock == "date"
    day_ms = 1_462_752_000_000
    assert reading.rows("session_id", "timestamp_ms", "day_ms", "event_name", "item_id", "item_category") == [
        ("1", 526309, day_ms, "view_item", "81766", "1096"),
        ("1", 1, day_ms, "view_item", "9", None),
        ("1", 600000, day_ms, "purchase", "81766", "1096"),
    ]
    assert reading.rejected == [
        ("product-categories.csv", 3, "categoryId", "too few fields"),
        ("train-purchases.csv.gz", 3, "timeframe", "not a time"),
    ]
    assert (reading.rows_read, reading.rows_lookup) == (8, 3)


def test_a_diginetica_view_without_a_day_is_reported(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    write("cup/train-item-views.csv", "sessionId;userId;itemId;timeframe;eventdate\n1;NA;8;5;\n1;NA;8;5;tomorrow\n")
    write("cup/train-purchases.csv", "sessionId;userId;timeframe;eventdate;ordernumber;itemId\n")
    path = write("cup/product-categories.csv", "itemId;categoryId\n").parent
    assert read(path).rejected == [
        ("train-item-views.csv", 2, "eventdate", "missing"),
        ("train-item-views.csv", 3, "eventdate", "not a time"),
    ]


def test_yoochoose_zeros_are_unknown_not_free(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    write(
        "yoochoose/yoochoose-clicks.dat",
        "1,2014-04-07T10:51:09.277Z,214536502,0\n1,2014-04-07T10:54:09.868Z,214536500,S\n2,2014-04-07,1\n",
    )
    path = write(
        "yoochoose/yoochoose-buys.dat",
        "1,2014-04-07T11:00:00.000Z,214536500,12462,1\n1,2014-04-07T11:00:00.000Z,214536500,0,0\n",
    ).parent
    reading = read(path)
    assert reading.source.format == "yoochoose"
    assert reading.rows("event_name", "timestamp_ms", "item_category", "price", "quantity") == [
        ("view_item", 1_396_867_869_277, None, None, None),
        ("view_item", 1_396_868_049_868, "S", None, None),
        ("view_item", 1_396_828_800_000, None, None, None),
        ("purchase", 1_396_868_400_000, None, 12462.0, 1.0),
        ("purchase", 1_396_868_400_000, None, None, None),
    ]
    assert reading.nulled == [("yoochoose-clicks.dat", 3, "category", "too few fields")]


def test_retailrocket_events_take_the_category_valid_at_their_time(
    write: Callable[..., Path], read: Callable[..., Any]
) -> None:
    write(
        "rocket/item_properties_part1.csv",
        "timestamp,itemid,property,value\n200,8,categoryid,late\n1,8,790,n552.000\nsoon,8,categoryid,never\n",
    )
    write("rocket/item_properties_part2.csv", "timestamp,itemid,property,value\n100,8,categoryid,early\n100,9\n")
    path = write(
        "rocket/events.csv",
        "timestamp,visitorid,event,itemid,transactionid\n"
        "99,v,view,8,\n100,v,addtocart,8,\n199,v,transaction,8,4000\n200,v,view,8,\n200,v,view,7,\n,v,view,8,\n",
    ).parent
    reading = read(path)
    assert reading.source.format == "retailrocket"
    assert reading.source.by_visitor
    assert reading.rows("session_id", "timestamp_ms", "event_name", "item_category") == [
        ("v", 99, "view_item", None),
        ("v", 100, "add_to_cart", "early"),
        ("v", 199, "purchase", "early"),
        ("v", 200, "view_item", "late"),
        ("v", 200, "view_item", None),
    ]
    assert reading.rejected == [
        ("events.csv", 7, "timestamp", "missing"),
        ("item_properties_part1.csv", 4, "timestamp", "not a time"),
        ("item_properties_part2.csv", 3, "property", "too few fields"),
    ]
    assert (reading.rows_read, reading.rows_lookup) == (11, 3)


def test_retailrocket_works_without_the_item_properties(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write("events.csv", "timestamp,visitorid,event,itemid,transactionid\n5,v,view,8,\n")
    reading = read(path)
    assert reading.source.format == "retailrocket"
    assert reading.rows("item_id", "item_category") == [("8", None)]


def test_clickstreamdmm_gives_outcome_and_facts(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write("events.csv.gz", CLICKSTREAM + "a,0,type_0,0,1,0,0,0.4884,1\na,45,type_3,0,1,0,0,0.4884,2\n").parent
    reading = read(path)
    assert reading.source.format == "clickstreamdmm"
    assert reading.source.clock == "session"
    assert not reading.source.equal_rows_are_duplicates
    assert reading.rows("session_id", "timestamp_ms", "event_name", "outcome", "property.flag_2", "property.level") == [
        ("a", 0, "type_0", True, 1.0, 0.4884),
        ("a", 45_000, "type_3", None, 1.0, 0.4884),
    ]
    assert reading.nulled == [("events.csv.gz", 3, "bought", "neither true nor false")]
    assert reading.lost_labels == ["a"]


def test_canonical_events_come_back_as_written(tmp_path: Path, read: Callable[..., Any]) -> None:
    events = pl.DataFrame(
        {
            "session_id": ["a", "a"],
            "timestamp_ms": [5, 6],
            "event_name": ["view_item", "purchase"],
            "price": [1.5, None],
            "source_line": [20, 10],
            "property.device": ["phone", "phone"],
            "property.returning": [True, False],
        }
    )
    write_events(events, tmp_path / "log.parquet", clock="session")
    reading = read(tmp_path / "log.parquet")
    assert reading.source.format == "canonical"
    assert reading.source.clock == "session"
    assert [declared.kind for declared in reading.source.properties] == ["category", "number"]
    columns = ("timestamp_ms", "event_name", "price", "item_id", "source_line", "property.device", "property.returning")
    assert reading.rows(*columns) == [
        (6, "purchase", None, None, 10, "phone", 0.0),
        (5, "view_item", 1.5, None, 20, "phone", 1.0),
    ]


def test_canonical_parquet_of_others_is_calendar_time_and_counts_its_rows(
    tmp_path: Path, read: Callable[..., Any]
) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame(
        {"session_id": ["a", "b", "c"], "timestamp_ms": [5, 6, 7], "event_name": ["x", None, "Product Viewed"]}
    ).write_parquet(path)
    reading = read(path)
    assert reading.source.clock == "calendar"
    assert reading.rows("event_name", "source_line") == [("x", 1), ("view_item", 3)]
    assert reading.rejected == [("log.parquet", 2, "event_name", "missing")]


def test_canonical_files_of_different_clocks_are_no_log(tmp_path: Path) -> None:
    events = pl.DataFrame({"session_id": ["a"], "timestamp_ms": [5], "event_name": ["x"]})
    write_events(events, tmp_path / "a.parquet", clock="session")
    write_events(events, tmp_path / "b.parquet", clock="calendar")
    with pytest.raises(SourceError, match="clocks differ: calendar, session"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"session_id": ["a"], "timestamp_ms": [5]}, "need the column event_name"),
        ({"session_id": ["a"], "timestamp_ms": [5], "event_name": ["x"], "device": ["p"]}, "device is no column"),
    ],
)
def test_what_is_no_event_table_is_not_written(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        write_events(pl.DataFrame(columns), tmp_path / "log.parquet", clock="calendar")
    assert not (tmp_path / "log.parquet").exists()


def test_an_unknown_log_is_refused_with_what_is_known_and_what_to_do(write: Callable[..., Path]) -> None:
    path = write("log.csv", "sid,ts\na,1\n")
    with pytest.raises(SourceError, match="none of the known formats") as caught:
        detect(path)
    assert all(name in str(caught.value) for name in FORMATS)
    assert "--mapping" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfe\x00", "none of the known formats"),
        (b"PAR1 damaged", "none of the known formats"),
        (b"\x1f\x8bdamaged", "gzip stream is damaged"),
        (b'"', "none of the known formats"),
    ],
)
def test_telling_formats_apart_survives_any_bytes(write: Callable[..., Path], content: bytes, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        detect(write("log.csv", content))


def test_an_unknown_format_name_lists_the_known_ones(write: Callable[..., Path]) -> None:
    with pytest.raises(SourceError, match="unknown format 'rees'; known: auto, rees46, diginetica"):
        open_source(write("log.csv", "a,b\n1,2\n"), "rees")


def test_a_mapping_and_a_known_format_exclude_each_other(write: Callable[..., Path]) -> None:
    mapping = ColumnMapping(session_id="a", timestamp="b", constant_event_name="page_view")
    path = write("log.csv", "a,b\n1,2\n")
    with pytest.raises(SourceError, match="does not go with format rees46"):
        open_source(path, "rees46", mapping)
    with pytest.raises(SourceError, match="needs a mapping"):
        open_source(path, "mapping")


@pytest.mark.parametrize("name", ["auto", "rees46", "canonical"])
def test_missing_paths_and_empty_files_are_errors(tmp_path: Path, write: Callable[..., Path], name: str) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        open_source(tmp_path / "absent", name)
    with pytest.raises(SourceError, match="the file is empty"):
        open_source(write("empty.csv", ""), name)


@pytest.mark.parametrize("name", ["diginetica", "yoochoose"])
def test_formats_of_several_files_ask_for_their_folder(write: Callable[..., Path], name: str) -> None:
    with pytest.raises(SourceError, match="give the folder"):
        open_source(write("log.csv", "a,b\n1,2\n"), name)


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_without_the_files_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match=r"no file matches|no \.csv|no \.parquet|no table|one file must"):
        open_source(tmp_path, name)


def test_a_file_that_is_there_twice_is_an_error(write: Callable[..., Path]) -> None:
    write("cup/train-item-views.csv", "x\n")
    path = write("cup/sample-item-views.csv.gz", "x\n").parent
    with pytest.raises(SourceError, match="one file must match"):
        open_source(path, "diginetica")


def test_a_log_of_another_format_names_the_missing_column(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    with pytest.raises(SourceError, match="no column is called 'user_session'"):
        read(write("log.csv", CLICKSTREAM), "rees46")


ORDERS: dict[str, dict[str, Any]] = {
    "ga4": {
        "event_timestamp": "1778400000000000",
        "event_name": "purchase",
        "user_pseudo_id": "1.2",
        "event_params": [
            {"key": "ga_session_id", "value": {"int_value": "1778400000"}},
            {"key": "value", "value": {"double_value": 59.9}},
            {"key": "currency", "value": {"string_value": "EUR"}},
        ],
    },
    "segment": {
        "type": "track",
        "anonymousId": "a",
        "event": "Order Completed",
        "timestamp": "2026-05-10T08:00:00Z",
        "originalTimestamp": "2026-05-10T08:00:00Z",
        "properties": {"revenue": 59.9, "total": 65.0, "currency": "eur"},
    },
    "shopify": {
        "clientId": "c",
        "timestamp": "2026-05-10T08:00:00Z",
        "name": "checkout_completed",
        "data": {"checkout": {"totalPrice": {"amount": 59.9, "currencyCode": "EUR"}, "lineItems": []}},
    },
    "snowplow": {
        "collector_tstamp": "2026-05-10 08:00:00.000",
        "domain_sessionid": "d",
        "event_name": "transaction",
        "tr_total": 59.9,
        "tr_currency": "EUR",
    },
}


@pytest.mark.parametrize("name", ORDERS)
def test_value_and_currency_of_an_order_are_kept(
    name: str, write: Callable[..., Path], read: Callable[..., Any]
) -> None:
    reading = read(write("log.jsonl", json.dumps(ORDERS[name]) + "\n"))
    assert reading.source.format == name
    assert reading.rows("event_name", "value", "currency") == [("purchase", 59.9, "EUR")]


def test_a_currency_that_is_no_code_is_absent_and_counted(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    order = ORDERS["snowplow"] | {"tr_currency": "euro"}
    reading = read(write("log.jsonl", json.dumps(order) + "\n"))
    assert reading.rows("value", "currency") == [(59.9, None)]
    assert [one[2:] for one in reading.nulled] == [("tr_currency", "no ISO 4217 code")]
