"""Columns that were written after the fact, planted among the inputs: each is found and refused by name."""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from training.cli import cli
from training.config import LeakSettings, TrainSettings
from training.data.leaks import OUTCOME_NAMES, LeakError, check_leaks, suspects
from training.data.prepared import PreparedDataset
from training.data.sources.canonical import write_events
from training.fit.train import parts_of, train

Prepared = Callable[..., PreparedDataset]

SESSION = "session_id"
TIME = pl.col("timestamp_ms")
BOUGHT = (pl.col("event_name") == "purchase").any().over(SESSION)
LENGTH = pl.len().over(SESSION)
POSITION = pl.int_range(1, pl.len() + 1).over(SESSION)
NEXT_GAP_S = (TIME.shift(-1) - TIME).over(SESSION) / 1000
NUMBER = pl.col(SESSION).str.slice(1).cast(pl.Int64)


def found(dataset: PreparedDataset, settings: LeakSettings | None = None) -> dict[str, str]:
    """The suspects of all sessions, by name, with the reasons."""
    everyone = dataset.sessions()[SESSION]
    chosen = suspects(dataset.shards, dataset.properties, everyone, settings or LeakSettings())
    return {suspect.name: suspect.reason for suspect in chosen}


def test_a_shop_without_leaks_has_no_suspect(log: pl.DataFrame, prepared: Prepared) -> None:
    assert found(prepared(log)) == {}


OUTCOME_COLUMNS = {
    "a copy": BOUGHT,
    "a copy as a number": BOUGHT.cast(pl.Float64),
    "its contrary": ~BOUGHT,
    "nearly a copy": BOUGHT ^ (NUMBER % 50 == 0),
    "a text": pl.when(BOUGHT).then(pl.lit("gold")).otherwise(pl.lit("none")),
    "a reference that buyers alone get, each its own": pl.when(BOUGHT).then("R-" + pl.col(SESSION)),
    "an amount that buyers alone have": pl.when(BOUGHT).then(NUMBER * 1.5),
    "an amount that is largest or smallest for buyers": pl.when(BOUGHT)
    .then((NUMBER % 2 * 2 - 1) * 1000 + NUMBER)
    .otherwise(NUMBER % 100),
}


@pytest.mark.parametrize("column", OUTCOME_COLUMNS)
def test_a_column_that_tells_the_outcome_is_found(log: pl.DataFrame, prepared: Prepared, column: str) -> None:
    dataset = prepared(log.with_columns(OUTCOME_COLUMNS[column].alias("property.grade")))
    reasons = found(dataset)
    assert list(reasons) == ["grade"]
    assert re.fullmatch(r"alone tells the outcome at the first event \(AUC (0\.9[5-9]\d|1\.000)\)", reasons["grade"])


def test_a_column_that_tells_the_outcome_in_later_events_only_is_found(log: pl.DataFrame, prepared: Prepared) -> None:
    dataset = prepared(log.with_columns(pl.when(POSITION > 1).then(BOUGHT).alias("property.grade")))
    # A third of the events are first ones, so that over all of them it tells less than everything.
    reasons = found(dataset, LeakSettings(outcome_auc=0.85))
    assert reasons["grade"].startswith("alone tells the outcome (AUC 0.")


def test_a_column_that_helps_and_does_not_decide_is_kept(log: pl.DataFrame, prepared: Prepared) -> None:
    # Wrong for every fifth session: an AUC of about 0.8
    dataset = prepared(log.with_columns((BOUGHT ^ (NUMBER % 5 == 0)).alias("property.grade")))
    assert found(dataset) == {}
    assert list(found(dataset, LeakSettings(outcome_auc=0.75))) == ["grade"]


def test_a_name_that_occurs_once_tells_nothing(log: pl.DataFrame, prepared: Prepared) -> None:
    # In sample, an id of the session would tell the outcome perfectly.
    assert found(prepared(log.with_columns(pl.col(SESSION).alias("property.reference")))) == {}


@pytest.mark.parametrize("name", ["bought", "Converted", "is-purchase", "orderId", "revenue"])
def test_a_name_that_says_the_outcome_is_found_whatever_its_values(
    log: pl.DataFrame, prepared: Prepared, name: str
) -> None:
    dataset = prepared(log.with_columns((NUMBER % 2 == 0).alias(f"property.{name}")))
    assert found(dataset) == {name: "says the outcome by its name"}


def test_names_of_outcomes_are_written_as_names_are_compared() -> None:
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", name) for name in OUTCOME_NAMES)


FUTURE_COLUMNS = {
    "dwell time of the page": (NEXT_GAP_S, "the time until the next event"),
    "dwell time in steps, as a text": (
        (NEXT_GAP_S // 8).clip(0, 9).cast(pl.String),
        "the time until the next event",
    ),
    "share of the longest dwell time, falling": (1 / (1 + NEXT_GAP_S), "the time until the next event"),
    "length of the session": (LENGTH, "how many events are still to come at event 1"),
    "progress": (POSITION / LENGTH, "whether the session ends at event 1"),
    "progress from zero": ((POSITION - 1) / (LENGTH - 1).clip(1), "how many events are still to come at event 2"),
    "events left": (LENGTH - POSITION, "whether the session ends at event 1"),
    "a flag at the exit page": (POSITION == LENGTH, "whether the session ends at event 1"),
    "a flag on bounces": (LENGTH == 1, "whether the session ends at event 1"),
    "duration of the session": (
        (TIME.max() - TIME.min()).over(SESSION),
        "how much time is still to come at event 1",
    ),
    "time left": ((TIME.max() - TIME).over(SESSION), "how much time is still to come at event 1"),
}


@pytest.mark.parametrize("column", FUTURE_COLUMNS)
def test_a_column_that_tells_what_is_still_to_come_is_found(log: pl.DataFrame, prepared: Prepared, column: str) -> None:
    values, reason = FUTURE_COLUMNS[column]
    reasons = found(prepared(log.with_columns(values.alias("property.pace"))))
    assert list(reasons) == ["pace"]
    assert reasons["pace"].startswith("alone tells ")
    # Which of the questions about the end of the session is answered best is a matter of taste.
    family = "the time until" if reason.startswith("the time until") else "at event"
    assert family in reasons["pace"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (LENGTH, "how many events are still to come at event 1"),
        ((POSITION - 1) / (LENGTH - 1).clip(1), "how many events are still to come at event 2"),
        (pl.when(POSITION == 3).then(LENGTH).otherwise(0), "how many events are still to come at event 3"),
        ((TIME.max() - TIME.min()).over(SESSION), "how much time is still to come at event 1"),
    ],
)
def test_the_end_is_told_also_where_no_session_ends_early(
    long_log: pl.DataFrame, prepared: Prepared, values: pl.Expr, reason: str
) -> None:
    reasons = found(prepared(long_log.with_columns(values.alias("property.pace"))))
    assert list(reasons) == ["pace"]
    assert reasons["pace"].startswith(f"alone tells {reason} (correlation of ranks ")


KNOWN_COLUMNS = {
    "number of the page": POSITION,
    "time since the last page": (TIME - TIME.shift(1)).over(SESSION),
    "time since the first page": (TIME - TIME.min()).over(SESSION),
    "longest time on a page so far": (TIME - TIME.shift(1)).over(SESSION).fill_null(0).cum_max().over(SESSION),
    "hour": TIME % 86_400_000 // 3_600_000,
}


@pytest.mark.parametrize("column", KNOWN_COLUMNS)
def test_a_column_that_tells_the_past_is_kept(log: pl.DataFrame, prepared: Prepared, column: str) -> None:
    assert found(prepared(log.with_columns(KNOWN_COLUMNS[column].alias("property.pace")))) == {}


@pytest.mark.parametrize("field", ["item_id", "item_category", "price", "quantity"])
def test_a_field_that_tells_the_outcome_is_found(log: pl.DataFrame, prepared: Prepared, field: str) -> None:
    values = pl.when(BOUGHT).then(2.0).otherwise(1.0)
    dataset = prepared(
        log.with_columns((values if field in ("price", "quantity") else values.cast(pl.String)).alias(field))
    )
    assert list(found(dataset)) == [field]


def thanked(log: pl.DataFrame, share: float) -> pl.DataFrame:
    """The log with outcomes instead of purchases, and a page of thanks in some share of other sessions as well."""
    number = log[SESSION].rank("dense") % 1000
    name = pl.when(pl.col("event_name") == "purchase").then(pl.lit("thank_you")).otherwise("event_name")
    stray = (POSITION == 1) & ~BOUGHT & pl.lit(number < 1000 * share)
    return log.with_columns(
        event_name=pl.when(stray).then(pl.lit("thank_you")).otherwise(name),
        outcome=BOUGHT,
    )


def test_a_page_after_a_purchase_that_the_log_does_not_name_is_found(log: pl.DataFrame, prepared: Prepared) -> None:
    reasons = found(prepared(thanked(log, 0)))
    assert list(reasons) == ["thank_you"]
    assert re.fullmatch(
        r"is seen by buyers alone \((\d+) of \1 sessions bought\): does it follow the purchase\?", reasons["thank_you"]
    )


def test_a_page_that_some_see_without_buying_is_kept(log: pl.DataFrame, prepared: Prepared) -> None:
    assert found(prepared(thanked(log, 0.1))) == {}


def test_too_few_sessions_are_called_chance_and_a_name_is_not(log: pl.DataFrame, prepared: Prepared) -> None:
    few = log.filter(NUMBER < 80).with_columns(BOUGHT.alias("property.grade"), BOUGHT.alias("property.bought"))
    dataset = prepared(few, keep_open_sessions=True)
    assert set(found(dataset)) == {"bought", "grade"}
    # A handful of sessions could agree by chance
    handful = few.filter(NUMBER < 6)
    assert list(found(prepared(handful, keep_open_sessions=True))) == ["bought"]


def test_a_sample_of_many_sessions_is_enough(log: pl.DataFrame, prepared: Prepared) -> None:
    dataset = prepared(log.with_columns(BOUGHT.alias("property.grade")))
    assert list(found(dataset, LeakSettings(most_sessions=200))) == ["grade"]
    # So few that no figure is one
    assert found(dataset, LeakSettings(most_sessions=20)) == {}


def test_sessions_over_many_shards_are_seen_as_in_one(log: pl.DataFrame, prepared: Prepared) -> None:
    leaky = log.with_columns(NEXT_GAP_S.alias("property.pace"))
    one, many = prepared(leaky), prepared(leaky, shard_bytes=8000)
    assert len(many.shards) > 3
    assert found(many) == found(one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"outcome_auc": 0}, "outcome_auc: expected a number above 0 and at most 1, not 0"),
        ({"future_correlation": 1.5}, "future_correlation: expected a number above 0 and at most 1, not 1.5"),
        ({"buyers_share": -1}, "buyers_share: expected"),
        ({"significance": 0}, "significance: expected a number above 0 and at most 1, not 0"),
        ({"warn_auc": 1.5}, "warn_auc: expected"),
        ({"most_sessions": 0}, "most_sessions: expected a whole number from 1 up, not 0"),
    ],
)
def test_bounds_that_are_none_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LeakSettings(**change)  # type: ignore[arg-type]  # wrong on purpose


# --- training


def test_training_refuses_and_names_every_suspect_and_the_ways_out(
    log: pl.DataFrame, prepared: Prepared, settings: TrainSettings
) -> None:
    dataset = prepared(log.with_columns(BOUGHT.alias("property.grade"), NEXT_GAP_S.alias("property.pace")))
    with pytest.raises(LeakError) as refused:
        train(dataset, settings)
    said = str(refused.value)
    assert "the property 'grade' alone tells the outcome at the first event (AUC 1.000)" in said
    assert "the property 'pace' alone tells the time until the next event (correlation of ranks " in said
    assert "--properties" in said
    assert said.endswith("--allow-suspect grade --allow-suspect pace")


def test_without_the_property_training_goes_on(log: pl.DataFrame, prepared: Prepared, settings: TrainSettings) -> None:
    dataset = prepared(log.with_columns(BOUGHT.alias("property.grade")))
    result = train(dataset, replace(settings, properties=("device", "visits")))
    assert not any("grade" in warning for warning in result.warnings)
    # A leak would rank all buyers first; in this shop, much is up to chance.
    bought = result.test.outcome == 1
    said = result.test.probability["willbuy"]
    assert np.mean(said[bought][:, None] > said[~bought][None, :]) < 0.85


def test_what_is_allowed_is_used_and_the_report_says_so(
    log: pl.DataFrame, prepared: Prepared, settings: TrainSettings
) -> None:
    dataset = prepared(log.with_columns(BOUGHT.alias("property.grade")))
    result = train(dataset, replace(settings, leaks=LeakSettings(allow_suspect=("grade",))))
    said = "the property 'grade' alone tells the outcome at the first event (AUC 1.000)"
    assert result.inputs_alone[0].name == "grade"
    noted = [warning for warning in result.warnings if "grade" in warning]
    assert noted == [f"{said}; used all the same, as --allow-suspect says"]


def test_only_training_sessions_are_asked(log: pl.DataFrame, prepared: Prepared, settings: TrainSettings) -> None:
    # Given a property that is a copy of the outcome in the training part, and chance in the others
    sessions = prepared(log).sessions()
    training_ids = parts_of(prepared(log), settings.fractions, settings.split_seed)["train"]
    is_training = pl.col(SESSION).is_in(list(training_ids))
    chance = NUMBER % 2 == 0
    there = prepared(log.with_columns(pl.when(is_training).then(BOUGHT).otherwise(chance).alias("property.grade")))
    elsewhere = prepared(log.with_columns(pl.when(is_training).then(chance).otherwise(BOUGHT).alias("property.grade")))
    assert sessions.height > len(training_ids)
    # Then the training part alone decides
    with pytest.raises(LeakError, match="'grade'"):
        check_leaks(there.shards, there.properties, pl.Series(list(training_ids)), LeakSettings())
    found_there = check_leaks(elsewhere.shards, elsewhere.properties, pl.Series(list(training_ids)), LeakSettings())
    assert not [warning for warning in found_there.warnings if "grade" in warning]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pages")
def test_the_command_refuses_in_words_and_does_as_it_is_told(log: pl.DataFrame, tmp_path: Path) -> None:
    path, out = tmp_path / "log.parquet", tmp_path / "model.pt"
    # In a year that the command takes for one
    dated = log.with_columns(BOUGHT.alias("property.bought"), timestamp_ms=pl.col("timestamp_ms") + 1_700_000_000_000)
    write_events(dated, path, clock="calendar")
    brief = [str(path), "--out", str(out), "--epochs", "1", "--no-lightgbm", "--hidden-size", "4"]
    brief += ["--set", "pretraining.epochs=1"]

    def run(*more: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["train", *brief, *more])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.output

    status, output = run()
    assert status == 1
    assert "the property 'bought' says the outcome by its name" in output
    assert "--allow-suspect bought" in output
    assert not out.exists()
    for more in (["--properties", "device"], ["--allow-suspect", "bought"]):
        status, output = run(*more)
        assert (status, out.exists()) == (0, True), output
        out.unlink()


def test_every_planted_column_differs_from_the_others(log: pl.DataFrame) -> None:
    # A control of the tests above: an expression that gave nothing but nulls would plant nothing.
    columns = {**OUTCOME_COLUMNS, **{name: values for name, (values, _) in FUTURE_COLUMNS.items()}}
    made = {name: log.select(values.alias("value"))["value"] for name, values in columns.items()}
    assert all(values.drop_nulls().len() > 100 for values in made.values())
    for one, other in itertools.combinations(made.values(), 2):
        assert one.cast(pl.String).to_list() != other.cast(pl.String).to_list()
