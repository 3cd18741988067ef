"""What is learned, is learned from the training period: words, encodings, scaling, weights, calibration; and no session
is on both sides.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import polars as pl
import pytest
import torch

from model.artifact import manifest_of
from training.config import PARTS, TrainSettings
from training.data.index import index_sessions
from training.data.prepared import PreparedDataset
from training.data.sessions import split
from training.data.training_set import with_training_scopes
from training.fit.result import TrainResult
from training.fit.train import parts_of, train

Prepared = Callable[..., PreparedDataset]

SESSION, TIME = "session_id", pl.col("timestamp_ms")
START = TIME.min().over(SESSION)
POSITION = pl.int_range(1, pl.len() + 1).over(SESSION)
IS_PAGE = pl.col("event_name") != "purchase"
NUMBER = pl.col(SESSION).str.slice(1).cast(pl.Int64)

FRACTIONS = (0.45, 0.1, 0.25, 0.2)

# What the events of some sessions are changed to. Their first times stay, since these decide on the parts.
CHANGES: dict[str, list[pl.Expr]] = {
    "other event names": [pl.when(IS_PAGE).then(pl.lit("later_page")).otherwise("event_name").alias("event_name")],
    "other items and categories": [pl.lit("LATER").alias("item_id"), pl.lit("later").alias("item_category")],
    "dearer": [pl.col("price") * 1000 + 7],
    "slower": [START + (TIME - START) * 50],
    "other values of properties": [pl.lit("fridge").alias("property.device"), pl.col("property.visits") + 1e6],
    "values missing": [pl.lit(None, pl.String).alias("property.device"), pl.lit(None, pl.Float64).alias("price")],
    "properties that vary within the session": [
        pl.when(POSITION % 2 == 0).then(pl.lit("mobile")).otherwise(pl.lit("desktop")).alias("property.device"),
        POSITION.cast(pl.Float64).alias("property.visits"),
    ],
    "other outcomes": [
        pl.when(IS_PAGE & (POSITION > 1) & (NUMBER % 2 == 0))
        .then(pl.lit("purchase"))
        .otherwise("event_name")
        .alias("event_name")
    ],
}


@pytest.fixture
def settings(settings: TrainSettings) -> TrainSettings:
    """A run whose calibration part is large enough for a calibration of this little shop."""
    return replace(settings, fractions=FRACTIONS)


def learned(result: TrainResult) -> dict[str, object]:
    """Everything of a run that ends up in the artifact's computation."""
    return {
        **{name: value.tolist() for name, value in result.model.state_dict().items()},
        "vocabularies": result.model.encoder.vocabularies,
        "properties": result.model.encoder.properties,
        "features": result.model.encoder.feature_names,
        "calibration": result.calibration,
        "best epoch": result.fit.best_epoch,
        "fingerprint": manifest_of(result.model).fingerprint,
    }


@pytest.fixture
def prepared(prepared: Prepared) -> Prepared:
    """Prepare a log of which the last session is known to be over."""
    return partial(prepared, keep_open_sessions=True)


@pytest.fixture(scope="module")
def parts(log: pl.DataFrame) -> dict[str, set[str]]:
    starts = log.group_by(SESSION).agg(session_start_ms=TIME.min()).sort("session_start_ms")
    told = split(starts, "calendar", FRACTIONS)
    return {part: set(told.filter(pl.col("part") == part)[SESSION]) for part in PARTS}


def changed(log: pl.DataFrame, ids: Iterable[str], change: list[pl.Expr]) -> pl.DataFrame:
    where = pl.col(SESSION).is_in(list(ids))
    return log.with_columns(
        pl.when(where).then(expression).otherwise(pl.col(expression.meta.output_name())) for expression in change
    )


@pytest.mark.parametrize("name", CHANGES)
def test_nothing_of_the_test_period_is_learned(
    log: pl.DataFrame, parts: dict[str, set[str]], prepared: Prepared, settings: TrainSettings, name: str
) -> None:
    # Given a log, and the same with other sessions in its test part
    first, second = prepared(log), prepared(changed(log, parts["test"], CHANGES[name]))
    assert parts_of(second, settings.fractions, settings.split_seed)["test"] == parts["test"]
    assert not first.scan().collect().equals(second.scan().collect())
    # When both are trained on
    one, two = train(first, settings), train(second, settings)
    # Then the models are the same to the last bit, and only what is said of the test part may differ
    assert learned(two) == learned(one)
    assert one.calibration is not None
    # And the same change in the training part would have been seen
    if name != "other outcomes":
        there = prepared(changed(log, parts["train"], CHANGES[name]))
        assert learned(train(there, settings)) != learned(one)


def test_outcomes_of_the_training_period_are_learned_and_those_of_the_test_period_only_reported(
    log: pl.DataFrame, parts: dict[str, set[str]], prepared: Prepared, settings: TrainSettings
) -> None:
    # A control of the case left out above: there, such a change would leave other sessions, as buyers' are cut.
    flipped = log.with_columns(outcome=pl.lit(None, pl.Boolean)).filter(IS_PAGE)
    buyers = set(log.filter(~IS_PAGE)[SESSION])
    truth = pl.col(SESSION).is_in(list(buyers))

    def with_flips(part: str) -> PreparedDataset:
        return prepared(flipped.with_columns(outcome=truth ^ pl.col(SESSION).is_in(list(parts[part]))))

    plain = train(prepared(flipped.with_columns(outcome=truth)), settings)
    test, training = train(with_flips("test"), settings), train(with_flips("train"), settings)
    assert learned(test) == learned(plain)
    assert test.buyers["test"] == plain.sessions["test"] - plain.buyers["test"]
    assert learned(training) != learned(plain)


def test_a_word_of_the_test_period_is_as_unknown_as_any(
    log: pl.DataFrame, parts: dict[str, set[str]], prepared: Prepared, settings: TrainSettings
) -> None:
    names = ["other event names", "other items and categories", "other values of properties"]
    later = changed(log, parts["test"], [expression for name in names for expression in CHANGES[name]])
    vocabularies = train(prepared(later), settings).model.encoder.vocabularies
    words = {word for known in vocabularies.values() for word in known}
    assert words.isdisjoint({"later_page", "LATER", "later", "fridge"})
    assert {"page_view", "SKU-1", "group-1", "mobile"} <= words


def test_scaling_and_bins_stand_on_training_sessions(
    log: pl.DataFrame, parts: dict[str, set[str]], prepared: Prepared, settings: TrainSettings
) -> None:
    # Given prices that rise thousandfold after the training part
    later = parts["validation"] | parts["calibration"] | parts["test"]
    model = train(prepared(changed(log, later, CHANGES["dearer"])), settings).model
    # Then the largest price that scaling and bins know is one of before
    price = model.encoder.feature_names.index("log_price")
    ends = (model.bin_low + model.bin_width)[model.bin_feature == price]
    assert float(ends.max()) <= torch.log1p(torch.tensor(5.0 * 19)) + 1e-5
    assert float(model.feature_mean[price]) < torch.log1p(torch.tensor(5.0 * 19))


def test_a_property_that_varies_in_the_test_period_only_stays_a_fact_of_the_session(
    log: pl.DataFrame, parts: dict[str, set[str]], prepared: Prepared
) -> None:
    change = CHANGES["properties that vary within the session"]
    varying = prepared(changed(log, parts["test"], change), shard_bytes=20_000)
    told = {spec.name: spec.scope for spec in varying.properties}
    assert told == {"device": "event", "visits": "event", "scroll": "event"}
    index = index_sessions(varying, TrainSettings().fractions, 0)
    seen = with_training_scopes(varying.shards, varying.properties, index.rows("train"))
    assert {spec.name: spec.scope for spec in seen} == {"device": "session", "visits": "session", "scroll": "event"}
    assert with_training_scopes(varying.shards, varying.properties, index.rows("test")) == list(varying.properties)
    assert with_training_scopes(varying.shards, [], index.rows("train")) == []


# --- prefixes of one session on both sides


def on_several_sides(events: pl.DataFrame) -> int:
    """How many sessions have events in more than one part."""
    return events.group_by(SESSION).agg(pl.col("part").n_unique()).filter(pl.col("part") > 1).height


@pytest.mark.parametrize("clock", ["calendar", "session"])
def test_no_session_is_on_both_sides(log: pl.DataFrame, prepared: Prepared, clock: str) -> None:
    # Given sessions whose rows lie far apart in the log, and are read in many blocks and shards
    events = log if clock == "calendar" else log.with_columns(TIME - START)
    scattered = events.sample(fraction=1, shuffle=True, seed=4)
    dataset = prepared(scattered, clock=clock, block_bytes=10_000, shard_bytes=20_000)
    told = parts_of(dataset, TrainSettings().fractions, 0)
    table = pl.DataFrame(
        [(session_id, part) for part in PARTS for session_id in told[part]], [SESSION, "part"], orient="row"
    )
    # Then each session is in one part, whole
    assert table[SESSION].n_unique() == table.height == log[SESSION].n_unique()
    rows = dataset.scan().collect()
    assert on_several_sides(rows.join(table, on=SESSION)) == 0
    assert rows.height == dataset.counts.sessions.events == log.filter((~IS_PAGE).cum_sum().over(SESSION) == 0).height
    # And a split of prefixes would have had most sessions in two parts or more
    prefixes = rows.with_columns(part=(pl.int_range(pl.len()) * 7919 % 100 >= 65).cast(pl.String))
    assert on_several_sides(prefixes) > 200


def test_an_id_that_comes_again_months_later_is_one_session_in_one_part(log: pl.DataFrame, prepared: Prepared) -> None:
    first = log.filter((NUMBER == 0) & IS_PAGE)
    again = first.with_columns(TIME + 599 * 3_600_000)
    others = log.filter(NUMBER > 0)
    dataset = prepared(pl.concat([first, others, again]), shard_bytes=20_000)
    rows = dataset.sessions().filter(pl.col(SESSION) == "s00000")
    assert rows["events"].to_list() == [2 * first.height]
    told = parts_of(dataset, TrainSettings().fractions, 0)
    assert [part for part in PARTS if "s00000" in told[part]] == ["train"]


def test_the_split_refuses_an_id_twice() -> None:
    # Two rows of one id would go to two parts, each with the whole session.
    starts = pl.DataFrame({SESSION: ["a", "b", "a"], "session_start_ms": [0, 1, 10**9]})
    with pytest.raises(ValueError, match="session_id: expected each session once"):
        split(starts, "calendar")


def test_prepared_sessions_with_an_id_twice_are_not_split(
    log: pl.DataFrame, prepared: Prepared, settings: TrainSettings
) -> None:
    # Given prepared sessions whose second shard holds sessions of the first once more, at another time
    dataset = prepared(log, shard_bytes=60_000)
    one, two, *_ = dataset.shards
    later = pl.read_parquet(one).with_columns(pl.col("session_start_ms", "timestamp_ms") + 10**9)
    pl.concat([pl.read_parquet(two), later]).write_parquet(two)
    with pytest.raises(ValueError, match="expected each session once"):
        parts_of(dataset, settings.fractions, 0)
    with pytest.raises(ValueError, match="expected each session once"):
        train(dataset, settings)
