"""The adapters on real logs, where they are at hand, against counts taken from the files without the adapters."""

import csv
import gzip
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from training.data.prepare import prepare


def rows_of(path: Path, separator: str) -> list[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file, delimiter=separator))


def test_rees46_keeps_every_row_but_the_cut_one_and_what_it_counts(datasets: Path, tmp_path: Path) -> None:
    path = datasets / "rees46_sample" / "2019-Oct.csv.gz"
    raw = rows_of(path, ",")
    dataset = prepare(path, tmp_path / "out", keep_open_sessions=True)
    counts = dataset.counts
    assert counts.rows_read == len(raw) == 17_435
    assert counts.rejected == {"too few fields": 1}
    assert pl.read_csv(tmp_path / "out" / "rejected.csv")["line"].to_list() == [len(raw) + 1]
    rows = counts.sessions
    assert rows.events + rows.rows_at_or_after_purchase + rows.rows_duplicate == len(raw) - 1
    first_purchase: dict[str, str] = {}
    for row in raw[:-1]:
        if row["event_type"] == "purchase":
            first_purchase.setdefault(row["user_session"], row["event_time"])
    before = Counter(
        row["user_session"] for row in raw[:-1] if row["event_time"] < first_purchase.get(row["user_session"], "9999")
    )
    sessions = dataset.sessions()
    assert set(sessions["session_id"]) == set(before)
    assert set(sessions.filter("outcome")["session_id"]) == set(before) & set(first_purchase)


def test_rees46_drops_sessions_that_the_end_of_the_log_cuts(datasets: Path, tmp_path: Path) -> None:
    dataset = prepare(datasets / "rees46_sample", tmp_path / "out")
    counts = dataset.counts.sessions
    assert counts.sessions_open > 0
    assert counts.sessions > 0
    assert counts.sessions + counts.sessions_open + counts.sessions_without_event_before_purchase == 5_066


def test_diginetica_sessions_end_before_their_purchase(datasets: Path, tmp_path: Path) -> None:
    folder = datasets / "diginetica_sample"
    views = rows_of(folder / "sample_train-item-views.csv.gz", ";")
    purchases = rows_of(folder / "train-purchases.csv.gz", ";")
    first_purchase_ms: dict[str, int] = {}
    for row in purchases:
        time_ms = int(row["timeframe"])
        first_purchase_ms[row["sessionId"]] = min(time_ms, first_purchase_ms.get(row["sessionId"], time_ms))
    expected = {
        (row["session_id"], row["item_id"])
        for row in views
        if int(row["timeframe"]) < first_purchase_ms.get(row["session_id"], 1 << 60)
    }
    dataset = prepare(folder, tmp_path / "out")
    events = dataset.scan().collect()
    assert set(events.select("session_id", "item_id").rows()) == expected
    assert dataset.counts.sessions.buyers == 138
    assert dataset.counts.sessions.sessions == 2_986
    assert events["item_category"].null_count() == 0


def test_clickstreamdmm_keeps_every_page_of_every_session(datasets: Path, tmp_path: Path) -> None:
    dataset = prepare(datasets / "clickstreamdmm", tmp_path / "out")
    counts = dataset.counts
    assert counts.rows_read == counts.sessions.events == 260_083
    assert counts.sessions.sessions == 19_503
    assert counts.sessions.buyers / counts.sessions.sessions == pytest.approx(0.228, abs=5e-4)
    lengths = dataset.sessions()["events"]
    assert (lengths.min(), lengths.median(), lengths.max()) == (6, 10.0, 49)
    assert {declared.scope for declared in dataset.properties} == {"session"}
