"""One small file a case: what a log holds, read right through the command line, or refused with the reason."""

import json
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from training.cli import cli
from training.data.prepared import PreparedDataset, read_prepared

FILES = Path(__file__).parent / "files"
COLUMNS = ("--column", "session_id=sid", "--column", "timestamp=ts", "--column", "event_name=what")


@dataclass(frozen=True)
class Case:
    """A log and what is right.

    Attributes:
        file: under `files`.
        options: of `willbuy prepare`.
        labels: whether each session bought.
        first, last: times of the first and the last event that is kept.
        counts: some counts of `dataset.json`.
        warns: a part of each warning that is expected.
    """

    file: str
    labels: dict[str, bool]
    first: str
    last: str
    options: tuple[str, ...] = COLUMNS
    counts: dict[str, Any] = field(default_factory=dict)
    warns: tuple[str, ...] = ()
    keeps_open: bool = True


def prepared(path: Path, out: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["prepare", str(path), "--out", str(out), *options])
    return result.exit_code, " ".join(result.output.split())


TEN = "2019-10-01 10:00:00"
BOUGHT = {"s1": True, "s2": False}
WITH_ITEM = (*COLUMNS, "--column", "item_id=item")
WITH_CATEGORY = (*COLUMNS, "--column", "item_category=cat")
REES46: dict[str, Any] = {"options": (), "first": TEN, "last": "2019-10-01 10:05:00"}

CASES = [
    Case("rees46-negative-price.csv", BOUGHT, **REES46, warns=("price: negative (1)",)),
    Case("rees46-thousands.csv", BOUGHT, **REES46, warns=("price: not a number (1)",)),
    Case("rees46-currency.csv", BOUGHT, **REES46, warns=("price: not a number (1)",)),
    Case("rees46-latin-1-brand.csv", BOUGHT, **REES46, warns=("brand: not valid UTF-8 (1)",)),
    Case(
        "missing-last-field.csv",
        BOUGHT,
        TEN,
        "2019-10-01 10:05:00",
        (*WITH_ITEM, "--column", "price=price"),
        {"rows_rejected": 0},
        ("price: too few fields (1)", "item: too few fields (1)"),
    ),
    Case(
        "rees46-undefined-sessions.csv",
        BOUGHT,
        TEN,
        "2019-10-01 10:00:30",
        (),
        {"rows_rejected": 6},
        (
            "6 rows have an id that stands for nothing: undefined (2)",
            "1 rejected rows say purchase and name no session",
        ),
    ),
    Case(
        "retailrocket-seconds.csv",
        {"257597-1": True, "257597-2": False, "1-1": False},
        "2015-06-02 05:02:12",
        "2015-06-17 05:02:12",
        ("--time-unit", "s"),
    ),
    Case("microseconds.csv", BOUGHT, TEN, "2019-10-01 10:05:00", (*COLUMNS, "--time-format", "epoch_us")),
    Case(
        "one-row-in-2037.csv",
        BOUGHT,
        TEN,
        "2019-10-01 10:05:00",
        counts={"sessions_open": 1, "rows_rejected": 1},
        keeps_open=False,
    ),
    Case(
        "one-row-years-later.csv",
        BOUGHT,
        TEN,
        "2019-10-01 10:05:00",
        counts={"sessions_open": 2},
        warns=("1 of 6 rows are 1,188 days later than all others",),
        keeps_open=False,
    ),
    Case(
        "fractions.csv",
        BOUGHT,
        "2019-10-01 10:00:00.100",
        "2019-10-01 10:00:30.500",
        (*WITH_ITEM, "--time-format", "%d.%m.%Y %H:%M:%S.%f"),
        {"rows_at_or_after_purchase": 2},
    ),
    Case(
        "twelve-hours.csv",
        BOUGHT,
        "2019-10-01 00:30:00",
        "2019-10-01 11:59:00",
        (*COLUMNS, "--time-format", "%m/%d/%Y %I:%M %p"),
    ),
    Case("whole-minutes.csv", BOUGHT, TEN, "2019-10-01 10:05:00", WITH_ITEM, {"events": 3}),
    Case("blanks-and-quotes.csv", BOUGHT, TEN, "2019-10-01 10:05:00", WITH_CATEGORY),
    Case("byte-order-mark.csv", BOUGHT, TEN, "2019-10-01 10:05:00", WITH_CATEGORY),
    *(
        Case(
            "shared-session-ids.csv",
            {"u1:1569924000": True, "u2:1569924000": False},
            TEN,
            "2019-10-01 10:05:00",
            ("--column", "timestamp=ts", "--column", "event_name=what", *key),
        )
        for key in (
            ("--session-key", "user_pseudo_id,ga_session_id"),
            ("--visitor", "user_pseudo_id", "--session", "ga_session_id"),
        )
    ),
    Case(
        "daily-session-numbers.csv",
        {"1": True},
        TEN,
        "2019-10-02 10:03:00",
        ("--session", "number", *COLUMNS[2:]),
        warns=("1 session ids span more than a day",),
    ),
    Case(
        "daily-session-numbers.csv",
        {"1:2019-10-01": False, "1:2019-10-02": True},
        TEN,
        "2019-10-02 10:03:00",
        ("--session-key", "number,day", *COLUMNS[2:]),
    ),
    Case("two-kinds-of-ids", {"1": True, "2": False}, TEN, "2019-10-01 10:05:00", WITH_ITEM),
    Case(
        "looks-like-a-purchase.csv",
        {"s1": True, "s2": True},
        TEN,
        "2019-10-01 10:00:30",
        (*COLUMNS, "--event", "Payment Success=purchase"),
    ),
    Case(
        "looks-like-a-purchase.csv",
        BOUGHT,
        TEN,
        "2019-10-01 10:05:00",
        (*COLUMNS, "--event", "Payment Success=Payment Success"),
    ),
    Case(
        "semicolons-date-and-time-apart.csv",
        {"7": True, "8": False},
        "2016-03-01 10:00:00",
        "2016-03-01 10:07:00",
        (
            *("--column", "session_id=COOKIE", "--column", "timestamp=Date+Time", "--column", "event_name=Webpage"),
            *("--event", "payres=purchase", "--drop", "end_session"),
        ),
        {"rows_dropped": 2, "events": 4},
        ("fields are separated by semicolon",),
    ),
    Case(
        "windows-1252.csv",
        BOUGHT,
        TEN,
        "2019-10-01 10:05:00",
        WITH_CATEGORY,
        warns=("read as windows-1252", "separated by semicolon"),
    ),
    Case(
        "coarse-times.csv",
        {f"s{number}": number % 2 == 1 for number in range(6)},
        TEN,
        "2019-10-01 10:05:00",
        (*COLUMNS, "--equal-rows", "drop"),
        {"rows_duplicate": 12},
        ("12 rows (50%) agree with another in every column that is read, and count once",),
    ),
    Case(
        "coarse-times.csv",
        {"s1": True, "s2": False},
        TEN,
        "2019-10-01 10:05:00",
        counts={"rows_duplicate": 0, "sessions": 6},
        warns=("12 rows (50%) agree with another in every column that is read, and count as events of their own",),
    ),
    Case(
        "equal-rows-with-ids.csv",
        BOUGHT,
        TEN,
        "2019-10-01 10:05:00",
        (*COLUMNS, "--column", "event_id=id"),
        {"rows_duplicate": 1, "events": 4},
    ),
    Case(
        "equal-rows-with-fractions.csv",
        BOUGHT,
        "2019-10-01 10:00:00.250",
        "2019-10-01 10:05:00",
        counts={"rows_duplicate": 1, "events": 2},
    ),
    Case(
        "decimal-commas.csv",
        BOUGHT,
        TEN,
        "2019-10-01 10:05:00",
        (*COLUMNS, "--column", "price=price"),
        warns=("price: not a number (3)", "column 'price' has decimal commas: --decimal-comma reads such numbers"),
    ),
    Case(
        "day-and-month-early.csv",
        {"s1": True, "s2": False},
        "2019-01-10 10:00:00",
        "2019-02-10 10:05:00",
        (*COLUMNS, "--time-format", "%m/%d/%Y %H:%M:%S"),
        warns=("all rows are on day 10 of a month, in 2 months", "--time-format '%d/%m/%Y %H:%M:%S' reads them"),
    ),
    Case(
        "twelve-hours-without-pm.csv",
        {"d1h5": True, "d5h12": False},
        "2019-10-01 01:10:00",
        "2019-10-05 12:20:00",
        counts={"sessions": 60, "buyers": 5},
        warns=("no row is after 12:59 or before 01:00",),
    ),
    Case(
        "clock-put-back.csv",
        BOUGHT,
        "2019-10-27 02:02:00",
        "2019-10-27 02:56:00",
        counts={"rows_at_or_after_purchase": 3},
        warns=("times step back 1 times, and only on nights on which clocks are put back",),
    ),
    Case(
        "float-seconds.csv",
        BOUGHT,
        "2019-10-01 10:00:00.123",
        "2019-10-01 10:05:00.500",
        (*COLUMNS, "--time-format", "epoch_s"),
    ),
    Case(
        "joined-with-headers.csv",
        BOUGHT,
        TEN,
        "2019-10-01 10:05:00",
        counts={"rows_read": 3, "rows_rejected": 0},
        warns=("1 lines repeat the header",),
    ),
    Case(
        "offsets-and-none.csv",
        BOUGHT,
        TEN,
        "2019-10-01 10:05:00",
        warns=("column 'ts': some times have an offset and others have none, which are read as UTC",),
    ),
    Case("separator-said.csv", BOUGHT, TEN, "2019-10-01 10:05:00"),
    Case("quotes-of-other-kinds.csv", BOUGHT, TEN, "2019-10-01 10:05:00", WITH_ITEM),
    Case("outcome-in-words.csv", BOUGHT, TEN, "2019-10-01 10:05:00", (*COLUMNS, "--column", "outcome=bought")),
    Case("separators-at-the-end.csv", BOUGHT, TEN, "2019-10-01 10:05:00", WITH_ITEM, {"rows_rejected": 0}),
    Case("separators-at-the-head.csv", BOUGHT, TEN, "2019-10-01 10:05:00"),
    Case("carriage-returns.csv", BOUGHT, TEN, "2019-10-01 10:05:00"),
    Case("zero-bytes.csv", BOUGHT, TEN, "2019-10-01 10:05:00", WITH_CATEGORY),
    Case("columns-in-other-orders", BOUGHT, TEN, "2019-10-01 10:05:00"),
    Case(
        "two-forms-of-an-accent.csv", {"s1": True, "r\u00e9n\u00e9": False}, TEN, "2019-10-01 10:05:00", WITH_CATEGORY
    ),
    Case(
        "one-giant-session.csv",
        {"0": False, "s1": True, "s2": False},
        TEN,
        "2019-10-01 16:39:00",
        counts={"sessions": 21, "buyers": 10},
        warns=("implausible size or rate: '0' has 400 rows",),
    ),
]


def described(dataset: PreparedDataset) -> dict[str, Any]:
    events = dataset.scan().collect()
    times = pl.from_epoch(pl.Series([events["timestamp_ms"].min(), events["timestamp_ms"].max()]), "ms")
    return {
        "sessions": dataset.counts.sessions.sessions,
        "buyers": dataset.counts.sessions.buyers,
        "first": str(times[0]),
        "last": str(times[1]),
        "labels": dict(dataset.sessions().select("session_id", "outcome").iter_rows()),
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.file}-{' '.join(case.options)[-40:]}")
def test_a_log_is_read_right(case: Case, tmp_path: Path) -> None:
    options = (*case.options, *(("--keep-open-sessions",) if case.keeps_open else ()))
    code, output = prepared(FILES / case.file, tmp_path / "out", *options)
    assert code == 0, output
    dataset = read_prepared(tmp_path / "out")
    found, counts = described(dataset), dataset.to_dict()["counts"]
    sessions = case.counts.get("sessions", len(case.labels))
    assert (found["sessions"], found["buyers"]) == (sessions, case.counts.get("buyers", sum(found["labels"].values())))
    assert {session: found["labels"].get(session) for session in case.labels} == case.labels
    assert (found["first"][: len(case.first)], found["last"][: len(case.last)]) == (case.first, case.last)
    assert {name: counts.get(name, 0) for name in case.counts} == case.counts
    for warning in case.warns:
        assert warning in output
    # Every row is accounted for
    parts = ("lookup", "rejected", "dropped", "duplicate", "in_open_sessions", "at_or_after_purchase", "without_label")
    assert counts["rows_read"] == counts["events"] + sum(counts.get(f"rows_{part}", 0) for part in parts)


@pytest.mark.parametrize("name", ["out-time", "-a-comma-too-many", "-an-open-quote"])
def test_a_session_whose_purchase_cannot_be_read_is_left_out_and_never_relabelled(name: str, tmp_path: Path) -> None:
    # Given a log of two sessions, the purchase of one of which cannot be read, and a third that bought
    log = tmp_path / "2019-Oct.csv"
    more = "2019-10-01 11:00:00 UTC,view,1,2,,b,1,9,s3\n2019-10-01 11:01:00 UTC,purchase,1,2,,b,1,9,s3\n"
    log.write_text((FILES / f"rees46-purchase-with{name}.csv").read_text() + more)
    code, output = prepared(log, tmp_path / "out", "--keep-open-sessions")
    assert code == 0, output
    dataset = read_prepared(tmp_path / "out")
    assert described(dataset)["labels"] == {"s2": False, "s3": True}
    assert dataset.counts.sessions.sessions_without_label == 1
    assert dataset.counts.rows_rejected == 1
    assert "1 sessions are left out, since a row of theirs that says purchase could not be read" in output


REFUSED = [
    ("retailrocket-seconds.csv", (), "1433221332'. The times look like seconds: --time-unit s"),
    ("microseconds.csv", (*COLUMNS, "--time-format", "epoch_ms"), "The times look like microseconds: --time-unit us"),
    ("microseconds.csv", COLUMNS, "The times look like microseconds: --time-unit us"),
    (
        "day-and-month.csv",
        (*COLUMNS, "--time-format", "%m/%d/%Y %H:%M:%S"),
        "%m/%d/%Y %H:%M:%S, such as '13/10/2019 10:00:00'. The times look like --time-format '%d/%m/%Y %H:%M:%S'",
    ),
    ("days-first.csv", COLUMNS, "The times look like --time-format '%d.%m.%Y %H:%M'."),
    ("spreadsheet-days.csv", COLUMNS, "The times look like a spreadsheet's count of days"),
    ("spreadsheet-days.csv", (*COLUMNS, "--time-unit", "s"), "The times look like a spreadsheet's count of days"),
    ("float-seconds.csv", COLUMNS, "The times look like seconds: --time-unit s"),
    ("zone-names.csv", COLUMNS, "A zone's name does not tell its offset (CEST)"),
    ("header-only.csv", COLUMNS, "no session is left: 0 rows read"),
    ("joined-in-another-order.csv", WITH_ITEM, "line 3 has the names of columns in another order"),
    ("dates-only.csv", COLUMNS, "column 'ts' holds dates without a time of day"),
    ("midnights-only.csv", COLUMNS, "column 'ts' holds dates without a time of day"),
    ("dates-only.csv", (*COLUMNS, "--time-format", "%Y-%m-%d"), "has no time of day"),
    ("fractions.csv", (*COLUMNS, "--time-format", "%d.%m.%Y %T"), "%T is no directive of Python's strptime"),
    ("exponents.csv", (*COLUMNS, "--time-format", "epoch_ms"), "3 rejected (a number in exponent form"),
    (
        "looks-like-a-purchase.csv",
        COLUMNS,
        "Say what it is: --event 'Payment Success=purchase' if it is one, --event 'Payment Success=Payment Success' if",
    ),
    (
        "looks-like-a-purchase.csv",
        COLUMNS,
        "is not; the log's events by count: view_item (2), purchase (1), Payment Success (1)",
    ),
    (
        "purchase-by-another-name.csv",
        COLUMNS,
        "no row of the log is a purchase. Name the event that is one: --event THEIRS=purchase; the log's events by",
    ),
    (
        "looks-like-a-purchase.csv",
        (*COLUMNS, "--event", "Payment Sucess=purchase"),
        "no event of the log is called 'Payment Sucess'; did you mean 'Payment Success'?",
    ),
    ("looks-like-a-purchase.csv", (*COLUMNS, "--drop", "end_session"), "no event of the log is called 'end_session'"),
    ("one-row-in-2037.csv", (*COLUMNS, "--column", "price=cost"), "no column is called 'cost' (for price)"),
    ("one-row-in-2037.csv", (*COLUMNS, "--time-unit", "h"), "unknown time unit 'h'; known: s, ms, us, ns"),
    ("coarse-times.csv", (*COLUMNS, "--equal-rows", "maybe"), "equal_rows must be keep or drop, not 'maybe'"),
    ("one-row-in-2037.csv", (*COLUMNS, "--earliest", "soon"), "earliest must be a time such as 1990-01-01"),
    (
        "rees46-currency.csv",
        ("--event", "viev=view_item"),
        "no event of the log is called 'viev'; did you mean 'view'?",
    ),
]


@pytest.mark.parametrize(("file", "options", "reason"), REFUSED)
def test_a_log_that_would_be_misread_is_refused_with_the_reason(
    file: str, options: tuple[str, ...], reason: str, tmp_path: Path
) -> None:
    code, output = prepared(FILES / file, tmp_path / "out", *options, "--keep-open-sessions")
    assert code == 1
    assert reason in output
    assert "Next:" not in output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("Completed Order", "Order Placed", "transaction", "checkout_completed", "buy", "ecommerceOrder", "purchase"),
        *("PURCHASES", "purchase_", "transact\u0131on", "TRANSACT\u0130ON", "\uff50urchase"),
    ],
)
def test_a_purchase_by_its_documented_name_makes_a_buyer_and_stands_in_the_data(name: str, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text((FILES / "purchase-by-another-name.csv").read_text().replace("NAME", name))
    code, output = prepared(log, tmp_path / "out", *COLUMNS, "--keep-open-sessions")
    assert code == 0, output
    dataset = read_prepared(tmp_path / "out")
    assert described(dataset)["labels"] == BOUGHT
    assert dataset.report["purchase_names"] == [name]


def test_a_canonical_table_in_seconds_is_refused_with_its_unit(tmp_path: Path) -> None:
    log = tmp_path / "log.parquet"
    rows = [("a", 1_569_924_000, "view_item"), ("a", 1_569_924_120, "purchase")]
    pl.DataFrame(rows, schema=["session_id", "timestamp_ms", "event_name"], orient="row").write_parquet(log)
    code, output = prepared(log, tmp_path / "out", "--keep-open-sessions")
    assert (code, "The times look like seconds: --time-unit s" in output) == (1, True)
    code, output = prepared(log, tmp_path / "out", "--keep-open-sessions", "--time-unit", "s")
    assert code == 0, output
    assert described(read_prepared(tmp_path / "out"))["first"].startswith(TEN)


def test_the_columns_of_blanks_and_quotes_have_one_text(tmp_path: Path) -> None:
    files = {"blanks-and-quotes.csv": "shoes", "byte-order-mark.csv": "shoes", "zero-bytes.csv": "shoes"}
    for name, category in (files | {"two-forms-of-an-accent.csv": "Gr\u00f6\u00dfe"}).items():
        prepared(FILES / name, tmp_path / "out", *WITH_CATEGORY, "--keep-open-sessions")
        events = read_prepared(tmp_path / "out").scan().collect()
        assert set(events["item_category"]) == {category}
        assert set(events["event_name"]) == {"view_item"}


def test_quotes_of_other_kinds_are_no_part_of_a_value(tmp_path: Path) -> None:
    prepared(FILES / "quotes-of-other-kinds.csv", tmp_path / "out", *WITH_ITEM, "--keep-open-sessions")
    events = read_prepared(tmp_path / "out").scan().collect()
    assert set(events.select("event_name", "item_id").iter_rows()) == {("view_item", 'the "big" one')}


def test_floats_too_small_to_count_seconds_are_no_times(tmp_path: Path) -> None:
    log = tmp_path / "log.parquet"
    frame = pl.DataFrame({"sid": ["s1", "s1"], "ts": [1569924000.0, 1569924060.0], "what": ["view_item", "purchase"]})
    frame.with_columns(pl.col("ts").cast(pl.Float32)).write_parquet(log)
    code, output = prepared(log, tmp_path / "out", *COLUMNS, "--time-format", "epoch_s", "--keep-open-sessions")
    assert (code, "2 rejected (a number too large to be exact)" in output) == (1, True)
    frame.write_parquet(log)
    assert prepared(log, tmp_path / "out", *COLUMNS, "--time-format", "epoch_s", "--keep-open-sessions")[0] == 0


def test_a_thousand_with_a_point_is_no_fraction_beside_decimal_commas(tmp_path: Path) -> None:
    options = (*COLUMNS, "--column", "price=price", "--keep-open-sessions")
    code, output = prepared(FILES / "decimal-commas.csv", tmp_path / "out", *options)
    assert code == 0, output
    assert read_prepared(tmp_path / "out").scan().collect()["price"].to_list() == [None, None]


def test_decimal_commas_are_read_where_they_are_said(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    rows = ["1.299", "59,90", "1.299,00", "-1,5", "12.5", " 7 ", "1,299.00"]
    lines = [f"s1;2019-10-01 10:00:{second:02};view_item;{price};{price}" for second, price in enumerate(rows)]
    log.write_text("\n".join(["sid;ts;what;price;size", *lines, "s1;2019-10-01 10:01:00;purchase;;"]) + "\n")
    options = ("--column", "price=price", "--property", "size:number=size", "--keep-open-sessions", "--decimal-comma")
    code, output = prepared(log, tmp_path / "out", *COLUMNS, *options)
    assert code == 0, output
    assert "price: negative (1)" in output
    assert "has decimal commas" not in output
    events = read_prepared(tmp_path / "out").scan().collect().sort("timestamp_ms")
    assert events["price"].to_list() == [1299.0, 59.9, 1299.0, None, None, 7.0, None]
    assert events["property.size"].to_list() == [1299.0, 59.9, 1299.0, -1.5, None, 7.0, None]


LOCAL_TIMES = [
    ("2019-10-27 01:30:00", "2019-10-26T23:30:00"),
    ("2019-10-27 02:30:00", "2019-10-27T00:30:00"),  # occurs twice; the first is taken
    ("2019-10-27T03:30:00.5", "2019-10-27T02:30:00.5"),
    ("2019-10-27 03:30:00Z", "2019-10-27T03:30:00"),
    ("2019-10-27 06:30:00+02:00", "2019-10-27T04:30:00"),
    ("2019-10-28", "2019-10-27T23:00:00"),
]


def _log_of_times(path: Path, times: Sequence[str]) -> Path:
    rows = [f"s1,{time},view_item" for time in times]
    path.write_text("\n".join(["sid,ts,what", *rows, f"s1,{times[-1]},purchase"]) + "\n")
    return path


def test_times_of_a_zone_are_read_in_it(tmp_path: Path) -> None:
    log = _log_of_times(tmp_path / "log.csv", [given for given, _ in LOCAL_TIMES])
    zone = ("--time-zone", "Europe/Berlin", "--idle-timeout-s", "86400")
    code, output = prepared(log, tmp_path / "out", *COLUMNS, *zone, "--keep-open-sessions")
    assert (code, "are read as UTC" in output) == (0, False), output
    events = read_prepared(tmp_path / "out").scan().collect().sort("timestamp_ms")
    expected = [datetime.fromisoformat(utc).replace(tzinfo=UTC).timestamp() * 1000 for _, utc in LOCAL_TIMES]
    assert events["timestamp_ms"].to_list() == expected


def test_typed_times_and_patterns_are_read_in_a_zone(tmp_path: Path) -> None:
    times = [datetime(2019, 7, 1, 10, 0), datetime(2019, 7, 1, 10, 5)]  # noqa: DTZ001 - local ones
    frame = pl.DataFrame({"sid": ["s1", "s1"], "ts": times, "what": ["view_item", "purchase"]})
    frame.write_parquet(tmp_path / "log.parquet")
    frame.with_columns(pl.col("ts").dt.strftime("%d.%m.%Y %H:%M")).write_csv(tmp_path / "log.csv")
    options = (*COLUMNS, "--keep-open-sessions", "--time-zone", "Asia/Tokyo")
    for name, others in (("log.parquet", ()), ("log.csv", ("--time-format", "%d.%m.%Y %H:%M"))):
        code, output = prepared(tmp_path / name, tmp_path / "out", *options, *others)
        assert code == 0, output
        (first,) = read_prepared(tmp_path / "out").scan().collect()["timestamp_ms"]
        assert first == datetime(2019, 7, 1, 1, 0, tzinfo=UTC).timestamp() * 1000


def test_a_time_that_clocks_skip_is_rejected(tmp_path: Path) -> None:
    log = _log_of_times(tmp_path / "log.csv", ["2019-03-31 01:50:00", "2019-03-31 02:30:00", "2019-03-31 03:10:00"])
    options = (*COLUMNS, "--time-zone", "Europe/Berlin", "--keep-open-sessions")
    code, output = prepared(log, tmp_path / "out", *options)
    assert (code, "a time that clocks skip in its zone 1 log.csv:3" in output) == (0, True), output
    assert read_prepared(tmp_path / "out").scan().collect().height == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--time-zone", "Mars/Base"), "unknown time zone 'Mars/Base'; expected a name such as Europe/Berlin"),
        (("--time-zone", "Europe/Berlin", "--time-format", "epoch_s"), "a time zone does not go with times in the"),
    ],
)
def test_a_zone_that_means_nothing_is_refused(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    log = _log_of_times(tmp_path / "log.csv", ["2019-10-01 10:00:00"])
    code, output = prepared(log, tmp_path / "out", *COLUMNS, *options)
    assert (code, message in output) == (1, True), output


def test_a_log_in_local_time_is_asked_for_its_zone(tmp_path: Path) -> None:
    log = _log_of_times(tmp_path / "log.csv", ["2019-10-01 10:00:00", "2019-10-01 10:01:00"])
    _, output = prepared(log, tmp_path / "out", *COLUMNS, "--keep-open-sessions")
    assert "column 'ts': times without an offset are read as UTC" in output
    log = _log_of_times(tmp_path / "log.csv", ["2019-10-01 10:00:00Z", "2019-10-01 10:01:00 UTC"])
    _, output = prepared(log, tmp_path / "out", *COLUMNS, "--keep-open-sessions")
    assert "are read as UTC" not in output


def test_words_for_nothing_are_no_values(tmp_path: Path) -> None:
    options = (*WITH_CATEGORY, "--column", "item_id=item", "--column", "price=price")
    properties = ("--property", "plan=plan", "--property", "width=width", "--keep-open-sessions")
    code, output = prepared(FILES / "words-for-nothing.csv", tmp_path / "out", *options, *properties)
    assert code == 0, output
    dataset = read_prepared(tmp_path / "out")
    columns = ["item_id", "item_category", "price", "property.plan", "property.width"]
    assert dataset.scan().select(columns).collect().rows() == [
        (None, None, None, "gold", 390.0),
        ("SKU-1", "shoes", None, None, None),
        (None, None, None, None, 410.0),
    ]
    assert [spec.kind for spec in dataset.properties] == ["category", "number"]


def test_placeholder_ids_are_ids_where_the_setting_says_so(tmp_path: Path) -> None:
    log = tmp_path / "2019-Oct.csv"
    shutil.copy(FILES / "rees46-undefined-sessions.csv", log)
    code, output = prepared(log, tmp_path / "out", "--keep-open-sessions", "--keep-placeholder-ids")
    assert code == 0, output
    assert described(read_prepared(tmp_path / "out"))["labels"]["undefined"] is True


def test_the_report_stands_in_the_description(tmp_path: Path) -> None:
    prepared(FILES / "two-kinds-of-ids", tmp_path / "out", *WITH_ITEM, "--keep-open-sessions")
    report = json.loads((tmp_path / "out" / "dataset.json").read_text())["report"]
    assert report["names"] == [
        {"name": "view_item", "read_as": "view_item", "rows": 3},
        {"name": "purchase", "read_as": "purchase", "rows": 1},
    ]
    assert report["rows_by_hour"][10] == sum(report["rows_by_hour"]) == 4
    assert [entry["rows"] for entry in report["largest_sessions"]] == [2, 2]


def one_row_each(sessions: int, more: str = "") -> str:
    rows = [f"s{number},2019-10-01 10:{number // 60:02}:{number % 60:02},purchase\n" for number in range(sessions)]
    return "sid,ts,what\n" + "".join(rows) + more


@pytest.mark.parametrize(
    ("text", "options", "is_refused"),
    [
        ("visits_count,pages_total,duration_avg,converted\n3,9,41.5,1\n1,2,3.5,0\n", (), True),
        ("visits_count;pages_total;duration_avg;converted\n3;9;41.5;1\n1;2;3.5;0\n", (), True),
        # With the time of an event, it may be a log of another form
        ("event_time,visits_count,pages_total,duration_avg,converted\n2019-10-01,3,9,41.5,1\n", (), False),
        # No outcome
        ("visits_count,pages_total,duration_avg\n3,9,41.5\n", (), False),
        (one_row_each(100), COLUMNS, True),
        # Few sessions may have one row each by chance
        (one_row_each(99), COLUMNS, False),
        # and one with a second row shows that rows are events.
        (one_row_each(100, "s7,2019-10-01 09:00:00,view_item\n"), COLUMNS, False),
    ],
)
def test_a_table_of_one_row_a_session_is_refused_with_that_reason(
    text: str, options: tuple[str, ...], is_refused: bool, tmp_path: Path
) -> None:
    log = tmp_path / "log.csv"
    log.write_text(text)
    code, output = prepared(log, tmp_path / "out", *options, "--keep-open-sessions")
    assert ("one row a session, not events: willbuy needs the events" in output) == is_refused
    assert code == 1 or not is_refused


def test_the_range_of_plausible_times_is_a_setting(tmp_path: Path) -> None:
    # Given a session of three years ago, and one that ends three days from now
    now = datetime.now(UTC)
    days = {"old": -1100, "new": 3}
    rows = [
        f"{name},{now + timedelta(days=offset, minutes=minute):%Y-%m-%d %H:%M:%S},{what}\n"
        for name, offset in days.items()
        for minute, what in enumerate(["view_item", "view_item", "purchase"])
    ]
    log = tmp_path / "log.csv"
    log.write_text("sid,ts,what\n" + "".join(rows))
    kept = {}
    for name, options in {
        "default": (),
        "ahead": ("--days-ahead", "4"),
        "late": ("--days-ahead", "4", "--earliest", str(now.date())),
    }.items():
        code, output = prepared(log, tmp_path / name, *COLUMNS, "--keep-open-sessions", *options)
        assert code == 0, output
        kept[name] = set(described(read_prepared(tmp_path / name))["labels"])
    # Then the range decides which sessions there are
    assert kept == {"default": {"old"}, "ahead": {"old", "new"}, "late": {"new"}}


@pytest.mark.parametrize(("seconds", "is_named"), [(3, True), (60, False)])
def test_a_session_with_an_implausible_rate_is_named(seconds: int, is_named: bool, tmp_path: Path) -> None:
    # Given a session of forty rows, in three seconds or in a minute, among sessions that are no smaller
    rows = [
        f"{name},2019-10-01 10:00:{number * span // 40:02}.{number:03},{'view_item' if number else 'page_view'}\n"
        for name, span in {"robot": seconds, **{f"s{visit}": 59 for visit in range(9)}}.items()
        for number in range(40)
    ]
    log = tmp_path / "log.csv"
    log.write_text("sid,ts,what\n" + "".join(rows) + "s1,2019-10-01 10:01:00,purchase\n")
    code, output = prepared(log, tmp_path / "out", *COLUMNS, "--keep-open-sessions")
    assert code == 0, output
    assert ("implausible size or rate: 'robot' has 40 rows" in output) == is_named


def test_the_option_that_an_error_names_works_as_it_is_written(tmp_path: Path) -> None:
    # Given an address with equals signs and a quote that reads like a purchase
    log = FILES / "addresses-that-look-like-purchases.csv"
    _, output = prepared(log, tmp_path / "out", *COLUMNS, "--keep-open-sessions")
    options = shlex.split(output.partition("Say what it is: ")[2].partition("; the log's events")[0])
    name = "/checkout/thank-you?a=1&name=O'Hara"
    # When either option is used
    assert [text for text in options if "=" in text] == [f"{name}=purchase", f"{name}={name}"]
    code, output = prepared(log, tmp_path / "out", *COLUMNS, "--keep-open-sessions", "--event", f"{name}=purchase")
    assert code == 0, output
    assert described(read_prepared(tmp_path / "out"))["labels"] == BOUGHT
    _, output = prepared(log, tmp_path / "other", *COLUMNS, "--keep-open-sessions", "--event", f"{name}={name}")
    # Then it is what it says
    assert "no row of the log is a purchase" in output
