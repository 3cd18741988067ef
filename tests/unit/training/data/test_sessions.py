"""Sessions: order, gaps, the cut before the purchase, open ends, and the split into parts."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.events import PURCHASE
from training.config import DEFAULT_FRACTIONS, PARTS, fractions_for
from training.data.sessions import SessionRules, make_sessions, split
from training.data.sources.conversion import EVENT_COLUMNS, EVENT_ID
from training.data.sources.mapping import Clock

MINUTE_MS = 60_000
IDLE_MS = 30 * MINUTE_MS


def table(*rows: tuple[str, int, str], **columns: list[Any]) -> pl.DataFrame:
    """Return events from `(session_id, timestamp_ms, event_name)`, in the order of their lines."""
    events = pl.DataFrame(rows, schema=["session_id", "timestamp_ms", "event_name"], orient="row")
    absent = [pl.lit(None, dtype).alias(name) for name, dtype in EVENT_COLUMNS.items() if name not in events.columns]
    events = events.with_columns(absent).with_row_index("line", 2)
    return events.with_columns(
        pl.col("line").cast(pl.Int64).alias("source_line"),
        pl.lit(0, pl.Int64).alias("source_file"),
        *(pl.Series(name, values) for name, values in columns.items()),
    ).drop("line")


def rules(**changes: Any) -> SessionRules:
    defaults: dict[str, Any] = {
        "clock": "calendar",
        "by_visitor": False,
        "idle_timeout_ms": IDLE_MS,
        "keep_open_sessions": False,
        "equal_rows_are_duplicates": True,
        "log_end_ms": 10**12,
    }
    return SessionRules(**{**defaults, **changes})


def kept(events: pl.DataFrame, **changes: Any) -> list[tuple[Any, ...]]:
    return make_sessions(events, rules(**changes)).events.select("session_id", "timestamp_ms", "outcome").rows()


def test_events_are_ordered_by_time_and_by_line_where_times_are_equal() -> None:
    events = table(("a", 9, "third"), ("a", 5, "first"), ("a", 5, "second"))
    for equal_rows_are_duplicates in (True, False):
        made = make_sessions(events.reverse(), rules(equal_rows_are_duplicates=equal_rows_are_duplicates))
        assert made.events["event_name"].to_list() == ["first", "second", "third"]


def test_a_session_is_cut_before_its_first_purchase() -> None:
    events = table(("a", 1, "x"), ("a", 2, PURCHASE), ("a", 3, "x"), ("a", 4, PURCHASE), ("b", 1, "x"))
    assert kept(events) == [("a", 1, True), ("b", 1, False)]


def test_a_purchase_is_the_last_event_of_its_time_whatever_its_line() -> None:
    events = table(("a", 1, "x"), ("a", 2, "x"), ("a", 2, PURCHASE), ("a", 2, "x"), ("a", 3, "x"), item_id=[*"12345"])
    assert kept(events) == [("a", 1, True), ("a", 2, True), ("a", 2, True)]


def test_a_session_without_an_event_before_its_purchase_is_dropped_and_counted() -> None:
    made = make_sessions(table(("a", 1, PURCHASE), ("a", 2, "x"), ("b", 1, "x")), rules())
    assert made.events["session_id"].to_list() == ["b"]
    assert made.counts.sessions_without_event_before_purchase == 1
    assert made.counts.rows_at_or_after_purchase == 2


def test_equal_rows_are_dropped_and_counted_but_not_where_the_log_cannot_tell_them_apart() -> None:
    events = table(("a", 1, "x"), ("a", 1, "x"), ("a", 1, "y"))
    made = make_sessions(events, rules())
    assert (made.events.height, made.counts.rows_duplicate) == (2, 1)
    assert make_sessions(events, rules(equal_rows_are_duplicates=False)).events.height == 3


def test_a_visitor_is_split_at_idle_times_and_a_purchase_starts_no_session() -> None:
    events = table(
        ("v", 0, "x"),
        ("v", IDLE_MS, "x"),
        ("v", IDLE_MS + 1, PURCHASE),
        ("v", IDLE_MS + 2, "x"),
        ("v", 3 * IDLE_MS, "x"),
        ("w", 1, "x"),
    )
    assert kept(events, by_visitor=True) == [
        ("v-1", 0, True),
        ("v-1", IDLE_MS, True),
        ("w-1", 1, False),
        ("v-2", 3 * IDLE_MS, False),
    ]


def test_one_id_of_an_event_in_two_sessions_is_two_events() -> None:
    events = table(("a", 1, "x"), ("a", 2, "x"), ("b", 1, "x"), ("b", 3, "y"), **{EVENT_ID: ["1", "1", "1", None]})
    made = make_sessions(events, rules())
    assert made.events.select("session_id", "timestamp_ms").rows() == [("a", 1), ("b", 1), ("b", 3)]
    assert made.counts.rows_duplicate == 1


def test_an_outcome_of_a_whole_session_says_nothing_of_its_visits() -> None:
    events = table(
        *[("one", 1, "x"), ("one", 2, "x")],
        *[("two", 1, "x"), ("two", 2, PURCHASE), ("two", 3, "x")],
        outcome=[True, True, True, True, True],
    )
    assert kept(events, restarts_after_purchase=True) == [
        *[("one", 1, True), ("one", 2, True)],
        ("two", 1, True),
        ("two+1", 3, False),
    ]


def test_a_session_of_more_than_a_day_is_counted() -> None:
    day = 86_400_000
    events = table(("a", 0, "x"), ("a", day, "x"), ("b", 0, "x"), ("b", day + 1, "x"))
    assert make_sessions(events, rules()).longer_than_a_day == 1


def test_each_session_that_is_left_out_is_counted_once_for_its_reason() -> None:
    events = table(
        *[("kept", 1, "x"), ("kept", 2, "x")],
        *[("lost", 1, "x"), ("lost", 2, "x"), ("lost", 3, "x")],
        *[("bought at once", 1, PURCHASE), ("bought at once", 2, "x")],
        *[("open", 5 * IDLE_MS, "x")],
    )
    counts = make_sessions(
        events, rules(log_end_ms=5 * IDLE_MS, lost_labels=pl.Series(["lost"], dtype=pl.String))
    ).counts
    assert (counts.sessions, counts.events) == (1, 2)
    assert (counts.sessions_without_label, counts.rows_without_label) == (1, 3)
    assert (counts.sessions_without_event_before_purchase, counts.rows_at_or_after_purchase) == (1, 2)
    assert (counts.sessions_open, counts.rows_in_open_sessions) == (1, 1)


def test_sessions_still_open_at_the_end_of_the_log_are_dropped_whatever_their_outcome() -> None:
    end_ms = 10 * IDLE_MS
    events = table(
        ("closed", end_ms - IDLE_MS, "x"),
        ("open", end_ms - IDLE_MS + 1, "x"),
        ("open buyer", end_ms - 2 * IDLE_MS, "x"),
        ("open buyer", end_ms, PURCHASE),
    )
    made = make_sessions(events, rules(log_end_ms=end_ms))
    assert made.events["session_id"].to_list() == ["closed"]
    assert (made.counts.sessions_open, made.counts.rows_in_open_sessions) == (2, 3)
    # Each row is counted once: the purchase in an open session is one of its rows
    assert (made.counts.events, made.counts.rows_at_or_after_purchase) == (1, 0)
    assert len(kept(events, log_end_ms=end_ms, keep_open_sessions=True)) == 3
    assert len(kept(events, log_end_ms=end_ms, clock="session")) == 3


def test_a_given_outcome_stands_where_no_purchase_is_logged() -> None:
    assert kept(table(("a", 1, "x"), ("b", 1, "x"), outcome=[True, None])) == [("a", 1, True), ("b", 1, False)]


def test_sessions_past_midnight_keep_the_day_they_began_on() -> None:
    events = table(("a", 5, "x"), ("a", 9 * MINUTE_MS, "x"), day_ms=[0, 86_400_000])
    assert kept(events, clock="date") == [("a", 5, False), ("a", 9 * MINUTE_MS, False)]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d"]),
        st.integers(0, 6),
        st.sampled_from(["x", "y", PURCHASE]),
    ),
    min_size=1,
    max_size=40,
)


@given(EVENTS)
@settings(deadline=None)
def test_every_event_before_the_first_purchase_is_kept_once_and_in_order(rows: list[tuple[str, int, str]]) -> None:
    # Given any log, with the line as item so that no two rows are equal
    events = table(*rows, item_id=[str(line) for line in range(len(rows))])
    # When sessions are made of it
    shuffled = events.sample(fraction=1.0, shuffle=True, seed=1)
    made = make_sessions(shuffled, rules(equal_rows_are_duplicates=False))
    # Then each holds its own events before its first purchase, by time and then line
    expected: dict[str, list[tuple[str, bool]]] = {}
    for session_id in {row[0] for row in rows}:
        own = sorted((row[1], line, row[2]) for line, row in enumerate(rows) if row[0] == session_id)
        purchases = [time for time, _, name in own if name == PURCHASE]
        before = [
            (str(line), bool(purchases))
            for time, line, name in own
            if not purchases or time < purchases[0] or (time == purchases[0] and name != PURCHASE)
        ]
        if before:
            expected[session_id] = before
    found = {
        session_id: own.select("item_id", "outcome").rows()
        for (session_id,), own in made.events.partition_by("session_id", as_dict=True).items()
    }
    assert found == expected
    # And the sessions' rows are adjacent, and every row is accounted for
    assert made.events["session_id"].rle().len() == len(expected) == made.counts.sessions
    assert made.counts.events + made.counts.rows_at_or_after_purchase == len(rows)
    assert PURCHASE not in made.events["event_name"]


def started(*starts_ms: int) -> pl.DataFrame:
    return pl.DataFrame(
        {"session_id": [f"s{position}" for position in range(len(starts_ms))], "session_start_ms": list(starts_ms)},
        schema={"session_id": pl.String, "session_start_ms": pl.Int64},
    )


@given(st.lists(st.integers(0, 30), max_size=60))
@settings(deadline=None)
def test_a_split_by_time_puts_every_session_into_one_part_and_no_part_before_an_earlier_one(starts: list[int]) -> None:
    sessions = started(*starts)
    parts = split(sessions, "calendar")
    assert parts["session_id"].equals(sessions["session_id"])
    ranks: dict[int, set[int]] = {}
    for start, part in zip(starts, parts["part"], strict=True):
        ranks.setdefault(start, set()).add(PARTS.index(part))
    assert all(len(own) == 1 for own in ranks.values())
    in_order = [own.pop() for _, own in sorted(ranks.items())]
    assert in_order == sorted(in_order)


@pytest.mark.parametrize("clock", ["calendar", "session"])
def test_parts_have_the_sizes_asked_for(clock: Clock) -> None:
    parts = split(started(*range(20_000)), clock, seed=3)["part"]
    sizes = dict(parts.value_counts().rows())
    for part, fraction in zip(PARTS, DEFAULT_FRACTIONS, strict=True):
        assert sizes[part] / 20_000 == pytest.approx(fraction, abs=0.01)


def test_a_split_by_time_trains_on_the_past() -> None:
    parts = split(started(30, 10, 20, 40), "calendar", fractions=(0.5, 0.25, 0.0, 0.25))
    assert parts["part"].to_list() == ["validation", "train", "train", "test"]


def test_sessions_of_one_day_stay_together_where_only_the_day_is_known() -> None:
    day_ms = 86_400_000
    fractions = (0.5, 0.0, 0.0, 0.5)
    # By their starts, the third and the first of these would be parted from the sessions of their day
    early = split(started(1, 2, day_ms - 1, day_ms), "date", fractions=fractions)
    assert early["part"].to_list() == ["train", "train", "train", "test"]
    late = split(started(day_ms - 1, day_ms, day_ms + 1, 2 * day_ms - 1), "date", fractions=fractions)
    assert late["part"].to_list() == ["train", "test", "test", "test"]


@pytest.mark.parametrize("clock", ["date", "calendar"])
def test_where_only_the_day_is_known_no_hour_divides_it(clock: Clock) -> None:
    # Given three sessions of one day, and one of the next: by their starts the third is in the later half
    day_ms = 86_400_000
    parts = split(started(5, day_ms - 1, 2, day_ms), clock, fractions=(0.5, 0.0, 0.0, 0.5))["part"].to_list()
    assert parts == (["train"] * 3 if clock == "date" else ["train", "test", "train"]) + ["test"]


def test_a_session_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="each session once"):
        split(pl.concat([started(1, 2), started(1)]), "calendar")


def test_a_split_by_hash_moves_no_session_when_others_come_and_varies_with_the_seed() -> None:
    few, many = split(started(*range(50)), "session"), split(started(*range(100)), "session")
    assert many["part"].head(50).equals(few["part"])
    assert not split(started(*range(50)), "session", seed=1)["part"].equals(few["part"])


def test_a_split_by_hash_is_the_same_on_every_machine() -> None:
    parts = split(started(*range(12)), "session", fractions=(0.25, 0.25, 0.25, 0.25))
    # Quarters in which the BLAKE2b codes of "0:s0" to "0:s11" lie, computed apart with hashlib
    assert [PARTS.index(part) for part in parts["part"]] == [0, 2, 0, 3, 0, 2, 0, 1, 3, 1, 0, 0]


@pytest.mark.parametrize(
    ("sessions", "fractions"),
    [
        (0, (0.65, 0.1, 0.1, 0.15)),
        (25_000, (0.65, 0.1, 0.1, 0.15)),
        (50_000, (0.75, 0.05, 0.05, 0.15)),
        (125_000, (0.81, 0.02, 0.02, 0.15)),
        (9_000_000, (0.81, 0.02, 0.02, 0.15)),
    ],
)
def test_a_large_log_holds_out_no_more_than_it_must_and_the_same_share_for_the_test(
    sessions: int, fractions: tuple[float, ...]
) -> None:
    assert fractions_for(sessions) == pytest.approx(fractions, abs=1e-12)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.7, 0.1, 0.1, 0.2), (1.2, -0.1, -0.1, 0.0)])
def test_fractions_that_are_none_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="add up to 1"):
        split(started(1), "calendar", fractions=fractions)


def test_a_visit_after_a_purchase_is_another_session_where_the_rules_say_so() -> None:
    events = table(
        *(("a", 1, "view_item"), ("a", 2, PURCHASE), ("a", 2, "view_item"), ("a", 3, PURCHASE), ("a", 4, "view_item")),
        *(("a", 5, PURCHASE), ("a", 6, "view_item"), ("b", 1, "view_item")),
    )
    restarting = {"restarts_after_purchase": True}
    assert kept(events) == [("a", 1, True), ("a", 2, True), ("b", 1, False)]
    found = kept(events, **restarting)
    assert sorted(found) == [("a", 1, True), ("a", 2, True), ("a+1", 4, True), ("a+2", 6, False), ("b", 1, False)]
    made = make_sessions(events, rules(**restarting)).counts
    assert (made.sessions, made.buyers, made.rows_at_or_after_purchase) == (4, 2, 3)
