"""Sessions in files instead of memory: the same model, files without a name, and parts looked at by sample."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from model.events import Event
from training.config import (
    PARTS,
    PretrainingSettings,
    StorageBudget,
    TeacherSettings,
    TrainSettings,
    VocabularySettings,
)
from training.data.encoded import Encoded, scaling_of
from training.data.index import index_sessions
from training.data.leaks import LeakError
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.data.storage import Memory, files
from training.data.training_set import TrainingError, load
from training.fit.result import TrainResult
from training.fit.train import WILLBUY, train


@pytest.fixture(scope="module")
def split(small_shop, tmp_path_factory) -> PreparedDataset:
    """The small shop's log in several shards."""
    log = small_shop.path.with_name("shop.parquet")
    dataset = prepare(log, tmp_path_factory.mktemp("split") / "prepared", shard_bytes=log.stat().st_size // 4)
    assert len(dataset.shards) > 2
    return dataset


@pytest.fixture(scope="module")
def brief(settings: TrainSettings) -> TrainSettings:
    """One epoch on the outcomes and nothing else."""
    return replace(
        settings,
        fit=replace(settings.fit, epochs=1),
        pretraining=PretrainingSettings(epochs=0),
        teacher=TeacherSettings(folds=0),
        lightgbm=False,
    )


@pytest.fixture(scope="module")
def in_memory(split, brief) -> TrainResult:
    return train(split, brief)


def test_the_index_tells_of_every_session_in_the_order_of_the_shards(split) -> None:
    index = index_sessions(split, (0.5, 0.2, 0.1, 0.2), 0)
    expected = {row[0]: row[1:] for row in split.sessions().iter_rows()}
    told = zip(index.session_id, index.session_start_ms.tolist(), index.outcome, index.lengths, strict=True)
    assert {name: (start, bool(outcome), length) for name, start, outcome, length in told} == expected
    assert index.shard_ends[-1] == len(expected) == sum(index.sessions(part) for part in PARTS)
    assert not {*index.ids("train")} & {*index.ids("test")}
    for shard, rows in zip(split.shards, index.rows("train"), strict=True):
        assert {*pl.read_parquet(shard)["session_id"].filter(rows)} <= {*index.ids("train")}
    first, parts = index.shard(1)
    assert (first, first + len(parts)) == (index.shard_ends[0], index.shard_ends[1])


@pytest.mark.slow
def test_a_model_trained_from_files_is_the_one_trained_from_memory(split, brief, in_memory, tmp_path) -> None:
    # When the same data is trained on in files
    in_files = train(split, brief, budget=StorageBudget(memory_mib=0, scratch=tmp_path))
    # Then weights, scaling, calibration and predictions are equal to the last bit
    ours, theirs = in_files.model.state_dict(), in_memory.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert in_files.test.probability[WILLBUY].tolist() == in_memory.test.probability[WILLBUY].tolist()
    assert in_files.calibration == in_memory.calibration


@pytest.mark.slow
def test_files_lose_their_names_before_the_work_begins(split, brief, tmp_path) -> None:
    # So nothing is left behind, not even by a run that is killed.
    seen: list[list[Path]] = []

    class Bar:
        def __enter__(self):
            seen.append(list(tmp_path.iterdir()))
            return lambda done, note="": None

        def __exit__(self, *_: object) -> None:
            pass

    data = load(split, brief, budget=StorageBudget(memory_mib=0, scratch=tmp_path), stages=lambda name, steps: Bar())
    assert data.in_files
    assert seen
    assert not any(seen)


def test_files_are_gone_when_making_them_fails(tmp_path) -> None:
    with pytest.raises(OSError, match=r"No space left|File too large|Invalid argument"), files(tmp_path) as storage:
        storage.empty((2**59,), torch.float32)
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_that_is_not_there_is_told(split, brief, tmp_path) -> None:
    with pytest.raises(OSError, match="nowhere"):
        load(split, brief, budget=StorageBudget(memory_mib=0, scratch=tmp_path / "nowhere"))


def test_what_was_written_into_a_file_is_read_from_it(tmp_path) -> None:
    with files(tmp_path) as storage:
        one, other = storage.empty((3, 2), torch.float32), storage.empty((4,), torch.int64)
        nothing = storage.empty((0, 5), torch.float32)
    one[:] = torch.arange(6.0).reshape(3, 2)
    other[:] = torch.arange(4)
    assert one.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert other.tolist() == [0, 1, 2, 3]
    assert nothing.shape == (0, 5)


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux alone")
def test_pages_of_files_are_given_back_and_their_values_stay(tmp_path) -> None:
    def resident_kib() -> int:
        """Return the resident pages of this process that belong to files."""
        status = Path("/proc/self/status").read_text("utf-8")
        return sum(int(size) for size in re.findall(r"Rss(?:File|Shmem):\s+(\d+) kB", status))

    with files(tmp_path) as storage:
        values = storage.empty((8_000_000,), torch.float32)
    values[:] = torch.arange(8_000_000)
    full = resident_kib()
    # When few events were touched, nothing happens; with many, the pages go
    storage.touched(100)
    assert resident_kib() > full - 1_000
    storage.touched(100_000)
    assert resident_kib() < full - 25_000
    assert torch.equal(values, torch.arange(8_000_000, dtype=torch.float32))


def test_rows_are_gathered_in_chunks_and_each_is_noted(columns_of, monkeypatch) -> None:
    touched: list[int] = []

    class Noted(Memory):
        def touched(self, events: int) -> None:
            touched.append(events)

    columns = columns_of([[Event("a", at) for at in range(10)]], [1])
    part = Encoded(torch.arange(20.0).reshape(10, 2), torch.arange(10).unsqueeze(1), columns, storage=Noted())
    monkeypatch.setattr("training.data.encoded._CHUNK_EVENTS", 3)  # private: several chunks of few events
    features, indices = part.rows(torch.tensor([7, 0, 9, 9, 2]))
    assert features.tolist() == [[14, 15], [0, 1], [18, 19], [18, 19], [4, 5]]
    assert indices.flatten().tolist() == [7, 0, 9, 9, 2]
    assert touched == [3, 2, 3, 2]


def test_mean_and_deviation_of_many_chunks_are_those_of_all(monkeypatch) -> None:
    features = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * 5 + torch.tensor([1e4, 0.0, -3.0])
    whole = scaling_of(features)
    monkeypatch.setattr("training.data.encoded._CHUNK_EVENTS", 7)  # private: several chunks of few events
    chunked = scaling_of(features)
    deviation, mean = torch.std_mean(features.double(), 0, correction=0)
    for scaling in (whole, chunked):
        torch.testing.assert_close(scaling.mean, mean.float(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(scaling.deviation, deviation.float(), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_large_part_is_looked_at_by_a_sample_of_whole_sessions_and_it_is_said(split, brief, in_memory) -> None:
    small = replace(brief, sample_events=240)
    result = train(split, small)
    assert result.sessions == in_memory.sessions
    # Whole sessions, each prefix of them, and no more events than allowed
    assert 120 < len(result.test.outcome) <= 240
    lengths = np.bincount(result.test.session_index)
    assert result.test.prefix_length.tolist() == [n + 1 for length in lengths for n in range(length)]
    assert any("240 events" in warning and "train, validation" in warning for warning in result.warnings)


def test_a_sample_is_the_whole_where_that_is_small_and_one_session_where_none_fits(columns_of) -> None:
    columns = columns_of([[Event("a", at) for at in range(length)] for length in (4, 7, 3, 5, 6)], [1, 0, 0, 1, 0])
    part = Encoded(torch.arange(25.0).unsqueeze(1), torch.arange(25).unsqueeze(1), columns, torch.rand(25))
    assert part.sample(25, 0) is part
    assert len(part.sample(1, 0).columns.outcome) == 1
    # Whole sessions in their order, with all that belongs to them
    few = part.sample(16, 0)
    chosen = [part.columns.session_id.tolist().index(name) for name in few.columns.session_id]
    assert chosen == sorted(chosen)
    rows = [row for session in chosen for row in range(*part.columns.offsets[session : session + 2].tolist())]
    assert 8 < len(rows) <= 16
    assert few.features.flatten().tolist() == few.indices.flatten().tolist() == rows
    assert part.soft_targets is not None
    assert few.soft_targets is not None
    assert torch.equal(few.soft_targets, part.soft_targets[rows])
    assert {tuple(part.sample(16, seed).columns.session_id) for seed in range(9)} > {tuple(few.columns.session_id)}


def test_a_bound_below_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="memory_mib: expected a whole number from 0 up, not -1"):
        StorageBudget(memory_mib=-1)


# --- what a run takes from the log

# The first 130 of the sessions are trained on, and the last 30 are the test part.
SETTINGS = TrainSettings()


@pytest.mark.parametrize(("part", "sessions"), [("train", (0, 130)), ("validation", (130, 150)), ("test", (170, 200))])
@pytest.mark.parametrize("bought", [False, True], ids=["no buyers", "buyers alone"])
def test_a_part_needs_sessions_of_both_outcomes(log_of, part: str, sessions: tuple[int, int], bought: bool) -> None:
    first, end = sessions
    log = log_of(outcome=lambda number, _: bought if first <= number < end else number % 4 == 0)
    buyers = end - first if bought else 0
    with pytest.raises(TrainingError, match=f"the {part} part has {buyers} buyers among {end - first} sessions"):
        load(log, SETTINGS)


def test_a_property_is_one_of_the_session_where_it_is_that_in_training(log_of) -> None:
    log = log_of(
        **{
            "property.page": lambda number, position: f"p{position}",
            "property.later": lambda number, position: f"p{position if number >= 170 else 0}",
            "property.device": lambda number, _: f"d{number % 2}",
        }
    )
    scopes = {spec.name: spec.scope for spec in load(log, SETTINGS).encoder.properties}
    assert scopes == {"page": "event", "later": "session", "device": "session"}


def test_properties_that_are_chosen_are_there_once(log_of) -> None:
    log = log_of(**{"property.device": lambda number, _: f"d{number % 2}", "property.plan": lambda *_: "basic"})
    assert [spec.name for spec in load(log, replace(SETTINGS, properties=("plan",))).encoder.properties] == ["plan"]
    with pytest.raises(TrainingError, match="property 'plan' is named twice"):
        load(log, replace(SETTINGS, properties=("plan", "plan")))
    with pytest.raises(TrainingError, match="property 'size' is not in the data; it has: device, plan"):
        load(log, replace(SETTINGS, properties=("size",)))


@pytest.mark.parametrize("of_training", [True, False])
def test_leaks_are_looked_for_in_training_sessions_alone(log_of, of_training: bool) -> None:
    def gift(number: int, _: int) -> str:
        return "yes" if number % 4 == 0 and (number < 170) is of_training else "no"

    log = log_of(**{"property.gift": gift})
    if of_training:
        with pytest.raises(LeakError, match="the property 'gift' alone tells the outcome"):
            load(log, SETTINGS)
    else:
        load(log, SETTINGS)


@pytest.mark.parametrize("clock", ["calendar", "date", "session"])
def test_the_hour_is_an_input_where_the_log_has_one(log_of, clock: str) -> None:
    assert load(replace(log_of(), clock=clock), SETTINGS).encoder.calendar is (clock == "calendar")


def test_sessions_stay_in_memory_up_to_the_budget(log_of, tmp_path) -> None:
    log = log_of()
    assert not load(log, SETTINGS, budget=StorageBudget(memory_mib=1, scratch=tmp_path)).in_files
    assert load(log, SETTINGS, budget=StorageBudget(memory_mib=0, scratch=tmp_path)).in_files


def test_each_column_has_the_bounds_of_its_own_words(log_of) -> None:
    log = log_of(
        item_id=lambda number, _: f"SKU-{number % 5}",
        item_category=lambda number, _: f"c-{number % 7}",
        **{"property.device": lambda number, _: f"d-{number % 6}"},
    )
    bounds = VocabularySettings(
        items_at_least=1, items_at_most=2, categories_at_least=1, categories_at_most=3, property_values_at_most=4
    )
    words = load(log, replace(SETTINGS, vocabulary=bounds)).encoder.vocabularies
    counts = {name: len(words[name]) for name in ("item_id", "item_category", "property.device")}
    assert counts == {"item_id": 2, "item_category": 3, "property.device": 4}
