"""Real files and real readings of them, for the tests of sources and of prepared sessions."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from support import paths

from training.data.sources import ColumnMapping, Source, open_source

REPOSITORY = paths.ROOT


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file from text or bytes, gzipped where its name says so."""

    def write_file(name: str, content: str | bytes) -> Path:
        data = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write_file


class Reading:
    """All that a source gave: its events in the order of the files, rejected rows and values."""

    def __init__(self, source: Source, block_bytes: int) -> None:
        batches = list(source.batches(block_bytes))
        events = [
            batch.events.with_columns(file=pl.lit(batch.file)).sort("source_line")
            for batch in batches
            if batch.events.height
        ]
        self.source = source
        self.events = pl.concat(events) if events else pl.DataFrame()
        self.rows_read = sum(batch.rows_read for batch in batches)
        self.rows_lookup = sum(batch.rows_lookup for batch in batches)
        self.rejected = sorted(
            (batch.file, *row) for batch in batches for row in batch.rejected.drop("value").iter_rows()
        )
        self.nulled = sorted((batch.file, *row) for batch in batches for row in batch.nulled.drop("value").iter_rows())
        self.lost_labels = sorted(label for batch in batches for label in batch.lost_labels)
        self.notes = [note for batch in batches for note in batch.notes]
        self.rejected_values = [value for batch in batches for value in batch.rejected["value"]]

    def rows(self, *names: str) -> list[tuple[object, ...]]:
        """Return some columns of the events, row by row."""
        return self.events.select(names).rows()


@pytest.fixture
def read() -> Callable[..., Reading]:
    """Open a log and read all of it."""

    def read_all(
        path: Path, name: str = "auto", mapping: ColumnMapping | None = None, block_bytes: int = 1 << 20
    ) -> Reading:
        return Reading(open_source(path, name, mapping), block_bytes)

    return read_all


@pytest.fixture(scope="session")
def datasets() -> Path:
    """Return the folder of real logs, which lies beside the project; skip where there is none."""
    folder = Path(os.environ.get("WILLBUY_DATASETS", REPOSITORY.parent / "shared" / "datasets"))
    if not folder.is_dir():
        pytest.skip(f"no real logs at {folder}")
    return folder
