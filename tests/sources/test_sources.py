"""One small log of each kind, beside what is right: sessions, buyers, times, labels (`expected.toml`)."""

import json
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from training.commands.prepare import column_changes, column_mapping
from training.config import ColumnOptions, LogFormat
from training.data.prepare import prepare
from training.data.sources import FORMATS, SourceError

FOLDER = Path(__file__).parent
LOGS = FOLDER / "logs"
EXPECTED: dict[str, dict[str, Any]] = tomllib.loads((FOLDER / "expected.toml").read_text("utf-8"))


def time(milliseconds: int | None) -> datetime:
    return datetime.fromtimestamp((milliseconds or 0) / 1000, UTC)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_log_is_read_right(tmp_path: Path, name: str) -> None:
    expected = EXPECTED[name]
    options = ColumnOptions(**{key: _frozen(value) for key, value in expected.get("options", {}).items()})
    mapping, changes = column_mapping(LogFormat(), options), column_changes(options)
    if "refused" in expected:
        with pytest.raises(SourceError) as caught:
            prepare(LOGS / name, tmp_path / "out", mapping=mapping, changes=changes)
        assert expected["refused"] in str(caught.value)
        return
    dataset = prepare(LOGS / name, tmp_path / "out", mapping=mapping, changes=changes)
    counts = dataset.counts
    assert dataset.source_format == expected.get("format", "mapping")
    assert (counts.sessions.sessions, counts.sessions.buyers) == (expected["sessions"], expected["buyers"])
    assert (time(dataset.first_time_ms), time(dataset.last_time_ms)) == (
        datetime.fromisoformat(expected["first"]),
        datetime.fromisoformat(expected["last"]),
    )
    assert counts.rejected == expected.get("rejected", {})
    sessions = dataset.sessions()
    labels = dict(sessions.select("session_id", "outcome").iter_rows())
    assert {session: labels[session] for session in expected["labels"]} == expected["labels"]
    for session, events in expected.get("events", {}).items():
        assert _events(dataset.scan(), session) == events


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _events(scan: pl.LazyFrame, session: str) -> list[str]:
    rows = scan.filter(pl.col("session_id") == session).select("event_name", "item_id").collect()
    return [" ".join(filter(None, row)) for row in rows.iter_rows()]


def test_every_log_here_is_expected_to_be_something() -> None:
    assert sorted(path.name for path in LOGS.iterdir()) == sorted(EXPECTED)


@pytest.mark.parametrize("name", sorted(name for name in EXPECTED if "format" in EXPECTED[name]))
def test_no_other_format_takes_a_log_for_its_own(name: str) -> None:
    assert [known for known, adapter in FORMATS.items() if adapter.recognises(LOGS / name)] == [
        EXPECTED[name]["format"]
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet", "nested", "calls"])
def test_an_event_with_several_products_has_the_first_ones_values_and_their_number(tmp_path: Path, kind: str) -> None:
    # Given a page, one product, a list of two, an empty list, and products that are none, in tables and in calls
    two = [{"sku": "S-2", "category": "hats", "price": 5.0, "quantity": 2}, {"sku": "S-3", "price": 9.0}]
    lists: list[Any] = [None, None, two, [], None]
    items = [None, "S-1", None, None, None]
    log = tmp_path / "log"
    log.mkdir()
    facts = [
        {
            "anonymous_id": "a-1",
            "timestamp": f"2026-05-10 08:00:0{second}",
            "sent_at": f"2026-05-10 08:00:0{second}",
            "event_text": "Product List Viewed" if second < 4 else "Order Completed",
            "sku": item,
            "products": products,
        }
        for second, (item, products) in enumerate(zip(items, lists, strict=True))
    ]
    if kind == "nested":
        pl.DataFrame(facts, infer_schema_length=None).write_parquet(log / "tracks.parquet")
    elif kind == "calls":
        calls = [
            {"type": "track", "anonymousId": "a-1", "timestamp": fact["timestamp"], "event": fact["event_text"]}
            | {"properties": {name: fact[name] for name in ("sku", "products") if fact[name] is not None}}
            for fact in facts
        ]
        (log / "tracks.jsonl").write_text("\n".join(map(json.dumps, calls)))
    else:
        texts = [
            {**fact, "products": None if fact["products"] is None else json.dumps(fact["products"])} for fact in facts
        ]
        frame = pl.DataFrame(texts, infer_schema_length=None)
        frame.write_csv(log / "tracks.csv") if kind == "csv" else frame.write_parquet(log / "tracks.parquet")
    # Then each is one event
    dataset = prepare(log, tmp_path / "out", format="segment", keep_open_sessions=True)
    columns = ["item_id", "item_category", "price", "quantity", "property.items"]
    assert dataset.scan().select(columns).collect().rows() == [
        (None, None, None, None, 0),
        ("S-1", None, None, None, 1),
        ("S-2", "hats", 5.0, 2, 2),
        (None, None, None, None, 0),
    ]


def test_typed_and_textual_exports_give_the_same_events(tmp_path: Path) -> None:
    for one, other in (("ga4.jsonl", "ga4_parquet"), ("snowplow.tsv", "snowplow.jsonl")):
        frames = [prepare(LOGS / name, tmp_path / name).scan().collect() for name in (one, other)]
        assert frames[0].equals(frames[1])
