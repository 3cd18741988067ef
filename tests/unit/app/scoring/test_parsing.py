"""A body's events are those of the careful parser, by whichever way they are read, and its limits are exact."""

import asyncio
import json

import msgspec
import pytest

from app.errors import BodyTooLargeError, InvalidEventError, InvalidJsonError, TooManyEventsError
from app.scoring.parsing import document_parts, parse_event, parse_events, read_event, with_idempotency_key

BOM = b"\xef\xbb\xbf"
EVENT = b'{"session_id":"s","event_name":"view_item"}'
BAD = b'{"session_id":"s"}'
# The quick parsers stop at half a surrogate pair, so that an array with one is scanned.
SCANNED = b'{"session_id":"\\ud800","event_name":"view_item"}'


def events_of(body, *, is_lines=False, max_events=10, max_event_bytes=65536, count=None):
    return asyncio.run(
        parse_events(body, is_lines=is_lines, max_events=max_events, max_event_bytes=max_event_bytes, count=count)
    )


def array(*events):
    return b"[" + b", ".join(events) + b"]"


@pytest.mark.parametrize("blanks", range(1880, 2060))
def test_an_event_that_is_longer_than_the_scanners_window_is_read_whole(blanks):
    values = b'"event_name":"view_item","price":12345.5,"properties":{"a":true,"b":"a text that is longer than a word"}'
    event = b'{"session_id":"s",' + b" " * blanks + values + b"}"
    refused, read, last = events_of(array(SCANNED, event, EVENT))
    assert isinstance(refused, InvalidEventError)
    assert read == parse_event(event)
    assert last == parse_event(EVENT)


@pytest.mark.parametrize("digits", [2046, 2047, 2048, 3000])
def test_a_number_that_is_longer_than_the_scanners_window_is_one_element(digits):
    results = events_of(array(SCANNED, b"1." + b"0" * digits, EVENT))
    assert [type(result) for result in results[:2]] == [InvalidEventError] * 2
    assert results[2] == parse_event(EVENT)


@pytest.mark.parametrize("body", [b'[{"a": 1}, {"a" 1}]', b'[{"a": 1},\n {"a": tru}]', b"[1, 2", b"[1] 2", b"[1 2]"])
def test_a_fault_of_an_array_is_told_at_its_place(body):
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(body)
    with pytest.raises(InvalidJsonError) as found:
        events_of(body)
    assert found.value.detail == f"{expected.value.msg} at line {expected.value.lineno}, column {expected.value.colno}."


@pytest.mark.parametrize("first", [EVENT, BAD, SCANNED], ids=["quick", "one by one", "scanned"])
@pytest.mark.parametrize("is_lines", [False, True], ids=["array", "lines"])
def test_as_many_events_as_allowed_are_read_and_counted_and_one_more_is_refused(first, is_lines):
    counted = []

    async def count(events):
        counted.append(events)

    def body(events):
        parts = [first] + [EVENT] * (events - 1)
        return b"\n".join(parts) if is_lines else array(*parts)

    for mark in (b"", BOM):
        assert len(events_of(mark + body(3), is_lines=is_lines, max_events=3, count=count)) == 3
        with pytest.raises(TooManyEventsError):
            events_of(mark + body(4), is_lines=is_lines, max_events=3, count=count)
    assert counted == [3, 3]
    # A line of the mark alone is blank
    assert len(events_of(BOM + b"\n" + EVENT, is_lines=True)) == 1


def test_a_large_event_is_its_own_problem():
    large = EVENT[:-1] + b" " * 1000 + b"}"
    limit = len(large)
    for is_lines, body in ((False, array(BAD, large, EVENT)), (True, b"\n".join((BAD, large, EVENT)))):
        assert events_of(body, is_lines=is_lines, max_event_bytes=limit)[1:] == [parse_event(EVENT)] * 2
        result = events_of(body, is_lines=is_lines, max_event_bytes=limit - 1)[1]
        assert isinstance(result, BodyTooLargeError)
        assert f"at most {limit - 1} bytes" in result.detail


def test_where_an_event_is_scanned_its_end_is_not_looked_for_beyond_the_limit():
    large = EVENT[:-1] + b" " * 3000 + b"}"
    limit = len(large)
    assert events_of(array(SCANNED, large), max_event_bytes=limit)[1] == parse_event(EVENT)
    with pytest.raises(BodyTooLargeError, match=f"more than {limit - 1} bytes"):
        events_of(array(SCANNED, large), max_event_bytes=limit - 1)


def test_the_quick_parser_reads_a_session_id_as_a_log_is_read():
    event = read_event(b'{"session_id":" 7.0 ","event_name":"view_item"}')
    assert event is not None
    assert event.session_id == "7"


@pytest.mark.parametrize("field", ['"a\\u0007":1', '"a":"\\u0007"'])
def test_the_quick_parser_leaves_control_characters_of_properties_to_the_careful_one(field):
    body = f'{{"session_id":"s","event_name":"view_item","properties":{{{field}}}}}'.encode()
    assert read_event(body) is None
    with pytest.raises(InvalidEventError, match="control"):
        parse_event(body)


@pytest.mark.parametrize(
    ("body", "parts"),
    [
        (b'[{"a": 1}, 2]', [b'{"a": 1}', b"2"]),
        (BOM + b" \n[1]", [b"1"]),
        (b'{"a": 1}', []),
        (b"[1, ", []),
        (b"", []),
    ],
)
def test_the_elements_of_a_list_are_its_parts(body, parts):
    assert document_parts(body) == parts


def test_an_idempotency_key_is_an_event_id_with_or_without_quotation_marks():
    event = parse_event(EVENT)
    for header in (b"k-1", b'"k-1"', b' "k-1" '):
        assert with_idempotency_key(event, header) == msgspec.structs.replace(event, event_id="k-1")
    assert with_idempotency_key(event, b"k" * 128).event_id == "k" * 128
    for header in (b"", b'""', b"k" * 129, b"a\x07", b"\xe9"):
        with pytest.raises(InvalidEventError, match="Idempotency-Key: expected 1 to 128 printable"):
            with_idempotency_key(event, header)
