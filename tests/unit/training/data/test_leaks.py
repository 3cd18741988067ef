"""The leak check on events written out by hand: its samples, its bounds and its arithmetic, each at the limit."""

import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from model.properties import PropertySpec
from training.config import LeakSettings
from training.data.leak_names import suspect_names
from training.data.leak_statistics import codes_of, joint_codes
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


def ids(rows: Sequence[Row]) -> pl.Series:
    each = sorted({str(one["session_id"]) for one in rows})
    # In whatever order: the sample must not depend on it.
    random.shuffle(each)
    return pl.Series(each)


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
    settings = LeakSettings(most_sessions=100, buyers_share=0.5)
    one, other = (sessions_named(suspects(shard(rows), [], ids(rows), settings)) for _ in range(2))
    assert one is not None
    assert one == other
    assert one == count - 1 if count <= 100 else 100 / 2 - 1 <= one <= 100


def test_other_sessions_than_those_of_training_are_not_looked_at(shard: Any) -> None:
    rows = thanked(50)
    settings = LeakSettings(buyers_share=0.5)
    training = pl.Series([f"s{number:04}" for number in range(13)])
    assert sessions_named(suspects(shard(rows), [], training, settings)) == 10


@pytest.mark.parametrize(("count", "is_found"), [(34, False), (35, True)])
def test_a_page_of_buyers_is_one_where_wilsons_interval_says_so(shard: Any, count: int, is_found: bool) -> None:
    # The lower end of n buyers of n is n / (n + 1.96 ** 2): 0.8985 of 34, 0.9011 of 35
    rows = thanked(count)
    settings = LeakSettings(buyers_share=0.9)
    assert (sessions_named(suspects(shard(rows), [], ids(rows), settings)) is not None) is is_found


def test_a_page_that_some_see_without_buying_is_none_of_buyers_alone(shard: Any) -> None:
    rows = [row(number, 0, "thanks", bought=number >= 10) for number in range(60)]
    settings = LeakSettings(buyers_share=0.9)
    assert sessions_named(suspects(shard(rows), [], ids(rows), settings)) is None


def test_where_everybody_bought_no_page_is_one_of_buyers(shard: Any) -> None:
    rows = thanked(60, others=0)
    assert suspects(shard(rows), [], ids(rows), LeakSettings(buyers_share=0.5)) == []


def graded(sessions: int, grade: Callable[[int, bool], str | None]) -> list[Row]:
    """Sessions of two events with a property; buyers are as many among even and odd ones."""
    buyers = [number // 2 % 2 == 0 for number in range(sessions)]
    return [
        row(number, at_ms, "page_view", bought=bought, grade=grade(number, bought))
        for number, bought in enumerate(buyers)
        for at_ms in (0, 1000)
    ]


@pytest.mark.parametrize(
    ("buyers", "others", "is_found"), [(20, 20, True), (7, 400, True), (4, 400, False), (4, 4, False)]
)
def test_a_copy_of_the_outcome_is_found_where_it_cannot_be_chance_and_else_said(
    shard: Any, buyers: int, others: int, is_found: bool
) -> None:
    # Given few buyers and a property that is a copy of the outcome
    rows = [
        row(number, 0, "page_view", bought=number < buyers, grade="gold" if number < buyers else None)
        for number in range(buyers + others)
    ]
    arguments = (shard(rows), [GRADE], ids(rows), LeakSettings())
    assert [suspect.name for suspect in suspects(*arguments)] == ["grade"] * is_found
    # Then it is refused, or the report says that nothing could be checked
    if not is_found:
        said = f"the leak check cannot tell a copy of the outcome from chance: {buyers} buyers and {others} other"
        assert any(warning.startswith(said) for warning in check_leaks(*arguments).warnings)


def test_an_id_of_the_session_tells_nothing_and_its_own_bound_is_the_outcomes(shard: Any) -> None:
    rows = graded(80, lambda number, _: f"id-{number}")
    settings = LeakSettings(significance=1.0, outcome_auc=0.6, future_correlation=0.6)
    assert suspects(shard(rows), [GRADE], ids(rows), settings) == []
    # A value that is right for three of four, in both halves: an AUC of 0.75
    rows = graded(80, lambda number, bought: "x" if bought != (number // 4 % 4 == 0) else "y")
    for bound, found in ((0.7, ["grade"]), (0.8, [])):
        settings = LeakSettings(significance=0.1, outcome_auc=bound, future_correlation=1.0)
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

    settings = LeakSettings(future_correlation=0.9, outcome_auc=1.0)
    for is_future, reasons in ((False, []), (True, ["alone tells the time until the next event"])):
        made = rows(is_future=is_future)
        found = suspects(shard(made), [GRADE], ids(made), settings)
        assert [suspect.reason.partition(" (")[0] for suspect in found] == reasons


def test_what_is_allowed_is_a_warning_and_all_else_refused_by_name(shard: Any) -> None:
    rows = graded(80, lambda _, bought: "gold" if bought else None)
    settings = LeakSettings(allow_suspect=("grade",))
    (warning, *_) = check_leaks(shard(rows), [GRADE], ids(rows), settings).warnings
    assert warning.startswith("the property 'grade' alone tells the outcome at the first event (AUC 1.000); used all")
    with pytest.raises(LeakError, match="--allow-suspect grade"):
        check_leaks(shard(rows), [GRADE], ids(rows), LeakSettings(allow_suspect=("other",)))


def warned(shard: Any, rows: Sequence[Row], properties: Sequence[PropertySpec] = (GRADE,)) -> list[str]:
    return check_leaks(shard(rows), properties, ids(rows), LeakSettings()).warnings


def test_a_strong_input_is_named_with_its_own_auc_by_prefix(shard: Any) -> None:
    # Given a copy of the outcome that is wrong for three sessions of twenty
    rows = graded(400, lambda number, bought: "gold" if bought != (number // 4 % 20 < 3) else "none")
    findings = check_leaks(shard(rows), [GRADE], ids(rows), LeakSettings())
    (warning,) = [warning for warning in findings.warnings if "'grade'" in warning]
    assert re.fullmatch(
        r"'grade' alone ranks buyers with an AUC of (0\.8\d\d) over all events, \1 after 1, \1 after 2: is it known at "
        "the time of the event\\?",
        warning,
    )
    # and leads the ranking.
    assert findings.ranking[0].name == "grade"
    assert findings.ranking[0].by_length.keys() == {1, 2}
    assert findings.ranking[1].auc is None or findings.ranking[1].auc < 0.6
    # A weak one is not named
    weak = graded(400, lambda number, bought: "gold" if bought != (number // 4 % 20 < 8) else "none")
    assert not [warning for warning in warned(shard, weak) if "'grade'" in warning]


@pytest.mark.parametrize(("noise", "is_refused"), [(0, True), (3, False)])
def test_two_properties_that_tell_the_outcome_only_together_are_found(shard: Any, noise: int, is_refused: bool) -> None:
    # Given two coins, of which one is the other turned over where the session bought
    coins = random.Random(3).choices([True, False], k=600)
    rows = graded(600, lambda number, _: str(coins[number]))
    others = {
        f"s{number:04}": str(coins[number] != ((number // 2 % 2 == 0) != (number // 4 % 20 < noise)))
        for number in range(600)
    }
    rows = [{**one, "property.other": others[one["session_id"]]} for one in rows]
    properties = [GRADE, PropertySpec("other", "category")]
    settings = LeakSettings()
    found = suspects(shard(rows), properties, ids(rows), settings)
    assert [suspect.name for suspect in found] == ["grade+other"] * is_refused
    if is_refused:
        assert "together tell the outcome at the first event (AUC 1.000), and neither does alone" in found[0].reason
        allowed = LeakSettings(allow_suspect=("grade+other",))
        assert (
            check_leaks(shard(rows), properties, ids(rows), allowed).warnings[0].startswith("the property 'grade' and")
        )
    else:
        assert any("'grade' and the property 'other' together tell" in one for one in warned(shard, rows, properties))


def visits(count: int, buyers: int, marked: Callable[[int, bool], Sequence[str]]) -> list[Row]:
    """Sessions of three pages and the pages of `marked(number, bought)` after them."""
    return [
        row(number, 1000 * at, name, bought=number < buyers)
        for number in range(count)
        for at, name in enumerate(["page_view", "view_item", "page_view", *marked(number, number < buyers)])
    ]


def test_a_mark_at_the_end_of_sessions_that_did_not_buy_is_refused(shard: Any) -> None:
    rows = visits(1300, 415, lambda _, bought: [] if bought else ["end_session"])
    (found,) = suspects(shard(rows), [], ids(rows), LeakSettings())
    assert (found.name, found.what) == ("end_session", "the event 'end_session'")
    assert found.reason.startswith("is never seen by buyers (0 of 885 sessions bought, 31.9% of all did)")


def test_a_page_that_is_only_ever_the_last_event_is_refused_and_one_often_is_not(shard: Any) -> None:
    # Buyers have it as well, so that it does not tell the outcome
    rows = visits(600, 200, lambda *_: ["leave"])
    assert [
        (one.name, "only ever a session's last event (400 of 400)" in one.reason)
        for one in suspects(shard(rows), [], ids(rows), LeakSettings())
    ] == [("leave", True)]
    often = visits(600, 200, lambda number, _: ["leave", "page_view"] if number % 5 == 0 else ["leave"])
    assert suspects(shard(often), [], ids(often), LeakSettings()) == []
    few = visits(600, 200, lambda number, bought: ["leave"] if number % 40 == 0 else [])
    assert suspects(shard(few), [], ids(few), LeakSettings()) == []
    assert any(
        "the event 'leave' is only ever a session's last event (10 of 10)" in one for one in warned(shard, few, [])
    )


def test_a_page_of_thanks_of_few_buyers_is_refused_and_a_rare_page_of_buyers_named(shard: Any) -> None:
    thanks = visits(400, 12, lambda _, bought: ["thanks"] if bought else [])
    assert [one.name for one in suspects(shard(thanks), [], ids(thanks), LeakSettings())] == ["thanks"]
    rare = visits(400, 12, lambda number, _: ["voucher"] if number < 4 else [])
    assert suspects(shard(rare), [], ids(rare), LeakSettings()) == []
    assert any(
        "the event 'voucher' is seen by buyers alone (4 of 4 sessions bought)" in one for one in warned(shard, rare, [])
    )


def test_a_page_that_no_buyer_has_is_named_where_it_may_be_a_page_like_others(shard: Any) -> None:
    rows = visits(1000, 50, lambda number, bought: ["careers", "page_view"] if not bought and number % 3 else [])
    assert suspects(shard(rows), [], ids(rows), LeakSettings()) == []
    assert any("the event 'careers' is never seen by buyers (0 of " in one for one in warned(shard, rows, []))


def test_a_missing_number_is_no_zero(shard: Any) -> None:
    # Given prices of buyers alone: zero for every second one, and all different for the others
    def price(session: int) -> float | None:
        return {0: 0.0, 1: 1.5 * session}.get(session % 4)

    rows = [{**one, "price": price(int(one["session_id"][1:]))} for one in graded(600, lambda *_: None)]
    assert [suspect.name for suspect in suspects(shard(rows), [], ids(rows), LeakSettings())] == ["price"]


def test_codes_of_a_pair_tell_all_pairs_apart_and_a_nan_is_no_value() -> None:
    one, other = np.meshgrid(np.arange(3), np.arange(4))
    assert len(set(joint_codes(one.ravel(), other.ravel()).tolist())) == 12
    codes = codes_of(pl.Series([math.nan, None, 1.0, 2.0, math.nan]))
    assert codes[0] == codes[1] == codes[4] == 0
    assert len({0, *codes[2:4].tolist()}) == 3


def test_a_name_that_is_refused_for_one_reason_is_not_only_warned_of_for_another() -> None:
    # Given a page that no buyer has, which may be chance for a rule, and that is always the last
    rows = []
    for session in range(200):
        names = ["page", "end" if 40 <= session < 80 else "page"]
        rows += [(session, name, session < 40, at == 1) for at, name in enumerate(names)]
    events = pl.DataFrame(rows, schema=["session", "event_name", "outcome", "is_last"], orient="row")
    found = {suspect.name: suspect for suspect in suspect_names(events, LeakSettings(buyers_share=0.9))}
    assert found["end"].is_refused
    assert "last event" in found["end"].reason
