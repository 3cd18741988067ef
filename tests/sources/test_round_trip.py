"""Sessions that are known, written through random quirks of exporters, and read back equal."""

import gzip
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from training.data.prepare import prepare
from training.data.sources import SourceError
from training.data.sources.mapping import ColumnMapping

# Without shrinking: each example prepares a log, and what fails is small already.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
START_S = 1_569_924_000
NAMES = {"view": "view_item", "put": "add_to_cart", "paid": "purchase", "Product Viewed": "view_item", "help": "help"}
ITEMS = [None, "1", "SKU-2", "größe 42", "1.5", 'the "big" one', "a,b;c"]


@dataclass(frozen=True)
class Row:
    session: str
    at_ms: int
    name: str
    item: str | None
    price: float | None
    is_mobile: bool | None


@st.composite
def logs(draw: st.DrawFn) -> list[Row]:
    """Return rows of sessions whose events all differ in time, in order; at least one session buys."""
    rows = []
    for number in range(draw(st.integers(2, 5))):
        at_ms = START_S * 1000 + draw(st.integers(1, 10_000)) * 1000
        names = draw(st.lists(st.sampled_from(["view", "put", "Product Viewed", "help"]), min_size=1, max_size=5))
        if number == 0 or draw(st.booleans()):
            names.append("paid")
        for name in names:
            price = draw(st.sampled_from([None, 0.0, 5.0, 59.9]))
            item, is_mobile = draw(st.sampled_from(ITEMS)), draw(st.sampled_from([True, False]))
            rows.append(Row(f"{number + 1}", at_ms, name, item, price, is_mobile))
            at_ms += draw(st.integers(1, 600)) * 1000
    return rows


@dataclass(frozen=True)
class Quirks:
    """How an exporter writes."""

    separator: str
    quotes_all: bool
    blanks: str
    time: str
    missing: str
    truth: str
    floats: bool
    duplicates: int
    order: int
    ending: str
    mark: bool
    packed: bool
    encoding: str


QUIRKS = st.builds(
    Quirks,
    separator=st.sampled_from([",", ";", "\t", "|"]),
    quotes_all=st.booleans(),
    blanks=st.sampled_from(["", " ", "\u00a0", "  "]),
    time=st.sampled_from(
        [
            "iso",
            "Z",
            "+02:00",
            "epoch_s",
            "epoch_ms",
            "epoch_us",
            "epoch_ns",
            "%d.%m.%Y %H:%M:%S",
            "%m/%d/%Y %I:%M:%S.%f %p",
            "two",
        ]
    ),
    missing=st.sampled_from(["", "NULL", " "]),
    truth=st.sampled_from(["true", "True", "TRUE"]),
    floats=st.booleans(),
    duplicates=st.integers(0, 3),
    order=st.integers(0, 5),
    ending=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
    packed=st.booleans(),
    encoding=st.sampled_from(["utf-8", "cp1252"]),
)


def time_of(row: Row, quirks: Quirks) -> list[str]:
    units = {"epoch_s": 1000, "epoch_ms": 1}
    moment = datetime.fromtimestamp(row.at_ms / 1000, UTC)
    if quirks.time in units:
        return [str(row.at_ms // units[quirks.time])]
    if quirks.time in {"epoch_us", "epoch_ns"}:
        return [str(row.at_ms * (1000 if quirks.time == "epoch_us" else 1_000_000))]
    if quirks.time == "two":
        return [f"{moment:%Y-%m-%d}", f"{moment:%H:%M:%S}"]
    if "%" in quirks.time:
        return [moment.strftime(quirks.time)]
    zone = timezone(timedelta(hours=2)) if quirks.time == "+02:00" else UTC
    suffix = "" if quirks.time == "iso" else quirks.time
    return [f"{moment.astimezone(zone):%Y-%m-%d %H:%M:%S}{suffix}"]


def written(rows: list[Row], quirks: Quirks) -> bytes:
    def field(value: str) -> str:
        must = any(sign in value for sign in (quirks.separator, '"'))
        blanks = "" if quirks.separator in quirks.blanks else quirks.blanks
        text = '"' + value.replace('"', '""') + '"' if must or quirks.quotes_all else value
        return f"{blanks}{text}"

    def texts(row: Row) -> list[str]:
        session = f"{row.session}.0" if quirks.floats else row.session
        truth = quirks.missing if row.is_mobile is None else quirks.truth if row.is_mobile else "false"
        price = quirks.missing if row.price is None else str(row.price)
        return [session, *time_of(row, quirks), row.name, row.item or quirks.missing, price, truth]

    header = ["sid", *(["day", "hour"] if quirks.time == "two" else ["ts"]), "what", "item", "price", "mobile"]
    lines = [quirks.separator.join(map(field, each)) for each in (header, *map(texts, rows))]
    text = quirks.ending.join(lines) + quirks.ending
    encoded = text.encode(quirks.encoding)
    mark = b"\xef\xbb\xbf" if quirks.mark and quirks.encoding == "utf-8" else b""
    return gzip.compress(mark + encoded) if quirks.packed else mark + encoded


def mapping(rows: list[Row], quirks: Quirks) -> ColumnMapping:
    time = quirks.time if quirks.time.startswith(("epoch", "%")) else "iso"
    return ColumnMapping.from_options(
        [
            *("session_id=sid", "event_name=what", "item_id=item", "price=price"),
            f"timestamp={'day+hour' if quirks.time == 'two' else 'ts'}",
        ],
        [f"{name}={NAMES[name]}" for name in ("view", "put", "paid") if any(row.name == name for row in rows)],
        ["mobile:category=mobile"],
        time_format=time,
        missing_values=["NULL"],
    )


def expected(rows: list[Row]) -> list[tuple[Any, ...]]:
    bought = {row.session: row.at_ms for row in rows if row.name == "paid"}
    kept = [row for row in rows if row.at_ms < bought.get(row.session, row.at_ms + 1)]
    return sorted(
        (
            row.session,
            row.at_ms,
            NAMES[row.name],
            row.item,
            row.price,
            None if row.is_mobile is None else str(row.is_mobile).lower(),
            row.session in bought,
        )
        for row in kept
    )


@settings(deadline=None, max_examples=60, phases=PHASES, suppress_health_check=[HealthCheck.too_slow])
@given(logs(), QUIRKS)
def test_known_sessions_come_back_equal_whatever_the_exporters_quirks(rows: list[Row], quirks: Quirks) -> None:
    lines = [*rows, *rows[: quirks.duplicates]]
    lines = [*lines[quirks.order :], *lines[: quirks.order]]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.csv"
        log.write_bytes(written(lines, quirks))
        dataset = prepare(
            log,
            Path(folder) / "out",
            mapping=mapping(rows, quirks),
            keep_open_sessions=True,
            needs_buyers=False,
            equal_rows="drop",
        )
        columns = ["session_id", "timestamp_ms", "event_name", "item_id", "price", "property.mobile", "outcome"]
        assert sorted(dataset.scan().select(columns).collect().rows()) == expected(rows)
        assert dataset.counts.rows_rejected == 0
        assert dataset.report["nulled"] == {}
        assert dataset.counts.sessions.rows_duplicate == min(quirks.duplicates, len(rows))


@settings(deadline=None, max_examples=60, phases=PHASES, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=400)
    | st.lists(
        st.sampled_from(
            [
                b"sid,ts,what",
                b"\n",
                b",",
                b'"',
                b"\xff",
                b"s1",
                b"2019-10-01 10:00:00",
                b"purchase",
                b"\x00",
                b"1e400",
                b"\r",
                b";",
            ]
        ),
        max_size=60,
    ).map(b"".join)
    | st.lists(
        st.sampled_from(
            [
                b"s1,2019-10-01 10:00:00,view\n",
                b"s1,2019-10-01 10:00:05,purchase\n",
                b"\xff,1,2\n",
                b'"s1,,\n',
                b",,,,\n",
            ]
        ),
        max_size=9,
    ).map(lambda lines: b"sid,ts,what\n" + b"".join(lines)),
    st.booleans(),
)
def test_no_bytes_end_in_anything_but_sessions_or_one_reason(content: bytes, is_mapped: bool) -> None:
    columns = ColumnMapping.from_options(["session_id=sid", "timestamp=ts", "event_name=what", "item_id=what"])
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.csv"
        log.write_bytes(content)
        with suppress(SourceError):
            prepare(log, Path(folder) / "out", mapping=columns if is_mapped else None, keep_open_sessions=True)


@settings(deadline=None, max_examples=60, phases=PHASES, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_parquet_column_of_any_type_ends_in_anything_but_sessions_or_one_reason(data: st.DataObject) -> None:
    kinds: list[list[Any]] = [
        *(["a", "b", None], [b"a", b"\xff", None], [1, 2, None], [1.5, float("nan"), None], [True, False, None]),
        *([[1], [2], None], [{"x": 1}, {"x": 2}, None], [datetime(2019, 10, 1, 10), None, None], [None] * 3),  # noqa: DTZ001 - a naive column
        *(
            [timedelta(1), None, timedelta(2)],
            [date(2019, 10, 1), None, None],
            [2**60, 1, 0],
            [1e300, -1.0, 0.0],
        ),
    ]
    frame = pl.DataFrame(
        {name: pl.Series(data.draw(st.sampled_from(kinds))) for name in ("sid", "ts", "what", "item", "price", "plan")}
    )
    columns = ColumnMapping.from_options(
        ["session_id=sid", "timestamp=ts", "event_name=what", "item_id=item", "price=price"], properties=["plan=plan"]
    )
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.parquet"
        frame.write_parquet(log)
        with suppress(SourceError):
            prepare(log, Path(folder) / "out", mapping=columns, keep_open_sessions=True)
