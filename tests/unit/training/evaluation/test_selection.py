"""Which sessions are judged and which are learned from: never the same, and the reader is told."""

from dataclasses import replace

import polars as pl
import pytest

from training.config import SelectionSettings
from training.data.prepare import prepare
from training.data.provenance import lineage
from training.data.sessions import split
from training.evaluation.selection import SelectionError, select
from training.fit.result import export
from training.fit.train import parts_of
from training.synthetic import PRESETS, generate, write


@pytest.fixture(scope="module")
def manifest(trained, shop, settings, tmp_path_factory):
    return export(trained, shop.dataset, settings, {}, tmp_path_factory.mktemp("model") / "m.pt")


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("newer")
    write(generate(PRESETS["default"], 400, seed=77), folder / "shop.parquet")
    return prepare(folder / "shop.parquet", folder / "prepared")


@pytest.fixture(scope="module")
def parts(shop, settings):
    return parts_of(shop.dataset, settings.fractions, settings.split_seed)


def test_on_its_own_data_the_test_part_is_judged_and_baselines_learn_from_the_training_part(
    manifest, shop, parts
) -> None:
    found = select(shop.dataset, {"m": manifest}, SelectionSettings())
    assert found.judged == parts["test"]
    assert found.training == parts["train"]
    assert found.validation == parts["validation"]
    assert found.own == parts["train"]
    assert any("test part" in note for note in found.notes)
    assert found.warnings == []


def test_a_sample_is_told_and_the_same_for_the_same_seed(manifest, shop, parts) -> None:
    wanted = SelectionSettings(most_sessions=50, most_fitted=200)
    found, again, other = (select(shop.dataset, {"m": manifest}, replace(wanted, seed=seed)) for seed in (0, 0, 1))
    assert (len(found.judged), len(found.training or ()), len(found.validation)) == (50, 200, 50)
    assert found.judged < parts["test"]
    assert found == again
    assert found.judged != other.judged
    assert any("50 of" in note for note in found.notes)


def test_a_model_with_another_split_leaves_only_what_neither_has_seen(manifest, shop, parts) -> None:
    other = replace(manifest, training={**manifest.training, "fractions": (0.5, 0.1, 0.1, 0.3)})
    found = select(shop.dataset, {"m": other, "n": manifest}, SelectionSettings())
    assert found.judged == parts["test"]
    assert not found.judged & (found.training or frozenset())


def test_all_sessions_leave_nothing_to_learn_from(manifest, shop) -> None:
    found = select(shop.dataset, {"m": manifest}, SelectionSettings(all_sessions=True))
    assert len(found.judged) == shop.dataset.counts.sessions.sessions
    assert found.training is None
    assert any("too good" in warning for warning in found.warnings)
    assert any("Baselines are left out" in warning for warning in found.warnings)


def test_data_of_others_is_judged_whole_without_baselines_or_with_those_of_elsewhere(
    manifest, shop, newer, parts
) -> None:
    every = newer.counts.sessions.sessions
    without = select(newer, {"m": manifest}, SelectionSettings(baselines=False))
    assert (len(without.judged), without.training, without.own) == (every, None, None)
    elsewhere = select(newer, {"m": manifest}, SelectionSettings(), shop.dataset)
    assert (len(elsewhere.judged), elsewhere.training) == (every, parts["train"])


def test_of_data_of_others_the_test_part_is_judged_where_the_baselines_learn_from_the_rest(manifest, newer) -> None:
    found = select(newer, {"m": manifest}, SelectionSettings())
    assert found.training
    assert found.judged
    assert not found.judged & found.training
    assert not found.judged & found.validation
    assert len(found.judged) < newer.counts.sessions.sessions
    assert any("was not trained on this data" in note for note in found.notes)


@pytest.mark.parametrize(
    ("seed", "fractions"), [(0, (0.6, 0.1, 0.1, 0.2)), (5, (0.6, 0.1, 0.1, 0.2)), (5, (0.2, 0.2, 0.2, 0.4))]
)
def test_data_of_others_is_split_as_the_model_was(manifest, newer, seed, fractions) -> None:
    # Given times that count from a session's start, so that the split is by hash
    hashed = replace(newer, clock="session")
    model = replace(manifest, training={**manifest.training, "split_seed": seed, "fractions": fractions})
    found = select(hashed, {"m": model}, SelectionSettings())
    table = split(hashed.sessions(), "session", fractions, seed)
    parts = {part: frozenset(table.filter(pl.col("part") == part)["session_id"]) for part in ("train", "test")}
    assert (found.judged, found.training) == (parts["test"], parts["train"])


def test_what_a_predecessor_was_trained_on_is_not_judged_and_not_the_models_own(manifest, shop, parts) -> None:
    # Given a model of other data that was started from one of this data
    training = {**manifest.training, "lineage": lineage(manifest)}
    successor = replace(manifest, data={**manifest.data, "fingerprint": "0" * 64}, training=training)
    found = select(shop.dataset, {"m": successor}, SelectionSettings())
    assert found.judged == parts["test"]
    assert found.own is None


def test_baselines_never_learn_from_what_is_judged(manifest, shop, newer) -> None:
    # All sessions are judged, and the same data was given to learn from
    with pytest.raises(SelectionError, match="no session of this data is left to fit baselines on"):
        select(shop.dataset, {"m": manifest}, SelectionSettings(all_sessions=True), shop.dataset)
