"""What `willbuy prepare` shows of a log: the same facts in the terminal, on the page and in the dry run."""

import io
import re
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from typer.testing import CliRunner

from training.cli import cli
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.data.sources import ColumnMapping
from training.report.log_page import share_text, write_log_page
from training.report.log_summary import LogSummary, duration_text, summarise
from training.report.log_table import log_tables

MAPPING = ColumnMapping.from_options(
    ["session_id=sid", "timestamp=at", "event_name=what"], events=["put=add_to_cart"], properties=["device=device"]
)
BAD = ["<i>x</i>,yesterday,view,phone", ",2026-05-01T00:00:00Z,view,phone", "late,tomorrow,view,phone"]


def rows(sessions: int = 40) -> list[str]:
    """Sessions of 1 to 7 events, an hour apart; every fourth puts something into the cart and buys."""
    made = ["sid,at,what,device"]
    for number in range(sessions):
        at = f"2026-05-{1 + number // 24:02d}T{number % 24:02d}"
        made += [f"s{number},{at}:0{step}:00Z,view,phone" for step in range(1 + number % 7)]
        if number % 4 == 0:
            made += [f"s{number},{at}:20:00Z,put,phone", f"s{number},{at}:30:00Z,Order Completed,phone"]
    return [*made, made[1], "last,2026-05-09T00:00:00Z,view,phone", *BAD]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text("\n".join(rows()) + "\n")
    return path


@pytest.fixture
def dataset(log: Path, tmp_path: Path) -> PreparedDataset:
    return prepare(log, tmp_path / "out", mapping=MAPPING, equal_rows="drop")


@pytest.fixture
def summary(dataset: PreparedDataset) -> LogSummary:
    return summarise(dataset)


def test_every_row_has_a_fate(summary: LogSummary) -> None:
    fates = {fate.name: fate.rows for fate in summary.fates}
    assert fates == {
        "kept": 165,
        "at a purchase or later": 10,
        "in open sessions": 1,
        "duplicate": 1,
        "rejected": 3,
    }
    assert sum(fates.values()) == summary.dataset.counts.rows_read
    assert sum(fate.share for fate in summary.fates) == pytest.approx(1.0)


def test_rejected_rows_are_named_by_reason_with_their_lines(summary: LogSummary) -> None:
    first_bad = 1 + len(rows()) - len(BAD)
    assert [(found.reason, found.rows, found.where) for found in summary.rejections] == [
        ("at: not a time", 2, f"log.csv:{first_bad}, log.csv:{first_bad + 2}"),
        ("sid: missing", 1, f"log.csv:{first_bad + 1}"),
    ]


def test_only_the_first_lines_of_many_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("\n".join([*rows(), *["x,never,view,phone"] * 50]))
    found = summarise(prepare(path, tmp_path / "out", mapping=MAPPING)).rejections[0]
    assert found.rows == 52
    assert found.where.count("log.csv:") == 5
    assert found.where.endswith(", …")


def test_names_say_what_each_was_read_as(summary: LogSummary) -> None:
    named = {entry["name"]: (entry["read_as"], entry["rows"]) for entry in summary.names}
    assert named["put"] == ("add_to_cart", 10)
    assert named["Order Completed"] == ("purchase", 10)


def test_lengths_count_every_session_once(summary: LogSummary) -> None:
    assert sum(number for _, number in summary.lengths) == summary.dataset.counts.sessions.sessions == 40
    assert [label for label, _ in summary.lengths] == ["1", "2", "3", "4 to 5", "6 to 10"]
    assert summary.median_length == 4


def test_hours_and_largest_sessions(summary: LogSummary) -> None:
    assert sum(summary.hours) == summary.dataset.counts.rows_read - 3
    assert len(summary.largest) == 10
    assert summary.largest[0] == {
        "session_id": "s20",
        "rows": "9",
        "first": "2026-05-01 20:00:00",
        "length": "30 min",
    }


def test_warnings_are_in_plain_words(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    lonely = [f"server-{number},2026-05-02T00:00:0{number}Z,purchase,phone" for number in range(5)]
    path.write_text("\n".join([line.removesuffix("phone") for line in [*rows(), *lonely]]))
    told = " ".join(summarise(prepare(path, tmp_path / "out", mapping=MAPPING)).warnings)
    assert "3 rows (1.6%) could not be used" in told
    assert "5 purchases have no event before them" in told
    assert "10 buyers are few" in told
    assert "no row has a value of the properties device" in told


def test_the_terminal_has_eighty_columns_and_all_parts(summary: LogSummary) -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    for part in log_tables(summary):
        console.print(part)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for expected in ("40 sessions, 10 buyers (25.0 %)", "Rows", "Rejected", "Event names", "Hours of the day", "s20"):
        assert expected in text


def test_the_page_is_whole_and_escapes_what_the_log_says(log: Path, tmp_path: Path) -> None:
    log.write_text(log.read_text().replace(",view,", ",<b>view</b>,"))
    write_log_page(tmp_path / "log.html", summarise(prepare(log, tmp_path / "out", mapping=MAPPING)))
    page = (tmp_path / "log.html").read_text("utf-8")
    assert "&lt;b&gt;view&lt;/b&gt;" in page
    assert "<b>view" not in page
    assert not re.search(r"(?:src|href)=", page)
    for expected in ("Rows by fate", "log.csv:", "Events a session", "The largest sessions", "25.0 %"):
        assert expected in page


def test_a_log_without_calendar_times_has_a_page_too(tmp_path: Path) -> None:
    lines = [f"s{number},{step},{'purchase' if step == 2 else 'view'}" for number in range(9) for step in range(3)]
    (tmp_path / "log.csv").write_text("sid,at,what\n" + "\n".join(lines))
    mapping = ColumnMapping(session_id="sid", timestamp="at", event_name="what", time_format="elapsed_s")
    summary = summarise(prepare(tmp_path / "log.csv", tmp_path / "out", mapping=mapping))
    assert (summary.span, summary.hours) == (None, [])
    write_log_page(tmp_path / "log.html", summary)
    assert "Hours of the day" not in (tmp_path / "log.html").read_text()
    assert list(log_tables(summary))


def test_a_dry_run_shows_the_first_rows_and_writes_nothing(log: Path, tmp_path: Path) -> None:
    log.write_text("\n".join([rows()[0], *rows(300)[1:]]) + "\n")
    before = sorted(tmp_path.iterdir())
    options = ["--column", "session_id=sid", "--column", "timestamp=at", "--column", "event_name=what"]
    result = CliRunner().invoke(cli, ["prepare", str(log), *options, "--dry-run", "--rows", "50"])
    assert result.exit_code == 0, result.output
    assert "nothing was written" in result.output
    assert "Order Completed" in result.output
    assert sorted(tmp_path.iterdir()) == before


def test_a_dry_run_without_a_purchase_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        "sid,at,what\na,2026-05-01T00:00:00Z,view\na,2026-05-01T00:00:09Z,view\nb,2026-05-02T00:00:00Z,view\n"
    )
    options = ["--column", "session_id=sid", "--column", "timestamp=at", "--column", "event_name=what"]
    runner = CliRunner()
    assert runner.invoke(cli, ["prepare", str(path), *options, "--dry-run"]).exit_code == 0
    whole = runner.invoke(cli, ["prepare", str(path), *options, "--out", str(tmp_path / "out")])
    assert whole.exit_code == 1
    assert "no row of the log is a purchase" in whole.output


def test_prepare_needs_a_folder_unless_it_only_looks(log: Path) -> None:
    result = CliRunner().invoke(cli, ["prepare", str(log)])
    assert result.exit_code == 2
    assert "--dry-run" in result.output


def test_a_dry_run_reads_the_first_rows_of_every_file(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    for day in range(1, 5):
        lines = [f"s{day}-{n},2026-05-{day:02d}T{n % 24:02d}:{n // 24:02d}:00Z,view,phone" for n in range(1000)]
        (folder / f"{day}.csv").write_text("sid,at,what,device\n" + "\n".join(lines))
    dataset = prepare(folder, tmp_path / "out", mapping=MAPPING, first_rows=40, block_bytes=500, needs_buyers=False)
    days = dataset.scan().select(pl.from_epoch("timestamp_ms", "ms").dt.day().unique()).collect().to_series()
    assert set(days) >= {1, 2, 3}
    assert dataset.counts.rows_read < 200


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0 s"), (59_000, "59 s"), (3_600_000, "1 h"), (5_400_000, "1 h 30 min"), (90_061_000, "1 d 1 h")],
)
def test_durations_have_their_two_largest_units(milliseconds: int, text: str) -> None:
    assert duration_text(milliseconds) == text


@pytest.mark.parametrize(("share", "text"), [(0, "0.00 %"), (0.00001, "< 0.01 %"), (0.005, "0.50 %"), (0.25, "25.0 %")])
def test_small_shares_are_told_from_nothing(share: float, text: str) -> None:
    assert share_text(share) == text
