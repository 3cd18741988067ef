import re

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model.text_rules import BLANKS, MAY_CHANGE, PLACEHOLDER_IDS, canonical_text, is_placeholder_id, stripped


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
    ],
)
def test_a_log_and_a_request_with_the_same_value_have_one_text(logged, sent):
    assert canonical_text(logged) == canonical_text(sent)


@pytest.mark.parametrize(
    "text", ["007", "1.10", "7.5", "running  shoes", "yes", "1e3", "v1.0", "1.0.0", "truely", "\u0663.\u0660"]
)
def test_other_texts_are_kept(text):
    assert canonical_text(text) == text


@given(st.text(max_size=12) | st.floats() | st.booleans() | st.none())
@example("\ufeff7.0 ")
def test_a_canonical_text_is_its_own_canonical_text(value):
    text = canonical_text(value)
    assert text is None or canonical_text(text) == text


@given(st.text(alphabet=st.sampled_from([*BLANKS, *"aA0.-7trueFALSE\x00é"]), max_size=6) | st.text(max_size=6))
def test_texts_that_the_expression_passes_over_are_canonical(text):
    if not pl.Series([text]).str.contains(MAY_CHANGE)[0]:
        assert canonical_text(text) == text


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
