"""Events to sessions, cut before the first purchase, and sessions to training, validation, calibration and test.

This module keeps the invariant "no leak": nothing later than a session's first purchase remains. A purchase is the last
event of its time, and other events of equal time keep the log's order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import polars as pl

from model.events import PURCHASE, identifier_code
from training.config import DEFAULT_FRACTIONS, PARTS
from training.data.sources.conversion import EVENT_ID, SESSION_DAY_MS, SOURCE_LINE
from training.data.sources.mapping import Clock

SOURCE_FILE: Final = "source_file"
MS_PER_DAY: Final = 86_400_000
# Sessions with the most rows that are named in reports.
LARGEST: Final = 10
# When clocks are put back in most of the world: on a Sunday, early, in one of these months.
_SUNDAY: Final = 7
_LATEST_HOUR: Final = 3
_CLOCK_MONTHS: Final = (3, 4, 9, 10, 11)
_POSITION: Final = (SOURCE_FILE, SOURCE_LINE)
_SESSION: Final = "session_id"
_TIME: Final = "timestamp_ms"


@dataclass(frozen=True, slots=True)
class SessionRules:
    """How events become sessions.

    Attributes:
        clock: meaning of the times.
        by_visitor: whether `session_id` holds a visitor, to be split into sessions.
        idle_timeout_ms: longer gaps end a visitor's session; sessions younger than that at the log's end are open.
        keep_open_sessions: keep open sessions, with the outcome so far.
        equal_rows_are_duplicates: whether rows that agree in everything are one event logged twice.
        log_end_ms: time of the log's last event.
        restarts_after_purchase: whether the first event after a purchase that is none begins another session.
        lost_labels: session ids (or visitors) whose label is unknown, since their purchase could not be read.
    """

    clock: Clock
    by_visitor: bool
    idle_timeout_ms: int
    keep_open_sessions: bool
    equal_rows_are_duplicates: bool
    log_end_ms: int
    restarts_after_purchase: bool = False
    lost_labels: pl.Series = field(default_factory=lambda: pl.Series([], dtype=pl.String))


@dataclass(frozen=True, slots=True)
class SessionCounts:
    """Counts of rows and sessions; the rows and `events` add up to the accepted rows."""

    rows_duplicate: int = 0
    rows_in_open_sessions: int = 0
    rows_at_or_after_purchase: int = 0
    rows_without_label: int = 0
    events: int = 0
    sessions_contradictory: int = 0
    sessions_open: int = 0
    sessions_without_event_before_purchase: int = 0
    sessions_without_label: int = 0
    sessions: int = 0
    buyers: int = 0


@dataclass(frozen=True, slots=True)
class Sessions:
    """Sessions made of events.

    Attributes:
        events: with `session_start_ms` and `outcome`, never null; rows of a session adjacent and in order.
        contradictory: `source_file`, `line`, `reason` of every row of a session that contradicts itself.
        counts: of all other rows.
        largest: `session_id`, `rows`, `first_ms`, `last_ms` of the sessions with the most rows.
        longer_than_a_day: sessions that span more than a day.
        seen: all sessions, kept or not.
        equal_rows: rows that agree with another in every column, kept or not.
        backward: steps back in time from one line to the next of a session, in the hours in which clocks are put back,
            and in all other hours.
    """

    events: pl.DataFrame
    contradictory: pl.DataFrame
    counts: SessionCounts
    largest: pl.DataFrame
    longer_than_a_day: int
    seen: int
    equal_rows: int = 0
    backward: tuple[int, int] = (0, 0)


def make_sessions(events: pl.DataFrame, rules: SessionRules) -> Sessions:
    """Order events into sessions and cut each before its first purchase.

    Args:
        events: canonical events of whole sessions (or visitors), in any order, with `source_file`.
        rules: how.
    """
    different = _without_duplicates(events)
    equal_rows = events.height - different.height
    distinct = (different if rules.equal_rows_are_duplicates else events).drop(EVENT_ID, strict=False)
    labelled, without_label = distinct, 0
    if len(rules.lost_labels):
        is_lost = pl.col(_SESSION).is_in(rules.lost_labels.implode())
        labelled = distinct.filter(~is_lost)
        without_label = distinct.filter(is_lost)[_SESSION].n_unique()
    ordered = _ordered(labelled, rules)
    facts = _facts(ordered, rules)
    contradictory = facts.filter(pl.col("reason").is_not_null())
    sound = facts.filter(pl.col("reason").is_null())
    closed = sound.filter(~pl.col("open"))
    candidates = ordered.drop("outcome").join(
        closed.select(_SESSION, "outcome", "first_purchase_ms"), on=_SESSION, maintain_order="left"
    )
    is_earlier = (pl.col(_TIME) < pl.col("first_purchase_ms")) | (
        (pl.col(_TIME) == pl.col("first_purchase_ms")) & (pl.col("event_name") != PURCHASE)
    )
    before = pl.col("first_purchase_ms").is_null() | is_earlier
    kept = candidates.filter(before).drop("first_purchase_ms")
    kept = kept.with_columns(session_start_ms=pl.col(_TIME).min().over(_SESSION))
    outcomes = kept.group_by(_SESSION).agg(pl.col("outcome").first())["outcome"]
    counts = SessionCounts(
        rows_duplicate=equal_rows if rules.equal_rows_are_duplicates else 0,
        rows_in_open_sessions=int(sound.filter("open")["rows"].sum()),
        rows_at_or_after_purchase=candidates.height - kept.height,
        events=kept.height,
        rows_without_label=distinct.height - labelled.height,
        sessions_without_label=without_label,
        sessions_contradictory=contradictory.height,
        sessions_open=sound.height - closed.height,
        sessions_without_event_before_purchase=closed.height - outcomes.len(),
        sessions=outcomes.len(),
        buyers=int(outcomes.sum()),
    )
    return Sessions(
        events=kept.sort("session_start_ms", _SESSION, _TIME, *_POSITION),
        contradictory=ordered.join(contradictory.select(_SESSION, "reason"), on=_SESSION)
        .select(SOURCE_FILE, _SESSION, "reason", line=SOURCE_LINE)
        .sort(SOURCE_FILE, "line"),
        counts=counts,
        largest=facts.top_k(LARGEST, by=["rows", _SESSION]).select(_SESSION, "rows", "first_ms", "last_ms"),
        longer_than_a_day=facts.filter(pl.col("last_ms") - pl.col("first_ms") > MS_PER_DAY).height,
        seen=facts.height,
        equal_rows=equal_rows,
        backward=_backward(ordered) if rules.clock == "calendar" else (0, 0),
    )


def _backward(ordered: pl.DataFrame) -> tuple[int, int]:
    """Return how often a session's time steps back from a line to a later one: on autumn nights, and at other times."""
    same = [pl.col(name) == pl.col(name).shift() for name in (_SESSION, SOURCE_FILE)]
    steps = ordered.filter(*same, pl.col(SOURCE_LINE).diff() < 0, pl.col(_TIME).diff() > 0)
    time = pl.from_epoch(_TIME, "ms")
    is_night = (time.dt.weekday() == _SUNDAY) & (time.dt.hour() <= _LATEST_HOUR)
    night = steps.filter(is_night & time.dt.month().is_in(_CLOCK_MONTHS)).height
    return night, steps.height - night


def _without_duplicates(events: pl.DataFrame) -> pl.DataFrame:
    facts = [name for name in events.columns if name not in _POSITION]
    ordered = events.sort(_POSITION)
    if EVENT_ID not in facts:
        return ordered.unique(facts, keep="first", maintain_order=True)
    # A repeated id is one event, though it may have come with another time.
    named = ordered.filter(pl.col(EVENT_ID).is_not_null()).unique(
        [_SESSION, EVENT_ID], keep="first", maintain_order=True
    )
    return pl.concat([named, ordered.filter(pl.col(EVENT_ID).is_null()).unique(facts, keep="first")])


def _ordered(events: pl.DataFrame, rules: SessionRules) -> pl.DataFrame:
    if SESSION_DAY_MS in events.columns:
        # Times count from the session's start, so a session that runs past midnight has the day it began on.
        start = pl.col(SESSION_DAY_MS).min().over(_SESSION)
        events = events.with_columns(pl.col(_TIME) + start).drop(SESSION_DAY_MS)
    events = events.sort(_SESSION, _TIME)
    if rules.by_visitor:
        idle = (pl.col(_TIME).diff() > rules.idle_timeout_ms).fill_null(value=False)
        number = (idle.cast(pl.Int64).cum_sum() + 1).over(_SESSION)
        events = events.with_columns(pl.concat_str(_SESSION, number.cast(pl.String), separator="-").alias(_SESSION))
    return _by_visits(events) if rules.restarts_after_purchase else events


def _by_visits(events: pl.DataFrame) -> pl.DataFrame:
    """Return the events with another session id for each visit after a purchase: `s`, `s+1`, `s+2`.

    An outcome of the whole session says nothing of its visits, so only purchases count where there are several.
    """
    is_purchase = pl.col("event_name") == PURCHASE
    # A purchase is the last event of its time.
    ordered = events.sort(_SESSION, _TIME, is_purchase, *_POSITION)
    begins = (is_purchase.shift().over(_SESSION) & ~is_purchase).fill_null(value=False)
    ordered = ordered.with_columns(visit=begins.cast(pl.Int64).cum_sum().over(_SESSION))
    has_several = pl.col("visit").max().over(_SESSION) > 0
    later = pl.concat_str(_SESSION, pl.col("visit").cast(pl.String), separator="+")
    return ordered.with_columns(
        pl.when(has_several).then(None).otherwise(pl.col("outcome")).alias("outcome"),
        pl.when(pl.col("visit") > 0).then(later).otherwise(pl.col(_SESSION)).alias(_SESSION),
    ).drop("visit")


def _facts(ordered: pl.DataFrame, rules: SessionRules) -> pl.DataFrame:
    """Return one row a session: rows, outcome, first_purchase_ms, open, and a reason where it is contradictory."""
    purchases = pl.col("event_name") == PURCHASE
    facts = ordered.group_by(_SESSION, maintain_order=True).agg(
        rows=pl.len(),
        outcomes=pl.col("outcome").drop_nulls().n_unique(),
        given=pl.col("outcome").drop_nulls().first(),
        first_purchase_ms=pl.col(_TIME).filter(purchases).min(),
        first_ms=pl.col(_TIME).min(),
        last_ms=pl.col(_TIME).max(),
    )
    bought = pl.col("first_purchase_ms").is_not_null()
    can_be_open = rules.clock == "calendar" and not rules.keep_open_sessions
    return facts.with_columns(
        outcome=pl.coalesce("given", bought),
        open=pl.lit(can_be_open) & (pl.col("last_ms") > rules.log_end_ms - rules.idle_timeout_ms),
        reason=pl.when(pl.col("outcomes") > 1)
        .then(pl.lit("outcome differs within the session"))
        .when(bought & ~pl.col("given"))
        .then(pl.lit("outcome is false, yet the session has a purchase"))
        .otherwise(pl.lit(None, pl.String)),
    )


def split(
    sessions: pl.DataFrame,
    clock: Literal["calendar", "date", "session"],
    fractions: Sequence[float] = DEFAULT_FRACTIONS,
    seed: int = 0,
) -> pl.DataFrame:
    """Assign every session to one part, whole.

    With calendar times, sessions are split by their start (or day, where only the day is known): training earliest,
    test latest, sessions of equal start together, so that small logs may miss the fractions. Without calendar times,
    they are split by a stable hash of seed and session id, so that adding sessions moves no other session.

    Args:
        sessions: one row a session: `session_id`, `session_start_ms`.
        clock: meaning of the times.
        fractions: shares of `PARTS`, not negative, adding up to 1.
        seed: varies the split by hash; a split by time does not depend on it.

    Returns:
        `session_id` and `part`, one of `PARTS`, in the order given. A part may be empty.
    """
    if len(fractions) != len(PARTS) or min(fractions) < 0 or not np.isclose(sum(fractions), 1.0):
        raise ValueError(f"fractions must be {len(PARTS)} shares that add up to 1, not {tuple(fractions)}")
    if sessions[_SESSION].is_duplicated().any():
        # Two rows of a session could get different parts, and so leak.
        raise ValueError("session_id: expected each session once")
    if clock == "session":
        codes = [identifier_code(f"{seed}:{session_id}") for session_id in sessions[_SESSION]]
        shares = pl.Series((np.array(codes, dtype=np.int64).astype(np.float64) / 2.0**64) + 0.5)
    else:
        starts = sessions["session_start_ms"]
        comparable = starts // MS_PER_DAY if clock == "date" else starts
        shares = (comparable.rank("average") - 0.5) / max(sessions.height, 1)
    upper = np.cumsum(fractions)[:-1]
    positions = np.searchsorted(upper, shares.to_numpy(), side="right")
    return pl.DataFrame(
        {_SESSION: sessions[_SESSION], "part": [PARTS[position] for position in positions]},
        schema={_SESSION: pl.String, "part": pl.String},
    )
