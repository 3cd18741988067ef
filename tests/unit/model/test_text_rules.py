import re

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model.text_rules import (
    BLANKS,
    MAY_BE_NULL,
    MAY_CHANGE,
    NULL_WORDS,
    PLACEHOLDER_IDS,
    canonical_text,
    category_text,
    is_placeholder_id,
    stripped,
)


@pytest.mark.parametrize(
    ("logged", "sent"),
    [
        ("True", True),
        ("FALSE", False),
        ("true", True),
        ("12.0", 12),
        ("7.00", 7.0),
        ("7.", 7),
        ("-3.0", -3),
        ("-0.0", 0.0),
        ("-0", -0.0),
        ("12.5", 12.5),
        ("1e+22", "1e+22"),
        (" shoes", "shoes"),
        ("\ufeffshoes\u200b", "shoes"),
        ("\xa0shoes\u3000", "shoes"),
        ("7.0", "7"),
        ("100000000000000000000", 1e20),
        ("", None),
        (" \xa0\u200b ", None),
        ("", float("nan")),
        ("gro\u0308\u00dfe", "gr\u00f6\u00dfe"),
        ("\u212b", "\u00c5"),
        ("run\u200bning\u00ad", "running"),
    ],
)
def test_a_log_and_a_request_with_the_same_value_have_one_text(logged, sent):
    assert canonical_text(logged) == canonical_text(sent)


@pytest.mark.parametrize(
    "text",
    [
        "007",
        "1.10",
        "7.5",
        "running  shoes",
        "yes",
        "1e3",
        "v1.0",
        "1.0.0",
        "truely",
        "\u0663.\u0660",
        "\uff17",
        "me\u200cn",
    ],
)
def test_other_texts_are_kept(text):
    assert canonical_text(text) == text


@given(st.text(max_size=12) | st.floats() | st.booleans() | st.none())
@example("\ufeff7.0 ")
def test_a_canonical_text_is_its_own_canonical_text(value):
    text = canonical_text(value)
    assert text is None or canonical_text(text) == text


WORDS = st.sampled_from([*NULL_WORDS, *(word.upper() for word in NULL_WORDS)])


@given(
    st.text(alphabet=st.sampled_from([*BLANKS, *"aA0.-7trueFALSE\x00é\u0301\u00ad\u200e\u212a"]), max_size=6)
    | st.text(max_size=6)
    | WORDS
)
def test_texts_that_the_expressions_pass_over_are_canonical(text):
    if not pl.Series([text]).str.contains(MAY_CHANGE)[0]:
        assert canonical_text(text) == text
    if not pl.Series([text]).str.contains(MAY_BE_NULL)[0]:
        assert category_text(text) == text


@pytest.mark.parametrize(
    "word", ["None", "nan", "NaN", "NULL", "null", "N/A", "n/a", "NA", "-", "\\N", "<NA>", "(not set)"]
)
def test_a_word_for_nothing_is_no_category_and_the_same_text_of_an_id_stays(word):
    assert category_text(word) == category_text(f" {word}\ufeff") is None
    assert canonical_text(word) == word


@pytest.mark.parametrize(
    "value", ["0", "-1", "unknown", "other", "(none)", "direct", "no", "false", "nano", "Nanas", "a-b"]
)
def test_a_value_that_says_little_is_a_value_all_the_same(value):
    assert category_text(value) == value


def test_the_words_for_nothing_are_in_the_form_that_is_looked_up():
    assert [word for word in NULL_WORDS if word != word.lower() or canonical_text(word) != word] == []


def test_blanks_include_all_white_space_of_unicode():
    assert stripped("".join(chr(code) for code in range(0x10000) if chr(code).isspace())) == ""


@pytest.mark.parametrize(
    "identifier",
    [
        "undefined",
        "NULL",
        " NaN ",
        "None",
        "(not set)",
        "N/A",
        "-",
        "",
        " ",
        "\ufeff",
        "\\N",
        "{{client_id}}",
        "${sid}",
    ],
)
def test_ids_that_stand_for_nothing(identifier):
    assert is_placeholder_id(identifier)


@pytest.mark.parametrize("identifier", ["0", "1", "nano", "s-undefined-1", "Nuller", "7f3a", "a-b", "1.5"])
def test_ids_that_stand_for_somebody(identifier):
    assert not is_placeholder_id(identifier)


def test_the_placeholders_are_in_the_form_that_is_looked_up():
    assert [text for text in PLACEHOLDER_IDS if not re.fullmatch(r"\S(.*\S)?", text) or text != text.lower()] == []
