"""Faults of the split: parts that differ, sessions that occur again, and times without an order; each is said."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from training.config import DEFAULT_FRACTIONS
from training.data.index import SessionIndex, index_sessions
from training.data.part_checks import check_parts
from training.data.prepared import PreparedDataset

Prepared = Callable[..., PreparedDataset]
HOUR_MS = 3_600_000
SESSIONS = 1200


def shop(share: Callable[[int], float] = lambda _: 0.3, seed: int = 0) -> pl.DataFrame:
    """A log of one session an hour that looks at a list, at items, and maybe at the cart; `share` of them buys."""
    random = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(SESSIONS):
        bought = random.random() < share(number)
        names = [
            "view_item_list",
            *["view_item"] * int(random.integers(1, 5)),
            *["view_cart"] * int(random.random() < 0.5),
        ]
        at_ms = number * HOUR_MS
        for name in [*names, *["purchase"] * bought]:
            rows.append(
                {
                    "session_id": f"s{number:05}",
                    "timestamp_ms": at_ms,
                    "event_name": name,
                    "item_id": f"SKU-{random.integers(0, 50)}",
                }
            )
            at_ms += int(random.exponential(30_000)) + 1
    return pl.DataFrame(rows)


def said(dataset: PreparedDataset) -> Sequence[str]:
    index = index_sessions(dataset, DEFAULT_FRACTIONS, 0)
    return check_parts(dataset.shards, index, dataset.clock)


def test_a_log_without_such_faults_has_no_finding(prepared: Prepared) -> None:
    assert said(prepared(shop())) == []
    assert said(prepared(shop(), shard_bytes=8_000)) == []


@pytest.mark.parametrize(("share", "is_said"), [(0.19, True), (0.29, False)])
def test_parts_with_other_shares_of_buyers_are_named(prepared: Prepared, share: float, is_said: bool) -> None:
    dataset = prepared(shop(lambda number: 0.34 if number < SESSIONS // 2 else share))
    findings = [text for text in said(dataset) if text.startswith("the share of buyers differs from part to part")]
    assert len(findings) == is_said
    assert not is_said or all(f"{part} " in findings[0] for part in ("train", "validation", "calibration", "test"))


def test_shares_of_buyers_of_a_small_log_are_compared_too() -> None:
    # Given 885 sessions, of which 27, 19, 40 and 34 of a hundred buy by part
    sizes, shares = (619, 89, 88, 89), (0.27, 0.19, 0.40, 0.34)
    part = np.repeat(np.arange(4), sizes).astype(np.int8)
    bought = np.concatenate([np.arange(size) < round(size * share) for size, share in zip(sizes, shares, strict=True)])
    index = SessionIndex(
        session_id=pl.Series([f"s{number}" for number in range(len(part))]),
        session_start_ms=np.arange(len(part)),
        outcome=bought.astype(np.float32),
        lengths=np.full(len(part), 2),
        part=part,
        shard_ends=[],
    )
    (finding,) = check_parts([], index, "calendar")
    assert "(train 27.0%, validation 19.1%, calibration 39.8%, test 33.7%)" in finding


@pytest.mark.parametrize("shard_bytes", [10**9, 8_000])
def test_sessions_that_occur_again_under_another_id_are_counted(prepared: Prepared, shard_bytes: int) -> None:
    first = shop()
    later = first.with_columns(pl.col("session_id") + "-again", pl.col("timestamp_ms") + SESSIONS * HOUR_MS)
    (finding,) = said(prepared(pl.concat([first, later]), shard_bytes=shard_bytes))
    assert re.match(r"\d+ of \d+ test, .* train sessions of 3 events or more repeat a training session event", finding)
    # Another second between two events makes them other sessions
    moved = later.with_columns(pl.col("timestamp_ms") + pl.int_range(pl.len()).over("session_id") * 1000)
    assert not [text for text in said(prepared(pl.concat([first, moved]))) if "repeat" in text]


def test_sessions_of_the_same_events_in_another_order_are_others(prepared: Prepared) -> None:
    position = pl.int_range(pl.len()).over("session_id")
    steady = shop().with_columns(timestamp_ms=pl.col("timestamp_ms").min().over("session_id") + 1000 * position)
    # Given every session again with its second and third item in each other's place
    item, is_view = pl.col("item_id"), (pl.col("event_name") == "view_item")
    swapped = (
        pl.when((position == 1) & is_view.shift(-1).over("session_id"))
        .then(item.shift(-1).over("session_id"))
        .when((position == 2) & is_view)
        .then(item.shift(1).over("session_id"))
        .otherwise(item)
    )
    later = steady.with_columns(
        pl.col("session_id") + "-again", pl.col("timestamp_ms") + SESSIONS * HOUR_MS, item_id=swapped
    ).filter((is_view & (position == 2)).any().over("session_id"))
    assert not [text for text in said(prepared(pl.concat([steady, later]))) if "repeat" in text]


def test_times_that_were_shuffled_within_sessions_are_found(prepared: Prepared) -> None:
    random = np.random.default_rng(4)
    log = shop()
    order = pl.Series(random.random(log.height))
    is_page = pl.col("event_name") != "purchase"
    pages = log.filter(is_page).with_columns(order=order.head(log.filter(is_page).height))
    mixed = pages.with_columns(pl.col("timestamp_ms").sort_by("order").over("session_id")).drop("order")
    mixed = pl.concat([mixed, log.filter(~is_page)])
    assert any(text.startswith("the order of events says nothing: in ") for text in said(prepared(mixed)))


def test_times_that_were_shuffled_over_the_log_are_found(prepared: Prepared) -> None:
    mixed = shop().with_columns(pl.col("timestamp_ms").shuffle(seed=4))
    findings = said(prepared(mixed, keep_open_sessions=True))
    assert any("days: their ids are no visits, or times are shuffled" in text for text in findings)


def test_visitors_whose_times_were_shuffled_have_sessions_of_one_event(prepared: Prepared) -> None:
    log = shop().filter((pl.int_range(pl.len()).over("session_id") == 0) | (pl.col("session_id") < "s00020"))
    bought = pl.col("session_id").str.slice(-1) == "7"
    findings = said(prepared(log.filter(pl.col("event_name") != "purchase").with_columns(outcome=bought)))
    assert any("of the sessions have one event: is another column the session" in text for text in findings)


def test_where_all_events_have_one_name_the_order_cannot_be_checked(prepared: Prepared) -> None:
    log = shop().with_columns(
        pl.when(pl.col("event_name") == "purchase")
        .then("event_name")
        .otherwise(pl.lit("view_item"))
        .alias("event_name")
    )
    assert said(prepared(log)) == ["all events have one name, so that their order could not be checked"]
