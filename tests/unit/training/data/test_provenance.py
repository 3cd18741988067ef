"""What tells data apart, and which sessions a model has not seen."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.artifacts import random_model

from model.artifact import Manifest, manifest_of
from training.config import DEFAULT_FRACTIONS
from training.data.prepared import PreparedDataset, read_prepared
from training.data.provenance import cuts_of, data_fingerprint, lineage, unseen_sessions
from training.fit.train import parts_of

HOUR_MS = 3_600_000


def rows(sessions: int, first_ms: int = 0) -> dict[str, list[Any]]:
    """Return a log of sessions of one or two events, one session an hour."""
    columns: dict[str, list[Any]] = {"session_id": [], "timestamp_ms": [], "event_name": [], "price": []}
    for number in range(sessions):
        for position in range(1 + number % 2):
            row = (f"s{first_ms}-{number}", first_ms + number * HOUR_MS + position, "page_view", 1.0 + position)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return columns


def part_for_test(dataset: PreparedDataset, seed: int = 0) -> frozenset[str]:
    return frozenset(parts_of(dataset, DEFAULT_FRACTIONS, seed)["test"])


def trained_on(dataset: PreparedDataset, seed: int = 0, ancestors: Sequence[Manifest] = ()) -> Manifest:
    """Return the manifest of a model trained on the data."""
    described = dataset.to_dict()
    facts = {name: described[name] for name in ("source_format", "clock", "first_time_ms", "last_time_ms", "counts")}
    return manifest_of(
        random_model(),
        data={"fingerprint": data_fingerprint(dataset), **facts},
        training={
            "fractions": DEFAULT_FRACTIONS,
            "split_seed": seed,
            "lineage": [step for manifest in ancestors for step in lineage(manifest)],
        },
    )


# --- fingerprints


def test_where_and_how_data_is_stored_changes_nothing(prepared, tmp_path) -> None:
    dataset = prepared(rows(20))
    first = data_fingerprint(dataset)
    # When the folder is copied elsewhere and its shards are written in another way
    shutil.copytree(dataset.path, tmp_path / "copy")
    for shard in (tmp_path / "copy").glob("*.parquet"):
        pl.read_parquet(shard).write_parquet(shard, compression="uncompressed", row_group_size=3)
    # Then it is the same data
    assert data_fingerprint(read_prepared(tmp_path / "copy")) == first


@pytest.mark.parametrize(
    "change",
    [
        pl.col("price").replace(2.0, 3.0),
        pl.col("event_name").replace("page_view", "view_item"),
        pl.col("outcome").not_(),
        pl.col("timestamp_ms") + 1,
        pl.lit(None, pl.Float64).alias("price"),
        pl.lit("", pl.String).alias("item_id"),
    ],
    ids=["a price", "a name", "the outcome", "the time", "no price", "an empty text for none"],
)
def test_any_change_of_content_shows(change, prepared) -> None:
    dataset = prepared(rows(20))
    first = data_fingerprint(dataset)
    [shard] = dataset.shards
    pl.read_parquet(shard).with_columns(change).write_parquet(shard)
    assert data_fingerprint(dataset) != first


@pytest.mark.parametrize(
    ("one", "other"),
    [({"price": [0.0, 1.0]}, {"price": [None, 1.0]}), ({"item_id": ["ab", "c"]}, {"item_id": ["a", "bc"]})],
    ids=["zero and none", "where a text ends"],
)
def test_values_that_look_alike_are_told_apart(one, other, prepared) -> None:
    dataset = prepared(rows(2) | {"price": [1.0] * 3})
    [shard] = dataset.shards
    frame = pl.read_parquet(shard)[:2]
    found = set()
    for columns in (one, other):
        frame.with_columns(
            pl.Series(name, values, frame.schema[name]) for name, values in columns.items()
        ).write_parquet(shard)
        found.add(data_fingerprint(dataset))
    assert len(found) == 2


# --- unseen sessions


@pytest.fixture
def dataset(prepared) -> PreparedDataset:
    data: PreparedDataset = prepared(rows(200))
    return data


def test_a_model_has_seen_all_of_its_data_but_the_test_part(dataset) -> None:
    unseen = unseen_sessions(dataset, {"a": trained_on(dataset)})
    assert unseen.known
    assert unseen.session_ids == part_for_test(dataset)
    assert "a trained on this data: only the test part" in unseen.note


def test_of_two_splits_what_is_in_both_test_parts_is_left(dataset) -> None:
    parts = [part_for_test(dataset, seed) for seed in (0, 1)]
    assert parts[0] != parts[1]
    unseen = unseen_sessions(dataset, {"a": trained_on(dataset, 0), "b": trained_on(dataset, 1)})
    assert unseen.session_ids == parts[0] & parts[1]


def test_what_an_ancestor_has_seen_counts_as_seen(dataset, prepared, tmp_path) -> None:
    # Given a model that went on, on other data, from one that was trained on this data
    elsewhere = replace(trained_on(dataset), fingerprint="ancestor")
    other = trained_on(dataset, ancestors=[elsewhere])
    other = replace(other, data={**other.data, "fingerprint": "other"})
    unseen = unseen_sessions(dataset, {"warm": other})
    # Then only the ancestor's test part is unseen, and what the other data holds is unknown
    assert unseen.session_ids == part_for_test(dataset)
    assert not unseen.known


def test_a_model_whose_manifest_has_no_fingerprint_is_known_by_the_facts(dataset) -> None:
    manifest = trained_on(dataset)
    old = replace(manifest, data={name: value for name, value in manifest.data.items() if name != "fingerprint"})
    assert unseen_sessions(dataset, {"old": old}).session_ids == part_for_test(dataset)


def calendar(make: Any, folder: Path, first_ms: int) -> PreparedDataset:
    data: PreparedDataset = make(rows(50, first_ms), clock="calendar", keep_open_sessions=True)
    return read_prepared(Path(shutil.move(data.path, folder)))


def test_sessions_after_the_end_of_the_training_data_are_new(prepared, tmp_path) -> None:
    before = calendar(prepared, tmp_path / "before", 1_000)
    after = calendar(prepared, tmp_path / "after", 1_000 + 1_000 * HOUR_MS)
    # Later data is unseen, whole
    unseen = unseen_sessions(after, {"a": trained_on(before)})
    assert (unseen.session_ids, unseen.known) == (None, True)
    # Also from the moment after the last event that was trained on, and not from that moment itself
    assert after.first_time_ms is not None
    for moment_ms, known in ((after.first_time_ms, False), (after.first_time_ms - 1, True)):
        before_it = trained_on(before)
        before_it = replace(before_it, data=before_it.data | {"last_time_ms": moment_ms})
        assert unseen_sessions(after, {"a": before_it}).known is known
    # Of earlier data nothing can be told
    unseen = unseen_sessions(before, {"a": trained_on(after)})
    assert (unseen.session_ids, unseen.known) == (None, False)
    assert "is unknown" in unseen.note


def test_nothing_can_be_told_of_a_model_that_says_nothing(dataset) -> None:
    unseen = unseen_sessions(dataset, {"bare": manifest_of(random_model())})
    assert (unseen.session_ids, unseen.known) == (None, False)


@pytest.mark.parametrize(
    ("source_format", "settings", "cut"),
    [
        ("mapping", {"equal_rows": "keep"}, "keep"),
        ("mapping", {"keep_equal_rows": True}, "keep"),
        # Earlier releases dropped equal rows of mapped logs
        ("mapping", {"keep_equal_rows": False}, "drop"),
        ("mapping", {}, "drop"),
        # and did as the format says with others.
        ("clickstreamdmm", {"keep_equal_rows": False}, None),
    ],
)
def test_equal_rows_are_cut_again_as_they_were(source_format: str, settings: dict[str, Any], cut: str | None) -> None:
    manifest = manifest_of(random_model(), data={"source_format": source_format, "prepare": settings})
    assert cuts_of(manifest)["equal_rows"] == cut
