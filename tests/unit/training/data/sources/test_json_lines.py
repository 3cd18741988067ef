"""JSON of any shop: one object a line, arrays, objects over several lines; and values inside nested columns."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from model.vendors.paths import value_at
from training.data.sources import ColumnMapping, SourceError, open_source
from training.data.sources.nested import expression

MAPPING = ColumnMapping.from_options(
    ["session_id=user.session", "timestamp=at", "event_name=type", "item_id=items[0].sku", "price=price"],
    properties=["page=params[page]", "items=items[#]"],
    time_format="elapsed_s",
)
EVENTS: list[dict[str, Any]] = [
    {
        "user": {"session": "ä"},
        "at": 1,
        "type": "view",
        "items": [{"sku": 'x,"y'}, {"sku": "z"}],
        "price": 2.5,
        "params": [{"key": "other", "value": {"string_value": "no"}}, {"key": "page", "value": {"int_value": 7}}],
    },
    {"user": {"session": "b"}, "at": "2", "type": "purchase", "items": [], "price": None, "params": None},
    {"user": None, "at": 3, "type": "view"},
]
COLUMNS = ("session_id", "timestamp_ms", "event_name", "item_id", "price", "property.page", "property.items")
ROWS = [("ä", 1000, "view", 'x,"y', 2.5, "7", "2"), ("b", 2000, "purchase", None, None, None, "0")]

WRITTEN: dict[str, str] = {
    "lines": "\n".join(map(json.dumps, EVENTS)),
    "lines of other systems": "\r\n\r\n".join(json.dumps(event, ensure_ascii=False) for event in EVENTS) + "\r\n",
    "an array": json.dumps(EVENTS),
    "a pretty array": json.dumps(EVENTS, indent=2),
    "objects over several lines": "\n".join(json.dumps(event, indent=2) for event in EVENTS),
    "lines with commas": ",\n".join(map(json.dumps, EVENTS)),
}


@pytest.mark.parametrize("form", WRITTEN)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_in_any_form_gives_the_same_events(
    write: Callable[..., Path], read: Callable[..., Any], form: str, encoding: str
) -> None:
    path = write("log.json", WRITTEN[form].encode(encoding))
    reading = read(path, mapping=MAPPING)
    assert reading.rows(*COLUMNS) == ROWS
    assert [row[2:] for row in reading.rejected] == [("user.session", "missing")]
    assert reading.rows_read == 3


def test_small_blocks_give_what_one_block_gives(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write("log.jsonl", "\n".join(json.dumps({**EVENTS[0], "at": number}) for number in range(50)))
    whole, pieces = read(path, mapping=MAPPING), read(path, mapping=MAPPING, block_bytes=50)
    assert pieces.events.equals(whole.events)
    assert whole.rows("source_line")[-1] == (50,)


def test_nested_parquet_gives_the_same_events(tmp_path: Path, read: Callable[..., Any]) -> None:
    typed = [{**event, "at": int(event["at"])} for event in EVENTS]
    pl.DataFrame(typed).write_parquet(tmp_path / "log.parquet")
    reading = read(tmp_path / "log.parquet", mapping=MAPPING)
    assert reading.rows(*COLUMNS[:-1]) == [row[:-1] for row in ROWS]
    assert [str(count).removesuffix(".0") for (count,) in reading.rows("property.items")] == ["2", "0"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"user": {"session": "a"}, "at": 1,', "not valid JSON"),
        ("{broken}", "not valid JSON"),
        ('"text"', "not a JSON object"),
        ("17", "not a JSON object"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_a_malformed_line_is_reported_and_its_neighbours_survive(
    write: Callable[..., Path], read: Callable[..., Any], line: str, reason: str
) -> None:
    path = write("log.jsonl", json.dumps(EVENTS[0]) + f"\n{line}\n" + json.dumps(EVENTS[1]))
    reading = read(path, mapping=MAPPING)
    assert reading.rejected == [("log.jsonl", 2, "", reason)]
    assert reading.rows(*COLUMNS) == ROWS


def test_a_damaged_first_line_is_one_bad_line(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write("log.jsonl", '{"user": {"sess\n' + "\n".join(map(json.dumps, EVENTS[:2])))
    assert read(path, mapping=MAPPING).rows(*COLUMNS) == ROWS


def test_bytes_that_are_no_text_reject_their_line_alone(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    damaged = json.dumps(EVENTS[0], ensure_ascii=False).encode("latin-1")
    path = write("log.jsonl", damaged + b"\n" + json.dumps(EVENTS[1]).encode())
    reading = read(path, mapping=MAPPING)
    assert [row[1:] for row in reading.rejected] == [(1, "", "not valid JSON")]
    assert reading.rows(*COLUMNS) == ROWS[1:]


def test_values_that_python_writes_and_json_lacks(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write("log.jsonl", json.dumps({**EVENTS[0], "price": float("nan"), "type": "\ud800"}))
    assert read(path, mapping=MAPPING).rows("price", "event_name") == [(None, "?")]


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": ', '[{"a": 1} junk]', "{\n" + '"a": [' * 50_000])
def test_a_damaged_array_is_an_error_with_its_line(write: Callable[..., Path], text: str) -> None:
    mapping = ColumnMapping(session_id="a", timestamp="a", event_name="a", time_format="elapsed_s")
    with pytest.raises(SourceError, match=r"line \d+: (not valid JSON|nested too deeply)"):
        list(open_source(write("log.json", text), mapping=mapping).batches())


@pytest.mark.parametrize("text", ["[]", "[\n]", "{}" + " " * 5000])
def test_json_without_events_names_what_is_missing(write: Callable[..., Path], text: str) -> None:
    with pytest.raises(SourceError, match=r"is empty|no row has what is called"):
        list(open_source(write("log.json", text), mapping=MAPPING).batches())


def test_a_mistyped_path_is_refused(write: Callable[..., Path]) -> None:
    path = write("log.jsonl", "\n".join(map(json.dumps, EVENTS)))
    mapping = ColumnMapping.from_options(
        ["session_id=user.session", "timestamp=at", "event_name=type", "price=cost"], properties=["p=param[page]"]
    )
    with pytest.raises(SourceError, match=r"no row has what is called cost, param\[page\]"):
        list(open_source(path, mapping=mapping).batches())


def test_a_column_of_nulls_is_there(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write("log.jsonl", json.dumps({"sid": "a", "at": 1, "type": "view", "price": None}))
    mapping = ColumnMapping(session_id="sid", timestamp="at", event_name="type", price="price", time_format="elapsed_s")
    assert read(path, mapping=mapping).rows("price") == [(None,)]


def test_a_whole_record_is_no_value_in_parquet(tmp_path: Path) -> None:
    pl.DataFrame(EVENTS[:1]).write_parquet(tmp_path / "log.parquet")
    mapping = ColumnMapping(session_id="user", timestamp="at", event_name="type")
    with pytest.raises(SourceError, match=r"column 'user' holds Struct.*name a value inside it"):
        list(open_source(tmp_path / "log.parquet", mapping=mapping).batches())


@pytest.mark.parametrize("path", ["a.b", "a.c[0].d", "m[k]", "a.c[#]", "a.c[9].d", "a.nothing", "s[k]", "x.y"])
def test_a_path_selects_the_same_from_json_and_from_a_table(path: str) -> None:
    record: dict[str, Any] = {
        "a": {"b": "1", "c": [{"d": "2"}, {"d": "3"}]},
        "m": [{"key": "j", "value": "4"}, {"key": "k", "value": "5"}],
        "s": [{"key": "k", "value": {"int_value": None, "string_value": "6"}}],
        "x.y": "7",
    }
    table = pl.DataFrame([record])
    selected = expression(path, table.schema)
    found = None if selected is None else table.select(selected).item()
    assert found == value_at(record, path)


def test_binary_columns_of_parquet_are_text_where_they_are_utf8(tmp_path: Path, read: Callable[..., Any]) -> None:
    rows = {"sid": [b"a", b"\xff\xfe", b"c"], "ts": [1, 2, 3], "what": [b"view", b"view", "käse".encode()]}
    pl.DataFrame(rows).write_parquet(tmp_path / "log.parquet")
    mapping = ColumnMapping(session_id="sid", timestamp="ts", event_name="what", time_format="elapsed_s")
    reading = read(tmp_path / "log.parquet", mapping=mapping)
    assert reading.rows("session_id", "event_name") == [("a", "view"), ("c", "käse")]
    assert reading.rejected == [("log.parquet", 2, "sid", "not valid UTF-8")]
