"""Text tables: what is read, and that every line that cannot be is reported with its number."""

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.data.sources import ColumnMapping, SourceError
from training.data.sources.blocks import DAMAGED, LINE
from training.data.sources.text import TextLayout, header, read_text, sniffed_separator, split_quoted

MAPPING = ColumnMapping(
    session_id="sid",
    timestamp="ts",
    event_name="what",
    item_id="item",
    price="price",
    time_format="epoch_ms",
)
HEADER = "sid,ts,what,item,price\n"


def test_rows_keep_their_line_numbers_past_blank_lines(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write("log.csv", HEADER + "a,1,view,x,2.5\n\n   \na,2,view,y,\n")
    reading = read(path, mapping=MAPPING)
    assert reading.rows("session_id", "timestamp_ms", "event_name", "item_id", "price", "source_line") == [
        ("a", 1, "view", "x", 2.5, 2),
        ("a", 2, "view", "y", None, 5),
    ]
    assert reading.rows_read == 2
    assert reading.rejected == []


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        (b"a,5", "what", "too few fields"),
        (b"a,5,view,x,1,1", "", "too many fields"),
        (b"a,5,vi\xff,x,1", "what", "not valid UTF-8"),
        (b"\xff,5,view,x,1", "sid", "not valid UTF-8"),
        (b"a,\xff5,view,x,1", "ts", "not a time"),
        (b'a,5,view,"x,1', "", "quotes do not match"),
        (b'a,"5"', "what", "too few fields"),
        (b'a,5,"view",x,1,1', "", "too many fields"),
        (b",5,view,x,1", "sid", "missing"),
        (b"  ,5,view,x,1", "sid", "missing"),
        (b"a,,view,x,1", "ts", "missing"),
        (b"a,5,,x,1", "what", "missing"),
        (b"a,soon,view,x,1", "ts", "not a time"),
        (b"a,nan,view,x,1", "ts", "missing"),
        (b"a,-5,view,x,1", "ts", "time before 1970, negative or past 9999"),
        (b"a,1e300,view,x,1", "ts", "time before 1970, negative or past 9999"),
        (b"a,1.43322E+12,view,x,1", "ts", "a number in exponent form, which has lost digits"),
        (b"1.4E+12,5,view,x,1", "sid", "a number in exponent form, which has lost digits"),
        (b"undefined,5,view,x,1", "sid", "an id that stands for nothing"),
    ],
)
def test_a_malformed_line_is_reported_and_its_neighbours_survive(
    write: Callable[..., Path], read: Callable[..., Any], line: bytes, field: str, reason: str
) -> None:
    path = write("log.csv", HEADER.encode() + b"a,1,view,x,1\n" + line + b"\na,9,view,x,1\n")
    reading = read(path, mapping=MAPPING)
    assert reading.rejected == [("log.csv", 3, field, reason)]
    assert reading.rows("timestamp_ms", "source_line") == [(1, 2), (9, 4)]
    assert reading.rows_read == 3


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        (b"a,5,purchase,x", "price", "too few fields"),
        (b"a,5,purchase", "item", "too few fields"),
        (b'a,5,"purchase"', "item", "too few fields"),
        (b"a,5,purchase,\xff\xfe,", "item", "not valid UTF-8"),
        (b'a,5,purchase,"\xff\xfe",', "item", "not valid UTF-8"),
        (b"a,5,purchase,1.4E+12,", "item", "a number in exponent form, which has lost digits"),
        (b"a,5,purchase,null,", "item", "an id that stands for nothing"),
        (b"a,5,purchase,,cheap", "price", "not a number"),
        (b'a,5,purchase,,"1,299.00"', "price", "not a number"),
        (b"a,5,purchase,,$5.00", "price", "not a number"),
        (b"a,5,purchase,,inf", "price", "not finite"),
        (b"a,5,purchase,,-1", "price", "negative"),
    ],
)
def test_an_optional_value_that_cannot_be_read_is_null_and_the_row_stays(
    write: Callable[..., Path], read: Callable[..., Any], line: bytes, field: str, reason: str
) -> None:
    path = write("log.csv", HEADER.encode() + b"a,1,view,x,1\n" + line + b"\n")
    reading = read(path, mapping=MAPPING)
    assert reading.rejected == []
    assert reading.nulled == [("log.csv", 3, field, reason)]
    (purchase,) = reading.rows("event_name", "item_id", "price")[1:]
    assert purchase[0] == "purchase"
    assert purchase[1 if field == "item" else 2] is None


@pytest.mark.parametrize(
    "line",
    [
        b"a,soon,purchase,x,1",
        b"a,5,purchase,x,1,1",
        b"more,a,5,purchase,x,1",
        b'a,5,purchase,"x,1',
        b"a,,Order Completed,x,1",
    ],
)
def test_the_label_of_a_session_is_unknown_once_a_row_that_says_purchase_is_rejected(
    write: Callable[..., Path], read: Callable[..., Any], line: bytes
) -> None:
    reading = read(write("log.csv", HEADER.encode() + b"a,1,view,x,1\n" + line + b"\nb,9,view,x,1\n"), mapping=MAPPING)
    assert len(reading.rejected) == 1
    assert "a" in reading.lost_labels
    assert "b" not in reading.lost_labels


@pytest.mark.parametrize("line", [b"a,soon,view,x,1", b"a,5,view,x,1,1", b",5,purchase,x,1", b"null,5,purchase,x,1"])
def test_other_rejected_rows_touch_no_label(write: Callable[..., Path], read: Callable[..., Any], line: bytes) -> None:
    reading = read(write("log.csv", HEADER.encode() + b"a,1,view,x,1\n" + line + b"\n"), mapping=MAPPING)
    assert reading.lost_labels == []


def test_a_report_holds_the_first_hundred_characters_of_the_value(
    write: Callable[..., Path], read: Callable[..., Any]
) -> None:
    path = write("log.csv", HEADER + f"a,{'9' * 500}x,view,x,1\n")
    assert read(path, mapping=MAPPING).rejected_values == ["9" * 100]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["", "ending"])
def test_line_ends_of_either_kind_and_a_missing_last_one_change_nothing(
    write: Callable[..., Path], read: Callable[..., Any], ending: str, last: str
) -> None:
    text = ending.join([HEADER.strip(), "a,1,view,x,1", "a,2,view,y,2"]) + (ending if last else "")
    reading = read(write("log.csv", text), mapping=MAPPING)
    assert reading.rows("timestamp_ms", "item_id", "price") == [(1, "x", 1.0), (2, "y", 2.0)]
    assert reading.rejected == []


def test_quoted_fields_may_hold_separators_and_quotes(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write("log.csv", HEADER + 'a,1,view,"x,""y""",1\na,2,view,plain,1\n')
    assert read(path, mapping=MAPPING).rows("item_id") == [('x,"y"',), ("plain",)]


def test_gzip_is_read_by_its_content_not_its_name(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write("log.csv", gzip.compress((HEADER + "a,1,view,x,1\n").encode()))
    assert read(path, mapping=MAPPING).rows("item_id") == [("x",)]


def test_a_byte_order_mark_belongs_to_no_column(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write("log.csv", b"\xef\xbb\xbf" + HEADER.encode() + b"a,1,view,x,1\n")
    assert read(path, mapping=MAPPING).rows("session_id") == [("a",)]


def test_small_blocks_give_what_one_block_gives(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    lines = [f"s{n % 3},{n},view,{'ü' * (n % 7)},{n}" if n % 5 else "broken" for n in range(200)]
    path = write("log.csv", HEADER + "\n".join(lines))
    whole, pieces = read(path, mapping=MAPPING), read(path, mapping=MAPPING, block_bytes=17)
    assert pieces.events.equals(whole.events)
    assert pieces.rejected == whole.rejected
    assert pieces.rows_read == whole.rows_read == 200
    assert len(whole.rejected) == 40


def test_columns_that_nobody_needs_may_have_any_name_even_twice(
    write: Callable[..., Path], read: Callable[..., Any]
) -> None:
    path = write("log.csv", "sid,,ts,,what,item,price, line,text\na,q,1,q,view,x,1,q,q\n")
    assert read(path, mapping=MAPPING).rows("item_id", "source_line") == [("x", 2)]


def test_a_file_without_a_header_has_numbered_columns(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    mapping = ColumnMapping(
        session_id="column_1",
        timestamp="column_2",
        constant_event_name="Product Viewed",
        time_format="epoch_s",
        has_header=False,
    )
    reading = read(write("log.csv", "a,1\nb,2.5\nc\n"), mapping=mapping)
    assert reading.rows("session_id", "timestamp_ms", "event_name", "source_line") == [
        ("a", 1000, "view_item", 1),
        ("b", 2500, "view_item", 2),
    ]
    assert reading.rejected == [("log.csv", 3, "column_2", "too few fields")]


def test_a_missing_column_is_named_with_those_that_are_there(
    write: Callable[..., Path], read: Callable[..., Any]
) -> None:
    path = write("log.csv", "sid,when,what,item,price\n")
    with pytest.raises(SourceError, match=r"no column is called 'ts' \(for timestamp\); found: sid, when, what"):
        read(path, mapping=MAPPING)


def test_a_needed_column_that_is_there_twice_is_an_error(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write("log.csv", "sid,ts,ts,what,item,price\n")
    with pytest.raises(SourceError, match="two columns are called 'ts'"):
        read(path, mapping=MAPPING)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_an_error(write: Callable[..., Path], read: Callable[..., Any], content: bytes) -> None:
    with pytest.raises(SourceError, match="empty"):
        read(write("log.csv", content), mapping=MAPPING)


def test_a_missing_file_is_an_error(tmp_path: Path, read: Callable[..., Any]) -> None:
    with pytest.raises(SourceError, match="no such file"):
        read(tmp_path / "absent.csv", mapping=MAPPING)


def test_a_cut_gzip_stream_is_an_error_that_says_so(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    data = gzip.compress((HEADER + "a,1,view,x,1\n" * 1000).encode())
    with pytest.raises(SourceError, match="gzip stream is damaged or cut"):
        read(write("log.csv", data[: len(data) // 2]), mapping=MAPPING)


def test_binary_files_without_lines_are_refused_instead_of_filling_memory(
    write: Callable[..., Path], read: Callable[..., Any]
) -> None:
    path = write("log.csv", b"\x01" * (20 * 1024 * 1024))
    with pytest.raises(SourceError, match="no text table"):
        read(path, mapping=MAPPING)


@pytest.mark.parametrize("blank", [" ", "\t", "\xa0", "\u200b"])
def test_a_separator_in_a_quoted_field_after_any_blank_divides_nothing(blank: str) -> None:
    line = f'{blank}1;{blank}"a,b;c";{blank}"x; ""y""";{blank}plain'
    found = split_quoted(line, ";") or []
    assert [value.strip(f" {blank}") for value in found] == ["1", "a,b;c", 'x; "y"', "plain"]


BROKEN_ROWS = HEADER + (
    'a,1,view,"red\nshoes, size ""9""",2\n'  # a break, a separator and quotes inside quotes
    'a,2,view,"x\r\n\r\ny","3"\n'  # an empty line, as spreadsheets write it
    '"a\n",4,view,z,"\n4"\n'  # two fields of one row
    "a,7,purchase,,5\n"
)


@pytest.mark.parametrize("separator", [",", ";"])
def test_a_line_break_inside_the_quotes_of_a_header_is_a_blank(
    write: Callable[..., Path], read: Callable[..., Any], separator: str
) -> None:
    lines = ['"s\nid","t\r\ns",what,item,price', "a,1,view,x,2", 'a,2,"view",y,3']
    path = write("log.csv", "\n".join(lines).replace(",", separator) + "\n")
    reading = read(path, mapping=replace(MAPPING, session_id="s id", timestamp="t s"))
    assert reading.rows("session_id", "timestamp_ms", "item_id", "source_line") == [("a", 1, "x", 4), ("a", 2, "y", 5)]
    assert header(path) == ["s id", "t s", "what", "item", "price"]


def test_comments_before_the_header_are_left_out(write: Callable[..., Path], read: Callable[..., Any]) -> None:
    path = write("log.csv", f"# ----\n# Events, by day\n#\n{HEADER}a,1,view,x,2\n# b,2,view,y,3\n")
    reading = read(path, mapping=MAPPING)
    assert reading.rows("session_id", "timestamp_ms", "source_line") == [("a", 1, 5), ("# b", 2, 6)]
    assert [note for note in reading.notes if "before the header that begin with # are left out" in note]
    assert header(path) == HEADER.strip().split(",")
    # A header that begins with the character is no comment
    named = read(write("named.csv", f"#{HEADER}a,1,view,x,2\n"), mapping=replace(MAPPING, session_id="#sid"))
    assert named.rows("timestamp_ms") == [(1,)]
    with pytest.raises(SourceError, match=r"no column is called 'sid' \(for session_id\); found: #sid, ts"):
        read(write("named.csv", f"#{HEADER}a,1,view,x,2\n"), mapping=MAPPING)
    with pytest.raises(SourceError, match="the file is empty"):
        read(write("comments.csv", "# nothing\n# else\n"), mapping=MAPPING)


def test_a_quote_that_a_header_never_closes_is_no_reason_to_lose_rows(
    write: Callable[..., Path], read: Callable[..., Any]
) -> None:
    path = write("log.csv", 'sid,ts,what,item,pri"ce\na,1,view,x,2\na,2,view,y"s,3\n')
    reading = read(path, mapping=replace(MAPPING, price='pri"ce'))
    assert reading.rows("timestamp_ms") == [(1,), (2,)]
    with pytest.raises(SourceError, match="no column is called 'sid'"):
        read(write("open.csv", 'sid,ts,what,item,"price\na,1,view,x,2\n'), mapping=MAPPING)


@pytest.mark.parametrize("block_bytes", [20, 30, 50, 1000])
def test_a_line_break_inside_quotes_is_a_blank(
    write: Callable[..., Path], read: Callable[..., Any], block_bytes: int
) -> None:
    reading = read(write("log.csv", BROKEN_ROWS), mapping=MAPPING, block_bytes=block_bytes)
    assert reading.rejected == []
    assert reading.nulled == []
    assert reading.rows("session_id", "timestamp_ms", "item_id", "price", "source_line") == [
        ("a", 1, 'red shoes, size "9"', 2.0, 2),
        ("a", 2, "x y", 3.0, 4),
        ("a", 4, "z", 4.0, 7),
        ("a", 7, None, 5.0, 10),
    ]
    assert reading.rows_read == 4
    assert [note for note in reading.notes if "line breaks inside quotes, first in line 2," in note]


@pytest.mark.parametrize(
    ("lines", "times"),
    [
        # Two stray quotes, which would swallow the row between them.
        (['a,5,view,x,"1', "a,6,view,y,1", 'a,7,view,z,1"'], [6, 7]),
        (['a,5,view,"x,1', "a,6,view,y,1", 'a,7,view,"z,1'], [6]),
        (['a,5,view,"x,1', "a,6,view,y,1", 'a,7,view,z",1'], [6, 7]),
        # Quotes that are never closed, or far away.
        (['a,5,view,x,"1', *(f"a,{time},view,y,1" for time in range(6, 300))], [*range(6, 300)]),
        (['a,5,view,x,"1', *("loose words" for _ in range(200)), 'end"'], []),
    ],
)
def test_a_stray_quote_joins_no_rows(
    write: Callable[..., Path], read: Callable[..., Any], lines: list[str], times: list[int]
) -> None:
    reading = read(write("log.csv", HEADER + "\n".join([*lines, "a,999,view,last,1"]) + "\n"), mapping=MAPPING)
    assert reading.rows_read == len(lines) + 1
    assert [row[0] for row in reading.rows("timestamp_ms")] == [*times, 999]
    assert ("log.csv", 2, "", "quotes do not match") in reading.rejected


def table(path: Path, layout: TextLayout, block_bytes: int = 1 << 20) -> tuple[list[tuple[object, ...]], list[str]]:
    """Return columns a and b of a text table with their lines, and its notes."""
    blocks = list(read_text(path, {"a": "session_id", "b": "item_id"}, layout, block_bytes))
    rows = [row for block in blocks for row in block.rows.select(LINE, "a", "b").rows()]
    return rows, [note for block in blocks for note in block.notes]


def test_a_separator_is_that_of_the_names_then_of_the_width_then_of_the_most_fields() -> None:
    line = "a;b|1|2|3|4"
    assert sniffed_separator(line) == "|"
    assert sniffed_separator(line, needed=["a"]) == ";"
    assert sniffed_separator(line, width=2) == ";"
    assert sniffed_separator("a|b;c", needed=["a"], width=2) == "|"


def test_a_named_separator_wins_over_the_one_that_the_file_says(write: Callable[..., Path]) -> None:
    path = write("log.csv", "sep=;\na,b\n1,2;3\n")
    assert table(path, TextLayout(separator=","))[0] == [(3, "1", "2;3")]
    said = write("said.csv", "sep=;\na;b\n1,5;2\n")
    assert table(said, TextLayout())[0] == [(3, "1,5", "2")]


@pytest.mark.parametrize(
    ("lines", "rows"),
    [
        # One line that is UTF-8 shows that the file is, and others are damaged.
        (["ü,1", b"\xe4,2"], [(2, "ü", "1"), (3, "\ufffd", "2")]),
        ([b"\xe4,1", b"\xf6,2"], [(2, "ä", "1"), (3, "ö", "2")]),
    ],
)
@pytest.mark.parametrize("block_bytes", [6, 1000])
def test_an_encoding_is_found_out_once(
    write: Callable[..., Path], lines: list[str | bytes], rows: list[tuple[object, ...]], block_bytes: int
) -> None:
    data = b"a,b\n" + b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    found, notes = table(write("log.csv", data), TextLayout(encoding=None), block_bytes)
    assert found == rows
    assert ["read as windows-1252" in note for note in notes] == [True] * (rows[0][1] == "ä")


def test_a_row_that_is_joined_of_a_damaged_line_is_damaged(write: Callable[..., Path]) -> None:
    path = write("log.csv", b'a,b\n1,"x\n\xff"\n2,y\n3,\xff\n')
    (block,) = read_text(path, {"a": "session_id", "b": "item_id"}, TextLayout(), 1 << 20)
    assert block.rows.sort(LINE).select(LINE, DAMAGED).rows() == [(2, True), (4, False), (5, True)]


def test_lines_that_make_too_many_fields_are_not_joined(write: Callable[..., Path]) -> None:
    path = write("log.csv", 'a,b,c,d\n1,"x\ny",2,3,4\n5,6,7,8\n')
    (block,) = read_text(path, {"a": "session_id", "b": "item_id"}, TextLayout(), 1 << 20)
    assert sorted(block.rows.select(LINE, "a").rows()) == [(3, 'y"'), (4, "5")]
    assert [row[:3] for row in block.rejected.rows()] == [(2, "", "quotes do not match")]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_first_value_of_a_table_without_a_header_has_no_byte_order_mark(
    write: Callable[..., Path], mark: str
) -> None:
    layout = TextLayout(has_header=False, column_names=("a", "b"), has_quotes=False)
    assert table(write("log.csv", f"{mark}1,2\n3,4\n"), layout)[0] == [(1, "1", "2"), (2, "3", "4")]


def test_a_repeated_header_is_no_row_and_is_told(write: Callable[..., Path]) -> None:
    rows, notes = table(write("log.csv", "a,b\n1,2\na,b\n3,4\n"), TextLayout())
    assert rows == [(2, "1", "2"), (4, "3", "4")]
    assert notes == ["log.csv: 1 lines repeat the header"]


@pytest.mark.parametrize("end", ["", ",", ",,"])
def test_separators_at_the_end_of_a_row_are_no_fields(write: Callable[..., Path], end: str) -> None:
    rows, _ = table(write("log.csv", f'a,b\n1,2{end}\n"3",4{end}\n5,{end}\n'), TextLayout())
    assert sorted(rows) == [(2, "1", "2"), (3, "3", "4"), (4, "5", "")]


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        (r'1,"x \"y\", z"', ["1", 'x "y", z']),
        (r'1,"x \\"', ["1", "x \\\\"]),
        ('1,  "x, y"', ["1", "x, y"]),
        ('1,"x ""y"", z"', ["1", 'x "y", z']),
        # Quotes that a second writer put around those of a first.
        ('1,"""x ""y"""""', ["1", 'x "y"']),
        ('1,"""x """"y"""""""', ["1", 'x "y"']),
        ('1,"x', None),
        ('1, "x', None),
    ],
)
def test_quotes_within_quotes(line: str, fields: list[str] | None) -> None:
    assert split_quoted(line, ",") == fields
