import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.event_strategies import ALL_SCOPES, sessions

from model import columns
from model.columns import (
    ColumnReader,
    category_code,
    columns_from_events,
    fingerprint,
    item_code,
    number_value,
    unruled_text,
)
from model.events import Event, identifier_code
from model.properties import PropertySpec
from model.text_rules import category_text


@given(sessions(max_size=5))
def test_every_field_stands_in_its_column(events):
    timestamp_ms, codes, numbers = columns_from_events(events, ALL_SCOPES)
    assert (timestamp_ms.dtype, codes.dtype, numbers.dtype) == (torch.int64, torch.int64, torch.float32)
    assert (timestamp_ms.shape, codes.shape, numbers.shape) == ((len(events),), (len(events), 5), (len(events), 4))
    for row, event in enumerate(events):
        sent = event.properties
        assert timestamp_ms[row] == event.timestamp_ms
        texts = [event.event_name, event.item_id, event.item_category]
        texts += [category_text(sent.get("device")), category_text(sent.get("page"))]
        assert codes[row].tolist() == [fingerprint(text) for text in texts]
        values = [event.price, event.quantity, number_value(sent.get("visits")), number_value(sent.get("scroll"))]
        expected = torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float32)
        assert torch.equal(numbers[row].nan_to_num(nan=-1.5), expected.nan_to_num(nan=-1.5))


def test_no_event_gives_empty_columns_of_the_right_width():
    timestamp_ms, codes, numbers = columns_from_events([], ALL_SCOPES)
    assert (timestamp_ms.shape, codes.shape, numbers.shape) == ((0,), (0, 5), (0, 4))
    assert (timestamp_ms.dtype, codes.dtype, numbers.dtype) == (torch.int64, torch.int64, torch.float32)


@given(sessions(max_size=5), st.integers(0, 4))
def test_rows_past_the_events_are_zero_and_change_none_before_them(events, more):
    reader = ColumnReader(ALL_SCOPES)
    for plain, filled in zip(reader.read(events), reader.read(events, len(events) + more), strict=True):
        assert torch.equal(filled[: len(events)].nan_to_num(nan=-1.5), plain.nan_to_num(nan=-1.5))
        assert filled.shape == (len(events) + more, *plain.shape[1:])
        assert not filled[len(events) :].any()


def test_values_that_python_takes_for_equal_keep_codes_of_their_own():
    assert category_code(True) == fingerprint("true")
    assert category_code(1) == category_code(1.0) == fingerprint("1")
    assert category_code("") == category_code(None) == 0


def test_nothing_sent_is_zero_and_nan():
    _, codes, numbers = columns_from_events([Event("page_view", 0)], ALL_SCOPES)
    assert codes[0, 1:].tolist() == [0, 0, 0, 0]
    assert numbers.isnan().all()


def test_properties_that_were_not_declared_are_not_looked_at():
    bare, laden = Event("page_view", 0), Event("page_view", 0, properties={"device": "mobile"})
    for one, other in zip(columns_from_events([bare], []), columns_from_events([laden], []), strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


@given(st.text(max_size=30))
def test_fingerprints_are_31_bits_of_the_code_and_zero_only_for_no_value(text):
    number = fingerprint(text)
    assert (number == 0) == (text == "")
    assert 0 <= number < 2**31
    assert text == "" or number == identifier_code(text) % 2**31


def test_a_code_of_31_zero_bits_is_not_taken_for_no_value(monkeypatch):
    monkeypatch.setattr(columns, "identifier_code", lambda _: 5 << 31)
    assert fingerprint("unlucky") == 1


def test_fingerprint_is_golden():
    # In stored states and in every artifact's tables.
    assert [fingerprint(word) for word in ("page_view", "SKU-1", None)] == [2062778826, 1743944858, 0]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ("", None),
        ("mobile", "mobile"),
        (" mobile", " mobile"),
        (True, "true"),
        (False, "false"),
        (1, "1"),
        (1.0, "1"),
        (-0.0, "0"),
        (2**53 + 1, "9007199254740993"),
        (0.1, "0.1"),
        (1e22, "10000000000000000000000"),
        (math.nan, None),
        (math.inf, "inf"),
    ],
)
def test_a_category_has_one_spelling_without_text_rules(value, text):
    assert unruled_text(value) == text


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (None, math.nan),
        ("", math.nan),
        ("many", math.nan),
        ("7", 7.0),
        (" 2.5 ", 2.5),
        (True, 1.0),
        (False, 0.0),
        (-3, -3.0),
        (math.inf, math.inf),
        (math.nan, math.nan),
        *((text, math.nan) for text in ("N/A", "nan", "inf", "1e999", "1_000", "1,5", "15%", "\uff17", "0x10", ".")),
        *((text, 5.0) for text in ("5.", "+5", "05", "0.5e1", "\ufeff5\xa0")),
    ],
)
def test_a_number_is_a_number_or_nothing(value, number):
    assert number_value(value) == pytest.approx(number, nan_ok=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("", "number"), "property name: expected at least one character"),
        (("device", "text"), "property device: kind must be number or category, not 'text'"),
        (("device", "number", "visitor"), "property device: scope must be event or session, not 'visitor'"),
    ],
)
def test_a_property_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        PropertySpec(*fields)


@pytest.mark.parametrize(
    ("logged", "sent"),
    [("True", True), ("12.0", 12.0), (" shoes", "shoes"), ("7.0", "7"), ("7", 7), ("\ufeffred\u200b", "red")],
)
def test_a_value_of_a_log_and_of_a_request_have_one_code(logged, sent):
    assert category_code(logged) == category_code(sent) != 0
    assert item_code(logged) == item_code(str(sent)) or isinstance(sent, bool)


def test_an_item_that_stands_for_nothing_is_none():
    assert item_code("undefined") == item_code(" NULL ") == item_code(None) == item_code("") == 0


@pytest.mark.parametrize(
    "word", ["None", "nan", "NULL", "N/A", "-", "undefined", " <NA> ", "\\N", "\u2014", "(not set)"]
)
def test_a_word_for_nothing_is_no_category_but_a_value_of_older_rules(word):
    event = Event("page_view", 0, item_category=word, properties={"device": word})
    columns = [ColumnReader(ALL_SCOPES, rules).read([event])[1][0].tolist() for rules in (2, 1, 0)]
    assert category_code(word) == 0
    assert [sum(code != 0 for code in row) for row in columns] == [1, 3, 3]


def test_an_artifact_without_text_rules_reads_texts_as_they_are():
    event = Event("page_view", 0, "7.0", " shoes", properties={"device": "True", "page": True})
    ruled, plain = (ColumnReader(ALL_SCOPES, rules).read([event])[1][0].tolist() for rules in (1, 0))
    assert plain[:3] == [fingerprint("page_view"), fingerprint("7.0"), fingerprint(" shoes")]
    assert ruled[:3] == [fingerprint("page_view"), fingerprint("7"), fingerprint("shoes")]
    assert (fingerprint("True") in plain, fingerprint("true") in ruled) == (True, True)


def test_truth_in_words_is_a_number_as_in_a_log():
    assert (number_value("True"), number_value("false"), number_value(True)) == (1.0, 0.0, 1.0)
