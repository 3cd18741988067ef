"""From logs to prepared sessions on disk."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from training.data.prepare import PreparedDatasetError, prepare, read_prepared
from training.data.prepared import Counts
from training.data.sources import Clock, ColumnMapping, PropertyColumn, SourceError
from training.data.sources.canonical import write_events

HOUR_MS = 3_600_000
START_MS = 1_600_000_000_000


def log(
    path: Path,
    rows: list[tuple[Any, ...]],
    *,
    clock: Clock = "calendar",
    names: tuple[str, ...] = ("session_id", "timestamp_ms", "event_name"),
) -> Path:
    write_events(pl.DataFrame(rows, schema=list(names), orient="row"), path, clock=clock)
    return path


def shop(path: Path, sessions: int = 60) -> Path:
    """Write a log of sessions of different lengths and times, some of which buy; a later one ends the log."""
    rows = [
        (
            f"s{number}",
            START_MS + number * HOUR_MS + step * 1000,
            "purchase" if step == 5 and number % 3 == 0 else "page_view",
        )
        for number in range(sessions)
        for step in range(1 + number % 9)
    ]
    return log(path, [*rows, ("last", START_MS + sessions * HOUR_MS, "page_view")])


def accounted(counts: Counts) -> int:
    rows = counts.sessions
    return (
        counts.rows_lookup
        + counts.rows_rejected
        + rows.rows_duplicate
        + rows.rows_in_open_sessions
        + rows.rows_at_or_after_purchase
        + rows.rows_without_label
        + counts.rows_dropped
        + rows.events
    )


def test_what_is_prepared_is_read_back_the_same(tmp_path: Path) -> None:
    dataset = prepare(shop(tmp_path / "log.parquet"), tmp_path / "out")
    assert read_prepared(tmp_path / "out") == dataset
    assert dataset.clock == "calendar"
    assert [shard.name for shard in dataset.shards] == ["events-0000.parquet"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset.json",
        "events-0000.parquet",
        "nulled.csv",
        "rejected.csv",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.parquet", "out"]


def test_sessions_of_a_dataset_are_one_row_each(tmp_path: Path) -> None:
    dataset = prepare(shop(tmp_path / "log.parquet"), tmp_path / "out")
    sessions = dataset.sessions()
    assert sessions.height == sessions["session_id"].n_unique() == dataset.counts.sessions.sessions == 60
    assert sessions["outcome"].sum() == dataset.counts.sessions.buyers
    assert (
        sessions["events"].sum() == dataset.counts.sessions.events == dataset.scan().select(pl.len()).collect().item()
    )


def test_many_shards_and_small_blocks_hold_what_one_shard_holds(tmp_path: Path) -> None:
    source = shop(tmp_path / "log.parquet")
    one = prepare(source, tmp_path / "one")
    many = prepare(source, tmp_path / "many", shard_bytes=source.stat().st_size)
    assert len(many.shards) > 1
    key = ["session_start_ms", "session_id", "timestamp_ms"]
    assert_frame_equal(one.scan().collect().sort(key), many.scan().collect().sort(key))
    assert one.counts == many.counts
    assert (one.first_time_ms, one.last_time_ms) == (many.first_time_ms, many.last_time_ms)
    owners = [set(pl.read_parquet(shard)["session_id"]) for shard in many.shards]
    assert sum(len(owner) for owner in owners) == len(set.union(*owners))


def test_rejected_rows_are_listed_with_file_and_line(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write("log.csv", 'sid,ts,what\na,1,view\na,,"vi,ew"\nb,2,view\nb,3,buy,x\n')
    mapping = ColumnMapping(session_id="sid", timestamp="ts", event_name="what", time_format="elapsed_s")
    dataset = prepare(path, tmp_path / "out", mapping=mapping, needs_buyers=False)
    with (tmp_path / "out" / "rejected.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"file": "log.csv", "line": "3", "field": "ts", "reason": "missing", "value": ""},
            {"file": "log.csv", "line": "5", "field": "", "reason": "too many fields", "value": "b,3,buy,x"},
        ]
    assert dataset.counts.rejected == {"missing": 1, "too many fields": 1}
    assert dataset.counts.rows_read == accounted(dataset.counts) == 4


def test_rejected_rows_of_several_files_name_their_own(write: Callable[..., Path], tmp_path: Path) -> None:
    write("cup/train-item-views.csv", "sessionId;userId;itemId;timeframe;eventdate\n1;NA;8;5;2016-05-09\nviews\n")
    write("cup/train-purchases.csv", "sessionId;userId;timeframe;eventdate;ordernumber;itemId\npurchases\n")
    path = write("cup/product-categories.csv", "itemId;categoryId\ncategories\n").parent
    prepare(path, tmp_path / "out", needs_buyers=False)
    rejected = pl.read_csv(tmp_path / "out" / "rejected.csv")
    assert rejected.select("file", "value").rows() == [
        ("product-categories.csv", "categories"),
        ("train-item-views.csv", "views"),
        ("train-purchases.csv", "purchases"),
    ]


def test_contradictory_sessions_are_rejected_row_by_row(tmp_path: Path) -> None:
    names = ("session_id", "timestamp_ms", "event_name", "outcome")
    rows = [
        ("ok", 1, "view_item", True),
        ("torn", 1, "view_item", True),
        ("torn", 2, "view_item", False),
        ("liar", 1, "view_item", False),
        ("liar", 2, "purchase", False),
    ]
    dataset = prepare(log(tmp_path / "log.parquet", rows, clock="session", names=names), tmp_path / "out")
    assert dataset.sessions()["session_id"].to_list() == ["ok"]
    assert dataset.counts.rejected == {
        "outcome differs within the session": 2,
        "outcome is false, yet the session has a purchase": 2,
    }
    rejected = pl.read_csv(tmp_path / "out" / "rejected.csv")
    assert rejected.select("line", "field", "value").rows() == [
        (2, "outcome", "torn"),
        (3, "outcome", "torn"),
        (4, "outcome", "liar"),
        (5, "outcome", "liar"),
    ]
    assert dataset.counts.rows_read == accounted(dataset.counts) == 5


def test_kinds_and_scopes_of_properties_come_from_all_their_values(write: Callable[..., Path], tmp_path: Path) -> None:
    lines = [
        "sid,ts,what,device,width,zip,empty",
        "a,1,view,phone,380,10115,",
        "a,2,view,phone,400,10115,",
        "b,1,view,desk,,SW1A,",
        "b,2,view,desk,1e3,SW1A,",
    ]
    mapping = ColumnMapping(
        session_id="sid",
        timestamp="ts",
        event_name="what",
        time_format="elapsed_s",
        properties=tuple(PropertyColumn(name, name) for name in ("device", "width", "zip", "empty")),
    )
    dataset = prepare(
        write("log.csv", "\n".join(lines)), tmp_path / "out", mapping=mapping, block_bytes=20, needs_buyers=False
    )
    assert [(declared.name, declared.kind, declared.scope) for declared in dataset.properties] == [
        ("device", "category", "session"),
        ("width", "number", "event"),
        ("zip", "category", "session"),
        ("empty", "category", "session"),
    ]
    events = dataset.scan().collect()
    assert events["property.width"].to_list() == [380.0, 400.0, None, 1000.0]
    assert events["property.zip"].to_list() == ["10115", "10115", "SW1A", "SW1A"]


def test_shards_say_which_clock_their_times_follow(tmp_path: Path) -> None:
    dataset = prepare(
        log(tmp_path / "log.parquet", [("a", 1, "x")], clock="session"), tmp_path / "out", needs_buyers=False
    )
    assert pl.read_parquet_metadata(dataset.shards[0])["willbuy.clock"] == "session"
    assert dataset.first_time_ms is None


def test_equal_times_keep_the_order_of_files_and_lines(write: Callable[..., Path], tmp_path: Path) -> None:
    header = "event_time,event_type,product_id,category_id,category_code,brand,price,user_id,user_session\n"
    row = "2019-10-01 10:00:00 UTC,view,{},2,,b,1,5,s\n"
    write("log/b.csv", header + row.format(3))
    path = write("log/a.csv", header + row.format(2) + row.format(1)).parent
    dataset = prepare(path, tmp_path / "out", keep_open_sessions=True, block_bytes=150, needs_buyers=False)
    assert dataset.scan().collect()["item_id"].to_list() == ["2", "1", "3"]


def test_paths_with_the_signs_of_patterns_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "shop [2019-*]"
    folder.mkdir()
    dataset = prepare(shop(folder / "log?.parquet"), folder / "out")
    assert dataset.scan().collect().height == dataset.counts.sessions.events > 0


def test_progress_is_told_to_the_end_of_both_stages(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    prepare(shop(tmp_path / "log.parquet"), tmp_path / "out", progress=lambda *news: told.append(news))
    assert [stage for stage, _, _ in told] == ["reading", "sessions"]
    assert all(done == total for _, done, total in told)


def test_a_log_without_a_usable_session_says_where_the_rows_went(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write("log.csv", "sid,ts,what\na,soon,view\n")
    mapping = ColumnMapping(session_id="sid", timestamp="ts", event_name="what")
    with pytest.raises(SourceError, match=r"no session is left: 1 rows read, 1 rejected \(not a time\)"):
        prepare(path, tmp_path / "out", mapping=mapping)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.csv"]


def test_a_prepared_dataset_is_replaced(tmp_path: Path) -> None:
    prepare(shop(tmp_path / "log.parquet"), tmp_path / "out")
    dataset = prepare(
        log(tmp_path / "new.parquet", [("a", 1, "x")], clock="session"), tmp_path / "out", needs_buyers=False
    )
    assert dataset.counts.sessions.sessions == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.parquet", "new.parquet", "out"]


def test_a_broken_run_leaves_the_old_dataset_alone(write: Callable[..., Path], tmp_path: Path) -> None:
    old = prepare(shop(tmp_path / "log.parquet"), tmp_path / "out")
    with pytest.raises(SourceError):
        prepare(write("log.csv", "sid,ts,what\n"), tmp_path / "out", format="rees46")
    assert read_prepared(tmp_path / "out") == old
    assert not list(tmp_path.glob(".out*"))


def test_a_folder_of_something_else_is_left_alone(write: Callable[..., Path], tmp_path: Path) -> None:
    precious = write("out/precious.txt", "keep me")
    with pytest.raises(PreparedDatasetError, match="left alone"):
        prepare(shop(tmp_path / "log.parquet"), tmp_path / "out")
    assert precious.read_text() == "keep me"


def test_prepared_sessions_are_no_log(tmp_path: Path) -> None:
    prepare(shop(tmp_path / "log.parquet"), tmp_path / "out")
    with pytest.raises(SourceError, match="prepared sessions already"):
        prepare(tmp_path / "out", tmp_path / "again")


@pytest.mark.parametrize("idle_timeout_s", [0, -1, float("nan"), float("inf")])
def test_an_idle_time_that_is_none_is_refused(tmp_path: Path, idle_timeout_s: float) -> None:
    with pytest.raises(ValueError, match="idle_timeout_s must be positive"):
        prepare(shop(tmp_path / "log.parquet"), tmp_path / "out", idle_timeout_s=idle_timeout_s)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(format_version=99), "format version 99; this release reads 1"),
        (lambda document: document.update(kind="recipes"), "no prepared sessions here"),
        (lambda document: document.pop("counts"), "damaged"),
        (lambda document: document.update(shards=["events-0007.parquet"]), "shard events-0007.parquet is missing"),
    ],
)
def test_a_dataset_that_cannot_be_read_is_explained(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    prepare(shop(tmp_path / "log.parquet"), tmp_path / "out")
    file = tmp_path / "out" / "dataset.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    with pytest.raises(PreparedDatasetError, match=message):
        read_prepared(tmp_path / "out")


def test_a_missing_dataset_is_explained(tmp_path: Path) -> None:
    with pytest.raises(PreparedDatasetError, match="no prepared sessions here"):
        read_prepared(tmp_path / "absent")


def test_a_visitors_idle_time_is_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("v,t,e\n" + "".join(f"a,{START_MS + at},view\n" for at in (0, 59_999, 119_999, 180_000, 600_000)))
    mapping = ColumnMapping(visitor_id="v", timestamp="t", event_name="e", time_format="epoch_ms")
    dataset = prepare(path, tmp_path / "out", format="mapping", mapping=mapping, idle_timeout_s=60, needs_buyers=False)
    assert dataset.sessions()["events"].to_list() == [3, 1]


def test_one_value_that_is_no_number_anywhere_makes_a_property_a_category(tmp_path: Path) -> None:
    for number, where in enumerate((0, 500, 999)):
        path = tmp_path / f"log-{number}.csv"
        lines = (f"s{at // 2},{START_MS + at},view,{'x' if at == where else at}\n" for at in range(1000))
        path.write_text("s,t,e,p\n" + "".join(lines))
        mapping = ColumnMapping(
            session_id="s",
            timestamp="t",
            event_name="e",
            time_format="epoch_ms",
            properties=(PropertyColumn("p", "p"),),
        )
        dataset = prepare(
            path,
            tmp_path / f"out-{number}",
            format="mapping",
            mapping=mapping,
            keep_open_sessions=True,
            needs_buyers=False,
            block_bytes=2000,
        )
        assert [spec.kind for spec in dataset.properties] == ["category"]


def test_a_shard_has_at_most_its_bytes_of_text(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("s,t,e\n" + "".join(f"s{at // 2},{START_MS + at},view\n" for at in range(1000)))
    mapping = ColumnMapping(session_id="s", timestamp="t", event_name="e", time_format="epoch_ms")
    for share, shards in ((1.0, 1), (0.6, 2), (0.51, 2), (0.34, 3)):
        dataset = prepare(
            path,
            tmp_path / "out",
            format="mapping",
            mapping=mapping,
            keep_open_sessions=True,
            needs_buyers=False,
            shard_bytes=round(share * path.stat().st_size),
        )
        assert len(dataset.shards) == shards
