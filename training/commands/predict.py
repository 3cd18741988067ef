"""`willbuy predict ARTIFACT DATA`: the model's probability after each event, as a table, shard by shard."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from model.artifact import ArtifactError, BaseRateUnknownError
from model.base_rate import logit_shift
from training.commands.prepare import PREPARE_ERRORS, prepared_sessions
from training.commands.stages import prepare_progress, stage
from training.config import PredictSettings
from training.data.dataset import Columns, read_columns
from training.data.encoded import encode
from training.data.prepare import prepare
from training.data.prepared import PreparedDataset
from training.data.provenance import cuts_of
from training.data.sources.mapping import ColumnMapping
from training.fit.loop import logits
from training.fit.warm_start import Start, WarmStartError, check_properties, read_start

PARQUET_SUFFIXES: Final = (".parquet", ".pq")
CSV_SUFFIX: Final = ".csv"
# Features of so many events are in memory at a time.
_EVENTS_AT_ONCE: Final = 50_000
_COLUMNS: Final = ("session_id", "timestamp_ms", "event_name")


class PredictError(ValueError):
    """The predictions cannot be written; the message has the reason."""


PREDICT_ERRORS: Final = (*PREPARE_ERRORS, ArtifactError, PredictError, WarmStartError, OSError)


def run_predict(artifact: Path, data: Path, out: Path, settings: PredictSettings) -> str:
    """Write one row an event: `session_id`, `event` (from 1), `timestamp_ms`, `event_name`, `probability`.

    Sessions are whole and in order; none has an event at or after its first purchase. Sessions of a log that are still
    open at its end are predicted, too.

    Args:
        artifact: the model.
        data: prepared sessions, or a log.
        out: the file, Parquet or CSV by its suffix; it appears complete or not at all.
        settings: of the run.

    Returns:
        What was written, for people.

    Raises:
        PREDICT_ERRORS: an error that the user can fix; the message says how.
    """
    if out.suffix.lower() not in (*PARQUET_SUFFIXES, CSV_SUFFIX):
        raise PredictError(f"{out}: expected a name that ends with .parquet or .csv")
    if out.is_dir():
        raise PredictError(f"{out}: is a folder; name the file to write")
    torch.set_num_threads(settings.threads)
    start = _start(artifact, settings.base_rate)
    out.parent.mkdir(parents=True, exist_ok=True)
    with prepared_sessions(data, partial(_prepared, data, start, settings)) as dataset:
        check_properties(start.manifest, dataset)
        events = dataset.counts.sessions.events
        with _table(out) as table, stage("predicting", events) as show:
            done = 0
            for shard in dataset.shards:
                for rows in predicted_rows(start, shard):
                    table.add(rows)
                    done += rows.height
                    show(done)
    return f"{done:,} predictions of {dataset.counts.sessions.sessions:,} sessions"


def predicted_rows(start: Start, shard: Path) -> Iterator[pl.DataFrame]:
    """Yield the rows of a shard's sessions, some thousand events at a time."""
    columns = read_columns([shard], start.model.encoder.properties)
    shown = pl.read_parquet(shard, columns=list(_COLUMNS)).with_columns(event=columns.prefix_length().numpy())
    for first, last in _blocks(columns):
        block = columns.select(torch.arange(first, last))
        begin, end = int(columns.offsets[first]), int(columns.offsets[last])
        yield (
            shown[begin:end]
            .with_columns(probability=_probabilities(start, block))
            .select("session_id", "event", "timestamp_ms", "event_name", "probability")
        )


def _probabilities(start: Start, columns: Columns) -> NDArray[np.float64]:
    encoded = encode(start.model.encoder, columns)
    with torch.inference_mode():
        probability: NDArray[np.float64] = start.model.calibrated(logits(start.model, encoded)).double().numpy()
    return probability


def _blocks(columns: Columns) -> Iterator[tuple[int, int]]:
    """Yield ranges of whole sessions with at most `_EVENTS_AT_ONCE` events, or one session."""
    offsets = columns.offsets.numpy()
    first, total = 0, len(offsets) - 1
    while first < total:
        last = int(np.searchsorted(offsets, offsets[first] + _EVENTS_AT_ONCE, side="right")) - 1
        last = max(first + 1, last)
        yield first, last
        first = last


def _start(artifact: Path, base_rate: float | None) -> Start:
    start = read_start(artifact)
    if base_rate is not None:
        if start.manifest.base_rate is None:
            raise BaseRateUnknownError("--base-rate: the artifact does not tell the base rate that it was trained at")
        start.model.bias.add_(logit_shift(start.manifest.base_rate, base_rate))
    return start


def _prepared(data: Path, start: Start, settings: PredictSettings, folder: Path) -> PreparedDataset:
    mapping = None if settings.log.mapping is None else ColumnMapping.from_toml(settings.log.mapping)
    cuts = cuts_of(start.manifest)
    cuts["keep_open_sessions"] = True
    with prepare_progress() as progress:
        return prepare(
            data, folder, format=settings.log.format, mapping=mapping, needs_buyers=False, progress=progress, **cuts
        )


class _Table(Protocol):
    def add(self, rows: pl.DataFrame) -> None:
        """Append rows."""


class _Csv:
    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._is_empty = True

    def add(self, rows: pl.DataFrame) -> None:
        rows.write_csv(self._file, include_header=self._is_empty)
        self._is_empty = False

    def finish(self) -> None:
        self._file.close()


class _Parquet:
    """Writes each block to a file of its own, and in the end all of them into one, without holding them in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts = path.with_name(f"{path.name}.parts")
        self._parts.mkdir()
        self._written: list[Path] = []

    def add(self, rows: pl.DataFrame) -> None:
        part = self._parts / f"{len(self._written):06d}.parquet"
        rows.write_parquet(part)
        self._written.append(part)

    def finish(self) -> None:
        if self._written:
            pl.scan_parquet(self._written, glob=False).sink_parquet(self._path, maintain_order=True)
        shutil.rmtree(self._parts, ignore_errors=True)


@contextmanager
def _table(out: Path) -> Iterator[_Table]:
    """Yield a table that appears at `out` when all rows are there, and leaves nothing behind after an error."""
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    make: Callable[[Path], _Csv | _Parquet] = _Csv if out.suffix.lower() == CSV_SUFFIX else _Parquet
    table = make(partial)
    is_complete = False
    try:
        yield table
        is_complete = True
    finally:
        try:
            table.finish()
            if is_complete:
                partial.replace(out)
        finally:
            partial.unlink(missing_ok=True)
