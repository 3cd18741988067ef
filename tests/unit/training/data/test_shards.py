"""The files of `prepare`: when rows go to disk, what comes back, and what is known of all shards together."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from model.events import FIELD_NAMES
from training.data.sessions import LARGEST, SessionCounts, Sessions
from training.data.shards import LARGEST_SCHEMA, Partition, ShardWriter


def rows(*session_ids: str, first: int = 0) -> pl.DataFrame:
    return pl.DataFrame({"session_id": session_ids, "number": range(first, first + len(session_ids))})


@pytest.mark.parametrize(("blocks", "files"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_rows_go_to_disk_when_the_buffer_is_full_and_come_back_in_order(
    tmp_path: Path, blocks: int, files: int
) -> None:
    # Given a buffer of just two blocks
    block = rows("a", "b", "a")
    partition = Partition(tmp_path / "p", 1, buffer_bytes=2 * int(block.estimated_size()))
    for number in range(blocks):
        partition.append(rows("a", "b", "a", first=3 * number))
    assert len(list((tmp_path / "p").iterdir())) == files
    partition.flush()
    (found,) = partition.read(0)
    assert found["number"].to_list() == list(range(3 * blocks))
    # And what was read takes no more room
    partition.remove()
    assert not (tmp_path / "p").exists()


def test_every_row_of_a_session_is_in_one_shard_whichever_block_it_came_in(tmp_path: Path) -> None:
    partition = Partition(tmp_path / "p", 8, buffer_bytes=1)
    ids = [f"s{number}" for number in range(50)]
    for block in range(3):
        partition.append(rows(*ids, first=50 * block))
    shards = [found for number in range(8) for found in partition.read(number)]
    assert len(shards) > 4
    assert sum(shard.height for shard in shards) == 150
    where = [set(shard["session_id"]) for shard in shards]
    assert sum(map(len, where)) == len(set().union(*where)) == 50


def test_a_shard_of_too_many_rows_comes_in_parts_of_whole_sessions(tmp_path: Path) -> None:
    partition = Partition(tmp_path / "p", 2, most_rows=20)
    ids = [f"s{number}" for number in range(50)]
    for block in range(3):
        partition.append(rows(*ids, first=50 * block))
    partition.flush()
    parts = [found for number in range(2) for found in partition.read(number)]
    assert len(parts) >= 6
    assert max(part.height for part in parts) < 60
    where = [set(part["session_id"]) for part in parts]
    assert sum(part.height for part in parts) == 150
    assert sum(map(len, where)) == len(set().union(*where)) == 50
    partition.remove()


def a_shard(*sessions: tuple[str, list[int], list[str | None]], counts: SessionCounts) -> Sessions:
    """Sessions of a name, times and the values of a property."""
    events = pl.DataFrame(
        [
            {"session_id": name, "session_start_ms": times[0], "timestamp_ms": at, "event_name": "x", "outcome": True}
            | {"property.device": value}
            for name, times, values in sessions
            for at, value in zip(times, values, strict=True)
        ],
        schema_overrides={"property.device": pl.String},
    ).with_columns(pl.lit(None).alias(name) for name in FIELD_NAMES)
    largest = pl.DataFrame(
        [(name, len(times), times[0], times[-1]) for name, times, _ in sessions], schema=LARGEST_SCHEMA, orient="row"
    )
    return Sessions(events, pl.DataFrame(), counts, largest, longer_than_a_day=len(sessions), seen=len(sessions))


def test_what_is_known_of_all_shards_is_of_all_of_them(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "calendar", {"device": "category"})
    writer.write(a_shard(("a", [50, 60], ["m", "m"]), counts=SessionCounts(events=2, sessions=1, buyers=1)))
    assert [spec.scope for spec in writer.properties()] == ["session"]
    # An earlier and shorter one, in which the property varies within a session; then a later one, in which it does not
    writer.write(a_shard(("b", [5, 55], ["m", "d"]), ("c", [6], ["m"]), counts=SessionCounts(events=3, sessions=2)))
    writer.write(a_shard(("d", [7, 70], ["m", "m"]), counts=SessionCounts(events=2, sessions=1, rows_duplicate=4)))
    writer.write(a_shard(("e", [8], ["m"]), counts=SessionCounts(events=1, sessions=1)))
    assert (writer.first_time_ms, writer.last_time_ms) == (5, 70)
    assert [(spec.name, spec.kind, spec.scope) for spec in writer.properties()] == [("device", "category", "event")]
    assert writer.counts == SessionCounts(events=8, sessions=5, buyers=1, rows_duplicate=4)
    assert writer.longer_than_a_day == writer.sessions_seen == 5
    # The largest first, of equal ones the first by name
    assert writer.largest["session_id"].to_list() == ["a", "b", "d", "c", "e"][:LARGEST]
    assert writer.names == [f"events-000{number}.parquet" for number in range(4)]
    assert pl.read_parquet(tmp_path / "events-0001.parquet")["timestamp_ms"].to_list() == [5, 55, 6]
    # A value that is there once and missing once varies, too
    half = ShardWriter(tmp_path, "calendar", {"device": "category"})
    half.write(a_shard(("a", [1, 2], ["m", None]), counts=SessionCounts()))
    assert [spec.scope for spec in half.properties()] == ["event"]


def test_a_shard_without_a_session_is_counted_and_no_file(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "calendar", {})
    empty = a_shard(("a", [1], [None]), counts=SessionCounts(rows_at_or_after_purchase=3))
    writer.write(replace(empty, events=empty.events.clear()))
    assert (writer.names, writer.first_time_ms, list(tmp_path.iterdir())) == ([], None, [])
    assert writer.counts.rows_at_or_after_purchase == 3


def test_parts_of_a_shard_are_of_about_one_size_whatever_the_number_of_shards(tmp_path: Path) -> None:
    # Given as many parts a shard as there are shards
    partition = Partition(tmp_path / "p", 4, most_rows=130)
    partition.append(rows(*[f"s{number}" for number in range(2000)]))
    partition.flush()
    for shard in range(4):
        heights = [part.height for part in partition.read(shard)]
        assert len(heights) == 4
        assert max(heights) < 200
    partition.remove()
