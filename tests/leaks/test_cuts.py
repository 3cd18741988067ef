"""Where a session ends for the model: before its purchase, before the log's end, once however often it was logged.

Each leak is planted in a log. A careless way to make sessions lets it through, and the same check that holds for ours
tells so.
"""

import itertools
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest
from typer.testing import CliRunner

from training.cli import cli
from training.config import PARTS, TrainSettings
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.data.sources import SourceError
from training.data.sources.canonical import write_events
from training.data.sources.mapping import ColumnMapping
from training.fit.train import parts_of

Prepared = Callable[..., PreparedDataset]

SESSION, TIME, NAME = "session_id", "timestamp_ms", "event_name"
IS_PURCHASE = pl.col(NAME) == "purchase"
COLUMNS = [SESSION, TIME, NAME, "item_id", "price"]
MINUTE_MS = 60_000


def purchase_times(log: pl.DataFrame) -> pl.DataFrame:
    return log.filter(IS_PURCHASE).group_by(SESSION).agg(purchase_ms=pl.col(TIME).min())


def too_late(log: pl.DataFrame, events: pl.DataFrame) -> int:
    """How many of the events are purchases, or later than the first purchase that the log has of their session."""
    joined = events.join(purchase_times(log), on=SESSION, how="inner")
    return joined.filter(IS_PURCHASE | (pl.col(TIME) > pl.col("purchase_ms"))).height


def without_purchases(log: pl.DataFrame) -> pl.DataFrame:
    """Careless: the purchase itself is taken out, and what came after it stays."""
    return log.filter(~IS_PURCHASE)


def up_to_the_purchase(log: pl.DataFrame) -> pl.DataFrame:
    """Careless: cut by the order of rows, so that what shares the purchase's time may go or stay."""
    return log.filter(IS_PURCHASE.cum_sum().over(SESSION) == 0)


# --- events at or after the purchase


def test_nothing_at_or_after_the_purchase_is_left(log: pl.DataFrame, prepared: Prepared) -> None:
    dataset = prepared(log)
    assert too_late(log, dataset.scan().collect()) == 0
    assert dataset.counts.sessions.buyers > 100
    # And the careless way would have left some
    assert too_late(log, without_purchases(log)) > 100


def test_a_second_purchase_opens_nothing_again(log: pl.DataFrame, prepared: Prepared) -> None:
    again = log.filter(IS_PURCHASE).with_columns(pl.col(TIME) + 200_000)
    browsing = again.with_columns(pl.col(TIME) - 50_000, event_name=pl.lit("page_view"))
    log = pl.concat([log, again, browsing]).sort(TIME, maintain_order=True)
    assert too_late(log, prepared(log).scan().collect()) == 0


def test_renamed_purchases_cut_as_well(tmp_path: Path) -> None:
    # Given a log that calls the purchase as Segment does, and one with a name of its own that is mapped
    log = tmp_path / "log.csv"
    rows = [("a", 1, "Product Viewed"), ("a", 2, "Order Completed"), ("a", 3, "Product Viewed")]
    rows += [("b", 1, "Product Viewed"), ("b", 2, "paid"), ("b", 3, "Product Viewed")]
    log.write_text("sid,t,what\n" + "".join(f"{sid},{at},{what}\n" for sid, at, what in rows))
    columns = {"session_id": "sid", "timestamp": "t", "event_name": "what", "time_format": "elapsed_s"}
    mapped = prepare(log, tmp_path / "mapped", mapping=ColumnMapping(**columns, events={"paid": "purchase"}))  # type: ignore[arg-type]  # all texts
    assert mapped.scan().select(SESSION, TIME, "outcome").collect().rows() == [("a", 1000, True), ("b", 1000, True)]
    # Not mapped, it is asked for
    with pytest.raises(SourceError, match=r"'paid' .* reads like a purchase"):
        prepare(log, tmp_path / "unmapped", mapping=ColumnMapping(**columns))  # type: ignore[arg-type]  # all texts
    # Said to be a page, it is a page like any other: `test_inputs` has what finds it.
    page = ColumnMapping(**columns, events={"paid": "paid"})  # type: ignore[arg-type]  # all texts
    unmapped = prepare(log, tmp_path / "page", mapping=page)
    assert unmapped.sessions().filter("outcome")[SESSION].to_list() == ["a"]


# --- wrong order on equal timestamps

SAME_TIME = [("view_item", 10), ("view_item", 20), ("purchase", 20), ("page_view", 20)]


def in_lines(order: tuple[int, ...]) -> pl.DataFrame:
    rows = [SAME_TIME[line] for line in order]
    names, times = zip(*rows, strict=True)
    return pl.DataFrame({SESSION: "a", TIME: times, NAME: names})


def test_a_purchase_is_the_last_event_of_its_time_whatever_the_order_of_the_lines(prepared: Prepared) -> None:
    made, careless = [], []
    for order in itertools.permutations(range(len(SAME_TIME))):
        log = in_lines(order)
        made.append(sorted(prepared(log, clock="session").scan().select(TIME, NAME).collect().rows()))
        careless.append(up_to_the_purchase(log.sort(TIME, maintain_order=True)).height)
    assert made == [[(10, "view_item"), (20, "page_view"), (20, "view_item")]] * 24
    # And cut by lines, it would depend on their order
    assert set(careless) == {1, 2, 3}


def test_events_of_equal_time_keep_the_order_of_their_lines_however_they_are_read(
    log: pl.DataFrame, tmp_path: Path
) -> None:
    # Given a log with whole minutes only, so that many events of a session share one, in blocks and shards or whole
    coarse = log.with_columns(pl.col(TIME) // MINUTE_MS * MINUTE_MS, source_line=pl.int_range(1, pl.len() + 1))
    coarse = coarse.with_columns(item_id=pl.col("source_line").cast(pl.String))
    write_events(coarse, tmp_path / "log.parquet", clock="calendar")
    write_events(coarse.sample(fraction=1, shuffle=True, seed=1), tmp_path / "shuffled.parquet", clock="calendar")
    ways: list[dict[str, Any]] = [{}, {"block_bytes": 5_000, "shard_bytes": 20_000}]
    read = [
        prepare(tmp_path / file, tmp_path / f"{number}-{file}", earliest="1970-01-01", **way)
        .scan()
        .collect()
        .sort(SESSION, maintain_order=True)
        for number, way in enumerate(ways)
        for file in ("log.parquet", "shuffled.parquet")
    ]
    # Then the order is that of time and line, each time
    lines = read[0].select(SESSION, TIME, pl.col("item_id").cast(pl.Int64))
    assert lines.equals(lines.sort(SESSION, TIME, "item_id"))
    assert lines.select(SESSION, TIME).is_duplicated().sum() > 500
    assert all(other.equals(read[0]) for other in read[1:])


# --- duplicate rows


def test_rows_logged_twice_count_once(log: pl.DataFrame, prepared: Prepared) -> None:
    # Given the log with every fourth row once more: beside the first, and far away at the end
    numbered = log.with_columns(source_line=pl.int_range(1, pl.len() + 1))
    twice = numbered.gather_every(4)
    for copies in (pl.concat([numbered, twice]), pl.concat([numbered, twice]).sort("source_line")):
        doubled = copies.drop("source_line")
        dataset = prepared(doubled)
        # Then they are counted, and the sessions are those of the log itself
        assert dataset.counts.sessions.rows_duplicate == twice.height
        assert dataset.scan().collect().equals(prepared(log).scan().collect())
        # And the careless way would have had more events
        assert up_to_the_purchase(doubled).height > up_to_the_purchase(log).height


def test_a_file_given_twice_counts_once(log: pl.DataFrame, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    for name in ("monday.parquet", "monday-again.parquet"):
        write_events(log, folder / name, clock="calendar")
    dataset = prepare(folder, tmp_path / "prepared", shard_bytes=20_000, earliest="1970-01-01")
    once = prepare(folder / "monday.parquet", tmp_path / "once", earliest="1970-01-01")
    assert dataset.counts.sessions.rows_duplicate == log.height
    assert dataset.sessions().equals(once.sessions())


def test_events_that_differ_in_anything_are_not_taken_for_duplicates(log: pl.DataFrame, prepared: Prepared) -> None:
    dataset = prepared(pl.concat([log, log.with_columns(pl.col("price") + 1)]))
    assert dataset.counts.sessions.rows_duplicate == 0


# --- sessions still open at the log's end


def mislabelled(whole: PreparedDataset, cut: PreparedDataset) -> int:
    """How many sessions of a log that breaks off have another outcome than the whole log knows."""
    both = cut.sessions().join(whole.sessions(), on=SESSION, suffix="_in_truth")
    return both.filter(pl.col("outcome") != pl.col("outcome_in_truth")).height


def test_a_session_that_the_logs_end_cuts_off_is_not_taken_as_not_bought(log: pl.DataFrame, prepared: Prepared) -> None:
    # Given a shop with a new session every ten seconds, and its log broken off in the middle
    busy = log.with_columns(pl.col(TIME) - pl.col(SESSION).str.slice(1).cast(pl.Int64) * (60 * MINUTE_MS - 10_000))
    whole, end_ms = prepared(busy), 60 * MINUTE_MS
    broken = busy.filter(pl.col(TIME) < end_ms)
    # Then those still running are left out and counted
    cut = prepared(broken)
    assert mislabelled(whole, cut) == 0
    assert cut.counts.sessions.sessions_open > 100
    assert cut.counts.sessions.sessions > 100
    # Buyers too: to leave out only the others would raise the share of buyers
    running = broken.group_by(SESSION).agg(pl.col(TIME).max()).filter(pl.col(TIME) > end_ms - 30 * MINUTE_MS)[SESSION]
    bought = broken.filter(IS_PURCHASE)[SESSION]
    assert len(set(running) & set(bought)) > 0
    assert set(cut.sessions()[SESSION]).isdisjoint(set(running) & set(bought))
    # And the careless way takes buyers for others
    assert mislabelled(whole, prepared(broken, keep_open_sessions=True)) > 0


# --- the same cut everywhere


def visits(path: Path) -> Path:
    """A log that knows visitors only: each comes three times, hours apart, and some buy in the middle of a visit."""
    numbers = random.Random(3)
    rows = []
    for visitor in range(150):
        for visit in range(3):
            at_s = 1_600_000_000 + (visitor * 7 + visit * 500) * 600
            for _ in range(numbers.randint(1, 6)):
                what = "purchase" if numbers.random() < 0.15 else numbers.choice(["view", "put"])
                rows.append(f"v{visitor},{at_s},{what},SKU-{numbers.randint(1, 9)}")
                at_s += numbers.randint(1, 1500)
    path.write_text("who,at,what,sku\n" + "\n".join(rows) + "\n")
    return path


VISITS = ColumnMapping(
    visitor_id="who",
    timestamp="at",
    event_name="what",
    item_id="sku",
    time_format="epoch_s",
    events={"view": "view_item", "put": "add_to_cart"},
)


def test_every_part_is_cut_by_the_same_rules(tmp_path: Path) -> None:
    # Given sessions of visitors, made with an idle time of ten minutes
    log, idle_ms = visits(tmp_path / "log.csv"), 10 * MINUTE_MS
    dataset = prepare(log, tmp_path / "prepared", mapping=VISITS, idle_timeout_s=600)
    parts = parts_of(dataset, TrainSettings().fractions, 0)
    made = {key: events for (key,), events in dataset.scan().collect().partition_by(SESSION, as_dict=True).items()}
    # When the sessions are made once more, visitor by visitor and row by row
    expected: dict[str, list[tuple[int, str]]] = {}
    rows = pl.read_csv(log).sort("who", "at", maintain_order=True)
    end_ms = 1000 * max(rows["at"])
    for (visitor,), own in rows.partition_by("who", as_dict=True).items():
        cut: list[list[tuple[int, str]]] = []
        for at_s, what in own.select("at", "what").iter_rows():
            if not cut or at_s * 1000 - cut[-1][-1][0] > idle_ms:
                cut.append([])
            cut[-1].append((at_s * 1000, what))
        for number, session in enumerate(cut, start=1):
            bought = [at_ms for at_ms, what in session if what == "purchase"]
            before = [
                (at_ms, what)
                for at_ms, what in session
                if not bought or at_ms < bought[0] or (at_ms == bought[0] and what != "purchase")
            ]
            if before and session[-1][0] <= end_ms - idle_ms:
                expected[f"{visitor}-{number}"] = before
    # Then each part holds just these
    assert set().union(*parts.values()) == set(expected) == set(made)
    names = {"view": "view_item", "put": "add_to_cart"}
    for part in PARTS:
        assert len(parts[part]) > 30
        for session_id in parts[part]:
            told = made[session_id].select(TIME, NAME).rows()
            assert told == [(at_ms, names[what]) for at_ms, what in expected[session_id]]
    # And another idle time would have made others
    assert set(prepare(log, tmp_path / "other", mapping=VISITS).sessions()[SESSION]) != set(made)


def test_a_session_is_cut_alike_whatever_else_is_in_the_log(log: pl.DataFrame, prepared: Prepared) -> None:
    dataset = prepared(log)
    parts = parts_of(dataset, TrainSettings().fractions, 0)
    whole = dataset.scan().collect()
    for part in PARTS:
        mine = pl.col(SESSION).is_in(list(parts[part]))
        alone = prepared(log.filter(mine), keep_open_sessions=True).scan().collect()
        assert alone.height > 100
        assert alone.equals(whole.filter(mine))


MAPPING_FILE = """
time_format = "epoch_s"
[columns]
visitor_id = "who"
timestamp = "at"
event_name = "what"
item_id = "sku"
[events]
view = "view_item"
put = "add_to_cart"
"""


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
def test_a_model_is_judged_on_sessions_cut_as_in_its_training(tmp_path: Path) -> None:
    # Given a model of sessions that ended after ten idle minutes
    log, mapping, artifact = visits(tmp_path / "log.csv"), tmp_path / "mapping.toml", tmp_path / "model.pt"
    mapping.write_text(MAPPING_FILE)
    run = [str(log), "--mapping", str(mapping), "--out"]
    brief = ["--epochs", "1", "--no-lightgbm", "--hidden-size", "4", "--set", "pretraining.epochs=1"]
    commands = [
        ["train", *run, str(artifact), "--idle-timeout-s", "600", *brief],
        # When it is judged on the raw log, of which the command line says no more than how it is read
        ["evaluate", str(artifact), *run, str(tmp_path / "judged.html"), "--no-baselines", "--bootstrap", "20"],
    ]
    for command in commands:
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 0, result.output
    # Then it is judged on the very sessions of its own test part
    trained, judged = (json.loads((tmp_path / name).read_text()) for name in ("model.report.json", "judged.json"))
    assert (judged["sessions"], judged["buyers"]) == (trained["sessions"], trained["buyers"])
    # And cut otherwise, they would have been others
    other = prepare(log, tmp_path / "other", mapping=VISITS)
    assert len(parts_of(other, TrainSettings().fractions, 0)["test"]) != trained["sessions"]


@pytest.mark.slow
def test_the_service_cuts_where_training_cuts(log: pl.DataFrame, prepared: Prepared, service: Any, valkey: Any) -> None:
    # Given the sessions that training makes of a log
    some = log.filter(pl.col(SESSION).str.slice(1).cast(pl.Int64) < 40)
    trained = dict(prepared(some, keep_open_sessions=True).sessions().select(SESSION, "events").iter_rows())
    bought = set(some.filter(IS_PURCHASE)[SESSION])
    # When the same log, pages after the purchase included, is posted as it happened
    shift_ms = int(time.time() * 1000) - 50 * 60 * MINUTE_MS
    running = service(redis_url=valkey.url, max_event_age_s=10 * 86_400)
    names = (SESSION, TIME, NAME, "item_id", "price")
    lines = [
        json.dumps(
            dict(zip((SESSION, "timestamp", NAME, "item_id", "price"), row, strict=True))
            | {"timestamp": row[1] + shift_ms}
        )
        for row in some.select(names).iter_rows()
    ]
    headers = {"content-type": "application/x-ndjson"}
    with httpx.Client(base_url=running.base_url, timeout=30) as client:
        answer = client.post("/v1/events/batch", content="\n".join(lines), headers=headers).json()["results"]
        served = {name: client.get(f"/v1/sessions/{name}").json() for name in trained}
    # Then as many events of each session are folded
    assert {name: session["events"] for name, session in served.items()} == trained
    assert {name for name, session in served.items() if session["outcome"] == "purchase"} == bought
    assert sum(not result["score"]["folded"] for result in answer) == some.height - sum(trained.values())
