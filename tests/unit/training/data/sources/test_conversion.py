"""Raw rows as canonical events: what each problem of a row does to it, to its report and to its session's label."""

from typing import Any

import polars as pl
import pytest

from training.data.sources import ColumnMapping
from training.data.sources.blocks import LINE
from training.data.sources.conversion import SESSION_DAY_MS, Converted, convert

DAY_MS = 86_400_000


def converted(columns: dict[str, list[Any]], **mapping: Any) -> Converted:
    """Convert rows of these columns; times are in `t`, and names in `e` unless the mapping says otherwise."""
    raw = pl.DataFrame(columns)
    fields = {"timestamp": "t", "event_name": "e"} | mapping
    return convert(raw.with_columns(pl.int_range(2, 2 + raw.height).alias(LINE)), ColumnMapping(**fields))


def test_a_placeholder_is_counted_over_all_columns_of_a_key() -> None:
    found = converted(
        {"a": ["null", "x", "null"], "b": ["y", "null", "y"], "t": ["2026-11-22"] * 3, "e": ["search"] * 3},
        session_key=("a", "b"),
    )
    assert found.placeholders == {"null": 3}
    assert found.events.is_empty()


def test_different_keys_are_different_sessions() -> None:
    keys = [("a:b", "c"), ("a", "b:c"), ("a\\", ":c"), ("a\\:", "c"), ("a:\\", "c"), ("a", "c"), ("a\\\\", ":c")]
    first, second = ([key[place] for key in keys] for place in range(2))
    found = converted(
        {"a": first, "b": second, "t": ["2026-11-22"] * len(keys), "e": ["search"] * len(keys)},
        session_key=("a", "b"),
    )
    assert found.events["session_id"].n_unique() == len(keys)


@pytest.mark.parametrize(("zone", "before_ms"), [(None, 0), ("Europe/Berlin", 3_600_000)])
def test_a_day_begins_in_the_time_zone_of_the_log(zone: str | None, before_ms: int) -> None:
    found = converted(
        {"s": ["s"], "t": ["5"], "d": ["2026-11-22"], "e": ["search"]},
        session_id="s",
        date="d",
        time_format="elapsed_s",
        time_zone=zone,
    )
    assert found.events[SESSION_DAY_MS].to_list() == [20_779 * DAY_MS - before_ms]
    assert found.events["timestamp_ms"].to_list() == [5000]


@pytest.mark.parametrize(("given", "read"), [("eur", "EUR"), ("euros", None)])
def test_a_constant_currency_is_a_code_or_none(given: str, read: str | None) -> None:
    rows = {"s": ["s"], "t": ["2026-11-22"], "e": ["search"]}
    assert converted(rows, session_id="s", constants={"currency": given}).events["currency"].to_list() == [read]


def test_a_row_of_several_problems_is_told_once_and_its_other_values_are_not() -> None:
    found = converted(
        {
            "s": ["", "s"],
            "t": ["soon", "2026-11-22"],
            "e": ["", "search"],
            "p": ["cheap", "dear"],
        },
        session_id="s",
        price="p",
    )
    assert [row[:3] for row in found.rejected.rows()] == [(2, "s", "missing")]
    assert [row[:3] for row in found.nulled.rows()] == [(3, "p", "not a number")]
    assert found.events.height == 1


def test_rows_of_dropped_names_are_counted_and_those_without_a_name_are_rejected() -> None:
    found = converted(
        {"s": ["s"] * 4, "t": ["2026-11-22"] * 4, "e": ["heartbeat", None, "search", " Heartbeat "]},
        session_id="s",
        drop=("heartbeat", " Heartbeat "),
    )
    assert found.rows_dropped == 2
    assert [row[:3] for row in found.rejected.rows()] == [(3, "e", "missing")]
    assert found.events["event_name"].to_list() == ["search"]


@pytest.mark.parametrize("midnight", ["", " 00:00", "T00:00:00", " 00:00:00.000"])
def test_a_date_in_a_column_of_its_own_may_have_a_midnight(midnight: str) -> None:
    found = converted(
        {"s": ["s"], "d": [f"2026-11-22{midnight}"], "c": ["10:15:00"], "e": ["search"]},
        session_id="s",
        timestamp="d+c",
    )
    assert found.events["timestamp_ms"].to_list() == [20_779 * DAY_MS + 36_900_000]
