"""Column mappings, from TOML and from the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support import paths

from model.events import FIELDS
from training.data.sources import ColumnMapping, PropertyColumn, SourceError
from training.data.sources.base import open_mapped, parquet_property_kinds
from training.data.sources.blocks import LINE
from training.data.sources.conversion import convert
from training.data.sources.mapping import Changes

TOML = """
time_format = "epoch_s"
separator = ";"
missing_values = ["NULL"]

[columns]
session_id = "sid"
timestamp = "ts"
event_name = "type"
item_id = "sku"

[events]
put = "add_to_cart"

[properties]
device = "dev"
width = {column = "w", kind = "number"}
"""


def test_toml_and_options_say_the_same(write: Callable[..., Path]) -> None:
    from_toml = ColumnMapping.from_toml(write("columns.toml", TOML))
    from_options = ColumnMapping.from_options(
        columns=["session_id=sid", "timestamp=ts", "event_name=type", "item_id=sku"],
        events=["put=add_to_cart"],
        properties=["device=dev", "width:number=w"],
        time_format="epoch_s",
        separator=";",
        missing_values=["NULL"],
        constant_event_name=None,
    )
    assert from_toml == from_options
    assert from_toml.properties == (PropertyColumn("device", "dev"), PropertyColumn("width", "w", "number"))


def test_a_mapped_log_is_read(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    mapping = ColumnMapping.from_toml(write("columns.toml", TOML))
    path = write("log.csv", "sid;ts;type;sku;dev;w\na;1;put;NULL;phone;380\na;2;Order Completed;s;;wide\n")
    reading = read(path, mapping=mapping)
    assert reading.rows("event_name", "item_id", "property.device", "property.width") == [
        ("add_to_cart", None, "phone", 380.0),
        ("purchase", "s", None, None),
    ]
    assert reading.rejected == []
    assert reading.nulled == [("log.csv", 3, "w", "not a number")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colums = 1", "unknown key colums; allowed: columns, events, properties, constants, constant_"),
        ("[columns]\nsession = 's'", "unknown key columns.session; allowed: session_id, visitor_id, timestamp"),
        ("columns = 's'", "columns must be a table"),
        ("[columns]\nsession_id = 3", "columns.session_id must be a text"),
        ("[columns]\nsession_id = 's'", "needs the column of timestamp"),
        ("[columns]\ntimestamp = 't'", "session_id or of visitor_id, or a session_key"),
        ("session_key = ['a']\n[columns]\ntimestamp='t'\nsession_id='s'", "session_id or session_key, and not both"),
        ("time_format = '%Y-%m-%d'", "has no time of day"),
        ("time_format = '%H:%M'", "has no date"),
        ("time_format = '%Y-%m-%d %I:%M'", "%I counts to 12 and needs %p"),
        ("time_format = '%Y-%m-%d %T'", "%T is no directive of Python's strptime"),
        ("encoding = 'utf-17'", "unknown encoding 'utf-17'"),
        ("encoding = 'utf-16'", "cannot be split into lines"),
        ("[constants]\nsession_id = 's'", "constants.session_id: expected event_name or one of item_id"),
        ("[columns]\ntimestamp = 't'\nsession_id = 's'", "event_name or a constant_event_name"),
        ("time_format = 'unix'", "unknown time_format 'unix'; known: iso, epoch_s"),
        ("separator = ';;'", "separator must be one character"),
        ("has_header = 'no'", "has_header must be true or false"),
        ("missing_values = 'NA'", "missing_values must be a list of texts"),
        ("[properties]\ndevice = {kolumn = 'd'}", "unknown key properties.device.kolumn; allowed: column, kind"),
        ("[properties]\ndevice = {kind = 'text'}", "properties.device.kind must be one of number, category"),
        ("[properties]\ndevice = 3", "properties.device must be a column's name or a table"),
        ("not toml", "not a TOML file"),
    ],
)
def test_a_wrong_mapping_file_is_explained(write: Callable[..., Path], text: str, message: str) -> None:
    complete = "\n[columns]\ntimestamp = 't'\nsession_id = 's'\nevent_name = 'e'\n"
    path = write("columns.toml", text if "columns" in text else text + complete)
    with pytest.raises(SourceError, match=message) as caught:
        ColumnMapping.from_toml(path)
    assert str(path) in str(caught.value)


def test_the_example_of_the_documentation_does_what_it_says(
    write: Callable[..., Path], read: Callable[..., Any]
) -> None:
    text = (paths.DOCS / "train-your-log.md").read_text("utf-8")
    log = text.split('```csv title="shop.csv"\n')[1].split("```")[0]
    toml = text.split('```toml title="shop.toml"\n')[1].split("```")[0]
    reading = read(write("shop.csv", log), mapping=ColumnMapping.from_toml(write("shop.toml", toml)))
    names = ("session_id", "timestamp_ms", "event_name", "item_id", "price", "property.device")
    assert reading.rows(*names)[:4] == [
        ("v-17", 1790845200000, "view_item", "SKU-1", 59.9, "phone"),
        ("v-17", 1790845242000, "add_to_cart", "SKU-1", 59.9, "phone"),
        ("v-17", 1790845290000, "purchase", "SKU-1", 59.9, "phone"),
        ("v-17", 1790845300000, "thanks", None, None, "phone"),
    ]
    assert len(reading.rows(*names)) == 8


def test_a_missing_mapping_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        ColumnMapping.from_toml(tmp_path / "absent.toml")


@pytest.mark.parametrize("pair", ["session_id", "=sid", "session_id="])
def test_a_malformed_pair_is_named(pair: str) -> None:
    with pytest.raises(SourceError, match="a column is given as name=value"):
        ColumnMapping.from_options(columns=[pair])


def test_a_pair_given_twice_is_named() -> None:
    with pytest.raises(SourceError, match="column session_id is given twice"):
        ColumnMapping.from_options(columns=["session_id=a", "session_id=b"])


def test_a_visitor_cannot_be_split_by_times_since_the_session_began() -> None:
    with pytest.raises(SourceError, match="visitors cannot be split"):
        ColumnMapping(visitor_id="v", timestamp="t", event_name="e", time_format="elapsed_s")


def test_parquet_types_decide_what_a_property_is(tmp_path: Path, read: Callable[..., Any]) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame(
        {"sid": [7, 8], "ts": [1, 2], "type": ["view", "view"], "returning": [True, None], "plan": ["a", "b"]}
    ).write_parquet(path)
    mapping = ColumnMapping(
        session_id="sid",
        timestamp="ts",
        event_name="type",
        time_format="epoch_ms",
        properties=(PropertyColumn("returning", "returning"), PropertyColumn("plan", "plan")),
    )
    reading = read(path, mapping=mapping)
    assert [declared.kind for declared in reading.source.properties] == ["number", "category"]
    assert reading.rows("session_id", "property.returning", "property.plan", "source_line") == [
        ("7", 1.0, "a", 1),
        ("8", None, "b", 2),
    ]


def test_malformed_parquet_rows_are_reported_with_their_row_number(tmp_path: Path, read: Callable[..., Any]) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame(
        {"sid": ["a", None, "a", "a"], "ts": [1, 2, None, 4], "price": [1.0, 1.0, 1.0, float("nan")]}
    ).write_parquet(path)
    mapping = ColumnMapping(
        session_id="sid", timestamp="ts", constant_event_name="page_view", price="price", time_format="epoch_ms"
    )
    reading = read(path, mapping=mapping)
    assert reading.rejected == [
        ("log.parquet", 2, "sid", "missing"),
        ("log.parquet", 3, "ts", "missing"),
    ]
    assert reading.nulled == [("log.parquet", 4, "price", "not finite")]
    assert reading.rows("timestamp_ms", "price") == [(1, 1.0), (4, None)]


def test_nested_parquet_columns_are_an_error(tmp_path: Path, read: Callable[..., Any]) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame({"sid": [["a"]], "ts": [1]}).write_parquet(path)
    mapping = ColumnMapping(session_id="sid", timestamp="ts", constant_event_name="page_view")
    with pytest.raises(SourceError, match="'sid' holds List"):
        read(path, mapping=mapping)


def test_damaged_parquet_is_an_error(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write("log.parquet", b"PAR1 and then nothing of the kind")
    mapping = ColumnMapping(session_id="sid", timestamp="ts", constant_event_name="page_view")
    with pytest.raises(SourceError, match=r"not .*readable Parquet"):
        read(path, mapping=mapping)


def test_every_field_of_the_table_may_have_a_column() -> None:
    columns = {field.name: f"column of {field.name}" for field in FIELDS}
    mapping = ColumnMapping(timestamp="t", session_id="s", event_name="e", **columns)  # type: ignore[arg-type]  # texts
    raw = pl.DataFrame(
        {"t": ["2026-11-22"], "s": ["s-1"], "e": ["page_view"], LINE: [1]}
        | {column: ["2.5"] for column in columns.values()}
        | {columns["currency"]: ["eur"]}
    )
    converted = convert(raw, mapping)
    events = converted.events
    assert converted.rejected.is_empty()
    assert {name: events[name].item() for name in columns} == {
        field.name: "2.5" if field.kind == "text" else 2.5 for field in FIELDS
    } | {"currency": "EUR"}


def test_options_go_before_what_a_format_says_and_add_to_what_it_leaves_out() -> None:
    mapping = ColumnMapping(
        timestamp="ts",
        session_id="sid",
        visitor_id="vid",
        event_name="type",
        events={"put": "add_to_cart", "pay": "begin_checkout"},
        drop=("ping",),
        must_occur=("ping",),
        time_zone="Europe/Berlin",
    )
    changes = Changes.from_options(events=["pay=purchase"], drop=["pong"], session_key=["shop", "visit"])
    found = changes.of(mapping)
    assert found.events == {"put": "add_to_cart", "pay": "purchase"}
    assert found.drop == ("ping", "pong")
    # What an option names must be there, or it is misspelt
    assert found.must_occur == ("ping", "pay", "pong")
    assert (found.session_columns, found.session_id, found.visitor_id) == (("shop", "visit"), None, None)
    assert found.time_zone == "Europe/Berlin"
    assert Changes().of(mapping) == mapping


def test_a_property_may_have_the_name_of_a_kind_and_a_column_a_plus() -> None:
    mapping = ColumnMapping.from_options(
        columns=["session_id=sid", "timestamp=ts+", "event_name=type"],
        properties=["number=n", "category:number=c", "a:b=d"],
    )
    assert mapping.properties == (
        PropertyColumn("number", "n"),
        PropertyColumn("category", "c", "number"),
        PropertyColumn("a:b", "d"),
    )
    assert mapping.time_columns == ("ts+",)
    joined = ColumnMapping.from_options(columns=["session_id=sid", "timestamp=Date+Time", "event_name=type"])
    assert joined.time_columns == ("Date", "Time")


def test_a_property_is_a_number_only_where_every_file_has_numbers(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.parquet", "b.parquet", "c.parquet")]
    tables = [
        pl.DataFrame({"p": ["x"], "q": [1]}),
        pl.DataFrame({"p": [1], "q": [2.5]}),
        pl.DataFrame({"q": [True]}),
    ]
    for file, table in zip(files, tables, strict=True):
        table.write_parquet(file)
    declared = (PropertyColumn("p", "p"), PropertyColumn("q", "q"), PropertyColumn("r", "r"))
    assert [each.kind for each in parquet_property_kinds(files, declared)] == ["category", "number", "category"]
    assert parquet_property_kinds(files, (PropertyColumn("q", "q", "category"),))[0].kind == "category"


def json_lines(rows: int, of: range) -> str:
    """A log in which only the rows of a range have a category."""
    events = ({"s": f"{at}", "t": at, "e": "page_view"} | ({"c": "x"} if at in of else {}) for at in range(rows))
    return "".join(json.dumps(event) + "\n" for event in events)


@pytest.mark.parametrize("of", [range(100), range(900, 1000), range(500, 501)], ids=["first", "last", "one"])
def test_a_field_may_be_in_any_part_of_a_log(write: Callable[..., Path], of: range) -> None:
    path = write("log.jsonl", json_lines(1000, of))
    mapping = ColumnMapping(timestamp="t", session_id="s", event_name="e", item_category="c", time_format="epoch_s")
    batches = list(open_mapped(path, mapping).batches(block_bytes=2000))
    assert len(batches) > 5
    assert pl.concat([batch.events for batch in batches])["item_category"].count() == len(of)


def test_a_field_that_no_row_has_is_an_error(write: Callable[..., Path]) -> None:
    path = write("log.jsonl", json_lines(1000, range(0)))
    mapping = ColumnMapping(timestamp="t", session_id="s", event_name="e", item_category="c", time_format="epoch_s")
    with pytest.raises(SourceError, match="no row has what is called c"):
        list(open_mapped(path, mapping).batches(block_bytes=2000))
    # Of which a look at the beginning says nothing
    assert list(open_mapped(path, mapping).batches(block_bytes=2000, rows=10))


def test_a_look_at_a_log_reads_the_beginning_of_each_file(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json_lines(1000, range(1000)))
    mapping = ColumnMapping(timestamp="t", session_id="s", event_name="e", item_category="c", time_format="epoch_s")
    batches = list(open_mapped(tmp_path, mapping).batches(block_bytes=2000, rows=100))
    of_file = {name: sum(one.rows_read for one in batches if one.file == name) for name in ("a.jsonl", "b.jsonl")}
    assert all(50 <= rows < 200 for rows in of_file.values())
