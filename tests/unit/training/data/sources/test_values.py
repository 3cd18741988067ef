"""Times and truth values in the ways that logs write them."""

from datetime import UTC, date, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model.text_rules import BLANKS, is_placeholder_id, session_id_text
from training.data.sources.values import PLACEHOLDER, boolean, identifier, time_ms

NOON_MS = 1_569_931_200_000  # 2019-10-01T12:00:00Z


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("2019-10-01T12:00:00Z", NOON_MS),
        ("2019-10-01 12:00:00 UTC", NOON_MS),
        ("2019-10-01 12:00:00", NOON_MS),
        ("2019-10-01T12:00:00.123Z", NOON_MS + 123),
        ("2019-10-01T14:00:00+02:00", NOON_MS),
        ("2019-10-01 14:00:00 +0200", NOON_MS),
        ("2019-10-01T12:00", NOON_MS),
        ("2019-10-01", NOON_MS - 12 * 3_600_000),
        ("  2019-10-01T12:00:00Z ", NOON_MS),
    ],
)
def test_iso_times_are_read_in_all_common_shapes_of_one_column(text: str, expected_ms: int) -> None:
    values, problems = time_ms(pl.Series(["2019-10-01T12:00:00Z", text]), "iso")
    assert values.to_list() == [NOON_MS, expected_ms]
    assert not any(mask.any() for mask, _ in problems)


@pytest.mark.parametrize("text", ["2019-13-01T00:00:00Z", "2019-02-30", "yesterday", "12:00", "2019-10-01T12:00:00Zx"])
def test_what_is_no_time_is_a_problem(text: str) -> None:
    values, problems = time_ms(pl.Series([text]), "iso")
    assert values.to_list() == [None]
    assert [reason for mask, reason in problems if mask.any()] == ["not a time"]


@pytest.mark.parametrize(
    ("text", "time_format", "expected_ms"),
    [
        ("1569931200", "epoch_s", NOON_MS),
        ("1569931200.5", "epoch_s", NOON_MS + 500),
        ("1569931200000", "epoch_ms", NOON_MS),
        ("12.25", "elapsed_s", 12_250),
        ("7", "elapsed_ms", 7),
        ("01.10.2019 12:00", "%d.%m.%Y %H:%M", NOON_MS),
        ("01.10.2019 14:00 +0200", "%d.%m.%Y %H:%M %z", NOON_MS),
    ],
)
def test_every_time_format_gives_milliseconds(text: str, time_format: str, expected_ms: int) -> None:
    assert time_ms(pl.Series([text]), time_format)[0].to_list() == [expected_ms]


@pytest.mark.parametrize(
    "value",
    [
        datetime(2019, 10, 1, 12),  # noqa: DTZ001 - a naive column is what is tested
        datetime(2019, 10, 1, 12, tzinfo=UTC),
        datetime(2019, 10, 1, 14, tzinfo=timezone(timedelta(hours=2))),
    ],
)
def test_typed_times_are_taken_as_they_are(value: datetime) -> None:
    assert time_ms(pl.Series([value]), "epoch_s")[0].to_list() == [NOON_MS]


def test_typed_dates_are_their_midnight() -> None:
    assert time_ms(pl.Series([date(2019, 10, 1)]), "iso")[0].to_list() == [NOON_MS - 12 * 3_600_000]


def test_a_pattern_without_a_date_fits_nothing() -> None:
    _, problems = time_ms(pl.Series(["12:00"]), "%H:%M")
    assert [reason for mask, reason in problems if mask.any()] == ["time before 1970, negative or past 9999"]


def test_truth_values_are_one_and_zero_or_words() -> None:
    values, problems = boolean(pl.Series(["1", "0", "TRUE", "false", "", "2"]))
    assert values.to_list() == [True, False, True, False, None, None]
    assert [mask.to_list() for mask, _ in problems] == [[False] * 5 + [True]]


@given(st.lists(st.text("012.-eE\u0301\u00e9truTRUE\u200b" + BLANKS) | st.text(max_size=8), min_size=1))
@example(["\xad", "\xad-", "a\xad"])
def test_the_ids_of_a_log_are_those_of_the_service(texts: list[str]) -> None:
    ids, problems = identifier(pl.Series(texts, dtype=pl.String))
    (placeholders,) = [mask for mask, reason in problems if reason == PLACEHOLDER]
    for text, read, is_placeholder in zip(texts, ids, placeholders.fill_null(value=False), strict=True):
        assert read in (session_id_text(text), None)
        # A log's blank id is missing, which rejects its row as a placeholder does
        assert is_placeholder_id(session_id_text(text)) == (read is None or is_placeholder)
