"""The leak check on events written out by hand: its samples, its bounds and its arithmetic, each at the limit."""

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from model.properties import PropertySpec
from training.config import LeakSettings
from training.data.leaks import LeakError, Suspect, check_leaks, suspects

Row = dict[str, Any]
GRADE = PropertySpec("grade", "category")


def row(number: int, at_ms: int, name: str, *, bought: bool, grade: str | None = None) -> Row:
    facts = {"session_id": f"s{number:04}", "timestamp_ms": at_ms, "event_name": name, "outcome": bought}
    nothing = {"item_id": None, "item_category": None, "price": None, "quantity": None}
    return {**facts, **nothing, "property.grade": grade}


@pytest.fixture
def shard(tmp_path: Path) -> Callable[[Sequence[Row]], list[Path]]:
    def write(rows: Sequence[Row]) -> list[Path]:
        schema = {"item_id": pl.String, "item_category": pl.String, "price": pl.Float64, "quantity": pl.Float64}
        # A file of its own each time: one that was read may still be mapped into memory.
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        pl.DataFrame(rows, schema_overrides={**schema, "property.grade": pl.String}).write_parquet(path)
        return [path]

    return write


def ids(rows: Sequence[Row]) -> set[str]:
    each = [str(one["session_id"]) for one in rows]
    # A set of texts has another order in each process.
    random.shuffle(each)
    return set(each)


def thanked(count: int, others: int = 3) -> list[Row]:
    """Buyers who see a page of thanks, and a few who do not buy, first of all."""
    leaving = [row(number, 0, "page_view", bought=False) for number in range(others)]
    return leaving + [row(number, 0, "thanks", bought=True) for number in range(others, others + count)]


def sessions_named(found: Sequence[Suspect]) -> int | None:
    """How many sessions the reason about the page of thanks counts."""
    reasons = [suspect.reason for suspect in found if suspect.name == "thanks"]
    match = re.search(r"of (\d+) sessions bought", reasons[0]) if reasons else None
    return None if match is None else int(match[1])


@pytest.mark.parametrize("count", [97, 99, 100, 101, 150, 199, 200, 201, 299, 300, 999])
def test_a_sample_has_at_most_so_many_sessions_from_the_whole_log(shard: Any, count: int) -> None:
    # Given so many sessions, of which the first does not buy, and a hundred are to be looked at
    rows = thanked(count - 1, others=1)
    settings = LeakSettings(most_sessions=100, least_sessions=2, buyers_share=0.5)
    one, other = (sessions_named(suspects(shard(rows), [], ids(rows), settings)) for _ in range(2))
    assert one is not None
    assert one == other
    assert one == count - 1 if count <= 100 else 100 / 2 - 1 <= one <= 100


def test_other_sessions_than_those_of_training_are_not_looked_at(shard: Any) -> None:
    rows = thanked(50)
    settings = LeakSettings(least_sessions=2, buyers_share=0.5)
    training = {f"s{number:04}" for number in range(13)}
    assert sessions_named(suspects(shard(rows), [], training, settings)) == 10


@pytest.mark.parametrize(("count", "is_found"), [(34, False), (35, True)])
def test_a_page_of_buyers_is_one_where_wilsons_interval_says_so(shard: Any, count: int, is_found: bool) -> None:
    # The lower end of n buyers of n is n / (n + 1.96 ** 2): 0.8985 of 34, 0.9011 of 35
    rows = thanked(count)
    settings = LeakSettings(least_sessions=10, buyers_share=0.9)
    assert (sessions_named(suspects(shard(rows), [], ids(rows), settings)) is not None) is is_found


@pytest.mark.parametrize(("least", "is_found"), [(40, True), (41, False)])
def test_a_page_needs_as_many_sessions_as_the_setting_says(shard: Any, least: int, is_found: bool) -> None:
    rows = thanked(40)
    settings = LeakSettings(least_sessions=least, buyers_share=0.5)
    assert (sessions_named(suspects(shard(rows), [], ids(rows), settings)) is not None) is is_found


def test_a_page_that_some_see_without_buying_is_none_of_buyers_alone(shard: Any) -> None:
    rows = [row(number, 0, "thanks", bought=number >= 10) for number in range(60)]
    settings = LeakSettings(least_sessions=10, buyers_share=0.9)
    assert sessions_named(suspects(shard(rows), [], ids(rows), settings)) is None


def test_where_everybody_bought_no_page_is_one_of_buyers(shard: Any) -> None:
    rows = thanked(60, others=0)
    assert suspects(shard(rows), [], ids(rows), LeakSettings(least_sessions=2, buyers_share=0.5)) == []


def graded(sessions: int, grade: Callable[[int, bool], str | None]) -> list[Row]:
    """Sessions of two events with a property; buyers are as many among even and odd ones."""
    buyers = [number // 2 % 2 == 0 for number in range(sessions)]
    return [
        row(number, at_ms, "page_view", bought=bought, grade=grade(number, bought))
        for number, bought in enumerate(buyers)
        for at_ms in (0, 1000)
    ]


@pytest.mark.parametrize(("least", "is_found"), [(20, True), (21, False)])
def test_a_copy_of_the_outcome_needs_so_many_sessions_of_either(shard: Any, least: int, is_found: bool) -> None:
    # Given 40 sessions: ten buyers and ten others in each half
    rows = graded(40, lambda _, bought: "gold" if bought else None)
    found = suspects(shard(rows), [GRADE], ids(rows), LeakSettings(least_sessions=least))
    assert [suspect.name for suspect in found] == ["grade"] * is_found


def test_an_id_of_the_session_tells_nothing_and_its_own_bound_is_the_outcomes(shard: Any) -> None:
    rows = graded(80, lambda number, _: f"id-{number}")
    settings = LeakSettings(least_sessions=10, outcome_auc=0.6, future_correlation=0.6)
    assert suspects(shard(rows), [GRADE], ids(rows), settings) == []
    # A value that is right for three of four, in both halves: an AUC of 0.75
    rows = graded(80, lambda number, bought: "x" if bought != (number // 4 % 4 == 0) else "y")
    for bound, found in ((0.7, ["grade"]), (0.8, [])):
        settings = LeakSettings(least_sessions=10, outcome_auc=bound, future_correlation=1.0)
        assert [one.name for one in suspects(shard(rows), [GRADE], ids(rows), settings)] == found


def test_the_time_since_the_event_before_is_no_future_and_the_one_until_the_next_is(shard: Any) -> None:
    def rows(*, is_future: bool) -> list[Row]:
        made = []
        for number in range(120):
            gaps = [1 + number % 7, 1 + number * 5 % 11, 1 + number * 3 % 5]
            times = [0, gaps[0], gaps[0] + gaps[1], sum(gaps)]
            known = [*gaps, 0] if is_future else [0, *gaps]
            for at, seconds in zip(times, known, strict=True):
                bought = number // 2 % 2 == 0
                made.append(row(number, 1000 * at, "page_view", bought=bought, grade=f"g{seconds}"))
        return made

    settings = LeakSettings(least_sessions=20, future_correlation=0.9, outcome_auc=1.0)
    for is_future, reasons in ((False, []), (True, ["alone tells the time until the next event"])):
        made = rows(is_future=is_future)
        found = suspects(shard(made), [GRADE], ids(made), settings)
        assert [suspect.reason.partition(" (")[0] for suspect in found] == reasons


def test_what_is_allowed_is_a_warning_and_all_else_refused_by_name(shard: Any) -> None:
    rows = graded(80, lambda _, bought: "gold" if bought else None)
    settings = LeakSettings(least_sessions=10, allow_suspect=("grade",))
    (warning,) = check_leaks(shard(rows), [GRADE], ids(rows), settings)
    assert warning.startswith("the property 'grade' alone tells the outcome at the first event (AUC 1.000); used all")
    with pytest.raises(LeakError, match="--allow-suspect grade"):
        check_leaks(shard(rows), [GRADE], ids(rows), LeakSettings(least_sessions=10, allow_suspect=("other",)))
