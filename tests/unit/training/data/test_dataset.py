"""Prepared sessions as tensors: one featurisation, and batches that hold each session once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from model.columns import columns_from_events, fingerprint
from model.events import Event, PropertyValue
from model.properties import PropertySpec
from training.commands.replay import read_events
from training.data.dataset import (
    Columns,
    batches,
    event_indices,
    padded,
    read_columns,
    short_batches,
    words_by_sessions,
)
from training.data.prepare import prepare
from training.data.sources import ColumnMapping, PropertyColumn

SPECS = (
    PropertySpec("colour", "category", "event"),
    PropertySpec("member", "number", "session"),
    PropertySpec("weight", "number", "event"),
    PropertySpec("trial", "category", "event"),
    PropertySpec("grade", "category", "event"),
)
# What a shop would post, and what stands in its log: text, Booleans as number and as category, numbers likewise.
PROPERTIES: tuple[dict[str, PropertyValue], ...] = (
    {"colour": "red", "member": True, "weight": 1.5, "trial": True, "grade": 1.0},
    {"colour": "größer", "member": False, "weight": -3, "trial": False, "grade": 2.5},
    {},
    {"colour": "red", "weight": 0.0, "grade": 12},
    {"member": True, "trial": True},
)


def events() -> list[Event]:
    return [
        Event("page_view", 1_000, properties=PROPERTIES[0]),
        Event("view_item", 2_500, "SKU-1", "shoes", 59.9, 1.0, PROPERTIES[1]),
        Event("a page of our own", 2_500, "SKU-2", None, None, 2.0, PROPERTIES[2]),
        Event("add_to_cart", 9_000, "1", "hats", 0.0, None, PROPERTIES[3]),
        Event("search", 9_001, None, "shoes", 1e9, 0.5, PROPERTIES[4]),
    ]


def table(sessions: dict[str, list[Event]]) -> pl.DataFrame:
    """Return a shop's own table of those events, in its own columns."""
    rows = [(session_id, event) for session_id, given in sessions.items() for event in given]
    facts = pl.DataFrame(
        {
            "sid": [session_id for session_id, _ in rows],
            "time": [event.timestamp_ms for _, event in rows],
            "what": [event.event_name for _, event in rows],
            "item": [event.item_id for _, event in rows],
            "group": [event.item_category for _, event in rows],
            "cost": [event.price for _, event in rows],
            "units": [event.quantity for _, event in rows],
        }
    )
    types = {"colour": pl.String, "member": pl.Boolean, "weight": pl.Float64, "trial": pl.Boolean, "grade": pl.Float64}
    return facts.with_columns(
        pl.Series(name, [event.properties.get(name) for _, event in rows], dtype=dtype, strict=False)
        for name, dtype in types.items()
    )


MAPPING = ColumnMapping(
    session_id="sid",
    timestamp="time",
    event_name="what",
    time_format="elapsed_ms",
    item_id="item",
    item_category="group",
    price="cost",
    quantity="units",
    properties=tuple(PropertyColumn(spec.name, spec.name, spec.kind) for spec in SPECS),
)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[dict[str, list[Event]]], Columns]:
    """Take sessions the whole way of a log: written as the shop's table, prepared, read as columns."""

    def way_of_a_log(sessions: dict[str, list[Event]]) -> Columns:
        log = tmp_path / "log.parquet"
        table(sessions).write_parquet(log)
        return read_columns(prepare(log, tmp_path / "prepared", mapping=MAPPING, needs_buyers=False).shards, SPECS)

    return way_of_a_log


@pytest.fixture
def three(columns_of) -> Columns:
    """Sessions of two, one and three events, at 0, 10, 20 ... ms."""
    columns: Columns = columns_of(
        [
            [Event("a", 0), Event("b", 10)],
            [Event("c", 20)],
            [Event("a", 30), Event("b", 40), Event("c", 50)],
        ],
        [1, 0, 1],
    )
    return columns


def test_a_log_and_the_service_see_the_same_columns_in_an_event(read) -> None:
    # Given events with properties of every kind, as a shop would post them
    posted = events()
    # When the same events come from a log
    columns = read({"s": posted})
    # Then training reads what the artifact's caller computes, bit for bit
    timestamp_ms, codes, numbers = columns_from_events(posted, SPECS)
    assert torch.equal(columns.codes[:, :-1], codes[:, :-1])
    torch.testing.assert_close(columns.numbers, numbers, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(columns.timestamp_ms.diff(), timestamp_ms.diff())


def test_numbers_as_a_category_are_the_same_in_a_log_and_in_the_service(read) -> None:
    # `model.columns.category_text`: a log's 1.0 and a POST's 1 are one category
    posted = events()
    assert read({"s": posted}).codes[:, -1].tolist() == columns_from_events(posted, SPECS)[1][:, -1].tolist()


def test_a_price_beyond_float32_is_the_same_in_a_log_and_in_the_service(read) -> None:
    posted = [Event("view_item", 0, price=1e300)]
    assert torch.equal(read({"s": posted}).numbers[:, 0], columns_from_events(posted, SPECS)[2][:, 0])


def test_no_value_is_zero_in_codes_and_nan_in_numbers(read) -> None:
    columns = read({"s": [Event("page_view", 0)]})
    assert columns.codes.tolist() == [[fingerprint("page_view"), 0, 0, 0, 0, 0]]
    assert columns.numbers.shape == (1, 4)
    assert torch.isnan(columns.numbers).all()


def test_replayed_events_are_the_events_that_training_read(shop) -> None:
    ids = shop.dataset.sessions()["session_id"].head(40).to_list()
    specs = [PropertySpec(p.name, p.kind, p.scope) for p in shop.dataset.properties]
    whole = read_columns(shop.dataset.shards, specs)
    played = read_events(shop.dataset, ids)
    row_of = {session_id: row for row, session_id in enumerate(whole.session_id)}
    chosen = whole.select(torch.tensor([row_of[session_id] for session_id in ids]))
    columns = columns_from_events([event for session_id in ids for event in played[session_id]], specs)
    assert torch.equal(chosen.timestamp_ms, columns[0])
    assert torch.equal(chosen.codes, columns[1])
    torch.testing.assert_close(chosen.numbers, columns[2], rtol=0, atol=0, equal_nan=True)


def test_several_shards_hold_what_one_does(shop, tmp_path) -> None:
    specs = [PropertySpec(p.name, p.kind, p.scope) for p in shop.dataset.properties]
    split = prepare(shop.log, tmp_path / "split", shard_bytes=shop.log.stat().st_size // 4)
    assert len(shop.dataset.shards) == 1
    assert len(split.shards) > 2
    one, several = read_columns(shop.dataset.shards, specs), read_columns(split.shards, specs)
    one, several = (all_.select(torch.from_numpy(np.argsort(all_.session_id.astype(str)))) for all_ in (one, several))
    assert one.session_id.tolist() == several.session_id.tolist()
    assert one.session_start_ms.tolist() == several.session_start_ms.tolist()
    for name in ("outcome", "offsets", "timestamp_ms", "codes"):
        assert torch.equal(getattr(one, name), getattr(several, name)), name
    torch.testing.assert_close(one.numbers, several.numbers, rtol=0, atol=0, equal_nan=True)


def test_outcomes_and_offsets_are_those_of_the_sessions(shop) -> None:
    columns = read_columns(shop.dataset.shards, [])
    sessions = {
        row[0]: row[1:] for row in shop.dataset.sessions().select("session_id", "outcome", "events").iter_rows()
    }
    assert len(columns.outcome) == len(sessions)
    read = zip(columns.session_id, columns.outcome.tolist(), columns.lengths.tolist(), strict=True)
    assert all(sessions[session_id] == (bool(outcome), length) for session_id, outcome, length in read)


def test_layout_of_a_few_sessions_by_hand(three) -> None:
    assert three.lengths.tolist() == [2, 1, 3]
    assert three.prefix_length().tolist() == [1, 2, 1, 1, 2, 3]
    assert three.session_index().tolist() == [0, 0, 1, 2, 2, 2]


def test_selected_sessions_come_whole_and_in_the_order_asked_for(three) -> None:
    chosen = three.select(torch.tensor([2, 0]))
    assert chosen.session_id.tolist() == ["s2", "s0"]
    assert chosen.session_start_ms.tolist() == [30, 0]
    assert chosen.outcome.tolist() == [1, 1]
    assert chosen.offsets.tolist() == [0, 3, 5]
    assert chosen.timestamp_ms.tolist() == [30, 40, 50, 0, 10]
    assert chosen.codes[:, 0].tolist() == [fingerprint(name) for name in "abcab"]


def test_no_session_selected_is_no_event(three) -> None:
    chosen = three.select(torch.tensor([], dtype=torch.int64))
    assert chosen.offsets.tolist() == [0]
    assert len(chosen.timestamp_ms) == len(chosen.outcome) == 0


def test_event_indices_and_offsets_by_hand(three) -> None:
    events_of, offsets = event_indices(three.offsets, torch.tensor([1, 2]))
    assert events_of.tolist() == [2, 3, 4, 5]
    assert offsets.tolist() == [0, 1, 4]


def test_padding_is_zeros_at_the_end(three) -> None:
    values = torch.arange(1.0, 7.0)
    assert padded(values, three.offsets, torch.tensor([1, 0])).tolist() == [[3.0, 0.0], [1.0, 2.0]]
    pairs = torch.stack([values, -values], 1)
    assert padded(pairs, three.offsets, torch.tensor([1, 0])).tolist() == [[[3, -3], [0, 0]], [[1, -1], [2, -2]]]


@pytest.mark.parametrize("batch_sessions", [1, 7, 64, 1000])
def test_every_session_is_in_one_batch(batch_sessions: int) -> None:
    lengths = torch.randint(1, 40, (500,), generator=torch.Generator().manual_seed(1))
    for generator in (None, torch.Generator().manual_seed(0)):
        drawn = list(batches(lengths, batch_sessions, generator))
        assert all(0 < len(batch) <= batch_sessions for batch in drawn)
        assert len(drawn) == -(-500 // batch_sessions)
        assert torch.cat(drawn).sort().values.tolist() == list(range(500))


def test_random_batches_come_again_with_their_seed_and_differ_with_another() -> None:
    lengths = torch.randint(1, 40, (500,), generator=torch.Generator().manual_seed(1))

    def drawn(seed: int) -> list[list[int]]:
        return [batch.tolist() for batch in batches(lengths, 16, torch.Generator().manual_seed(seed))]

    assert drawn(3) == drawn(3)
    assert drawn(3) != drawn(4)


def test_a_pass_without_a_generator_goes_from_the_shortest_to_the_longest() -> None:
    assert [batch.tolist() for batch in batches(torch.tensor([3, 1, 2, 1]), 2, None)] == [[1, 3], [2, 0]]


def shards_of(folder: Path, *frames: dict[str, list[str | None]]) -> list[Path]:
    paths = []
    for number, frame in enumerate(frames):
        paths.append(folder / f"events-{number:04d}.parquet")
        pl.DataFrame(frame, schema={"session_id": pl.String, "word": pl.String}).write_parquet(paths[-1])
    return paths


def test_words_are_counted_by_sessions_over_all_shards_the_most_frequent_first(tmp_path) -> None:
    shards = shards_of(
        tmp_path,
        {"session_id": ["1", "1", "1", "1", "2", "2"], "word": ["often", "loud", "loud", "loud", "often", "b"]},
        {"session_id": ["3", "3", "4", "4"], "word": ["often", "b", "a", None]},
        {"session_id": ["5", "6"], "word": ["a", ""]},
    )
    everyone = [pl.repeat(value=True, n=rows, eager=True) for rows in (6, 4, 2)]
    assert words_by_sessions(shards, "word", everyone, at_least=1, at_most=9) == ["often", "a", "b", "loud"]
    assert words_by_sessions(shards, "word", everyone, at_least=2, at_most=9) == ["often", "a", "b"]
    assert words_by_sessions(shards, "word", everyone, at_least=1, at_most=2) == ["often", "a"]
    assert words_by_sessions(shards, "word", everyone, at_least=4, at_most=9) == []


def test_a_word_of_other_sessions_is_not_learned(tmp_path) -> None:
    shards = shards_of(tmp_path, {"session_id": ["1", "2", "3"], "word": ["seen", "planted", "planted"]})
    assert words_by_sessions(shards, "word", [pl.Series([True, False, False])], at_least=1, at_most=9) == ["seen"]


def test_short_batches_hold_few_events_and_every_session_once() -> None:
    lengths = torch.tensor([3, 50, 1, 8, 8, 2, 4, 7])
    found = [chosen.tolist() for chosen in short_batches(lengths, 3, 16)]
    assert sorted(session for chosen in found for session in chosen) == list(range(8))
    # From the shortest to the longest; a session that is too long is alone
    assert [[int(lengths[session]) for session in chosen] for chosen in found] == [[1, 2, 3], [4, 7], [8], [8], [50]]
