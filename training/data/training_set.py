"""The training set: prepared sessions, split, checked, and encoded shard by shard into memory or files.

Besides the result, memory holds one shard and the index of the sessions, however many shards there are.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import torch

from model.columns import FIXED_CODES, FIXED_NUMBERS
from model.encoder import Encoder
from model.properties import PropertySpec
from training.config import PARTS, StorageBudget, TrainSettings, VocabularySettings
from training.data.dataset import Columns, read_columns, words_by_sessions
from training.data.encoded import Encoded, encode
from training.data.index import SessionIndex, index_sessions
from training.data.interventions import leave_out, possible_inputs
from training.data.leaks import RankedInput, check_leaks
from training.data.part_checks import check_parts
from training.data.prepared import PreparedDataset
from training.data.storage import Memory, Storage, files
from training.runtime.distributed import SINGLE_PROCESS, Workers
from training.runtime.progress import StageFactory, null_progress

_MIB: Final = 2**20


class TrainingError(ValueError):
    """The data cannot be trained on; the message has the reason and a remedy."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The encoded sessions of a run.

    Attributes:
        encoder: with the vocabularies of the training sessions, or of an earlier model.
        parts: encoded sessions by `training.data.sessions.PARTS`.
        sessions, buyers: counts by part.
        in_files: whether the sessions are in files rather than in memory.
        warnings: for the user.
        inputs_alone: how well each input alone ranks buyers, the best first.
    """

    encoder: Encoder
    parts: dict[str, Encoded]
    sessions: dict[str, int]
    buyers: dict[str, int]
    in_files: bool
    warnings: list[str]
    inputs_alone: list[RankedInput]

    def sample(self, part: str, settings: TrainSettings) -> Encoded:
        """Return a part's sessions, or a random sample where they have more events than `settings.sample_events`."""
        return self.parts[part].sample(settings.sample_events, settings.split_seed)


def load(
    dataset: PreparedDataset,
    settings: TrainSettings,
    *,
    encoder: Encoder | None = None,
    budget: StorageBudget | None = None,
    stages: StageFactory = null_progress,
    workers: Workers = SINGLE_PROCESS,
) -> TrainingData:
    """Split, check and encode prepared sessions.

    Args:
        dataset: prepared sessions.
        settings: of the run.
        encoder: an earlier model's; None for a new one with vocabularies of the training sessions.
        budget: where encoded sessions are kept.
        stages: shows progress.
        workers: the processes of the run; those of one machine share the files and the work of filling them.

    Raises:
        TrainingError: a part of the data lacks buyers or non-buyers, or a property is not in the data.
        training.data.leaks.LeakError: an input contains information from the future.
        OSError: the disk is full.
    """
    with stages("checking inputs", 1) as stage:
        index = index_sessions(dataset, settings.fractions, settings.split_seed)
        treated = leave_out(index, dataset, settings.interventions)
        training_rows = index.rows("train")
        if encoder is None:
            properties = with_training_scopes(dataset.shards, _chosen(dataset, settings), training_rows)
        else:
            properties = encoder.properties
        _check(index)
        leaks = check_leaks(dataset.shards, properties, index.ids("train"), settings.leaks)
        stage(1)
    encoder = encoder or _encoder(dataset, properties, training_rows, settings.vocabulary)
    in_files, storage = _storage(index, encoder, budget or StorageBudget(), workers)
    with storage as place:
        parts = {part: _unfilled(index, encoder, part, place) for part in PARTS}
    with stages("encoding sessions", len(index.lengths)) as stage:
        done = 0

        def count(sessions: int) -> None:
            nonlocal done
            done += sessions
            stage(done)

        shards = range(len(dataset.shards))
        # Files are shared by the processes of a machine; memory is not, so each process encodes all shards.
        own = shards[workers.local_rank :: workers.local_count] if in_files else shards
        _fill(parts, dataset, index, encoder, own, count)
        workers.wait()
    return TrainingData(
        encoder=encoder,
        parts=parts,
        sessions={part: index.sessions(part) for part in PARTS},
        buyers={part: index.buyers(part) for part in PARTS},
        in_files=in_files,
        warnings=[*treated, *leaks.warnings, *check_parts(dataset.shards, index, dataset.clock)],
        inputs_alone=leaks.ranking,
    )


def _chosen(dataset: PreparedDataset, settings: TrainSettings) -> list[PropertySpec]:
    names = settings.properties
    there = {declared.name: declared for declared in possible_inputs(dataset.properties, settings.interventions)}
    if names is None:
        return list(there.values())
    for name in names:
        if name not in there:
            raise TrainingError(f"property {name!r} is not in the data; it has: {', '.join(there) or 'none'}")
        if names.count(name) > 1:
            raise TrainingError(f"property {name!r} is named twice")
    return [there[name] for name in names]


def with_training_scopes(
    shards: Sequence[Path], properties: Sequence[PropertySpec], training_rows: Sequence[pl.Series]
) -> list[PropertySpec]:
    """Return the properties, each of scope `session` where it is constant within every training session.

    `dataset.json` has a property's scope over the whole log. A property that varies only in the test period would then
    change the encoding, and so leak.

    Args:
        shards: prepared shards; every session is whole in one.
        properties: declared properties.
        training_rows: for each shard which rows to look at.
    """
    varying: set[str] = set()
    for shard, inside in zip(shards, training_rows, strict=True):
        columns = {spec.name: f"property.{spec.name}" for spec in properties if spec.name not in varying}
        if columns:
            rows = pl.read_parquet(shard, columns=["session_id", *columns.values()]).filter(inside)
            distinct = rows.group_by("session_id").agg(pl.col(list(columns.values())).n_unique()).max()
            varying |= {name for name, column in columns.items() if (distinct[column].item() or 1) > 1}
    return [replace(spec, scope="event" if spec.name in varying else "session") for spec in properties]


def _check(index: SessionIndex) -> None:
    for part in ("train", "validation", "test"):
        sessions, buyers = index.sessions(part), index.buyers(part)
        if not 0 < buyers < sessions:
            raise TrainingError(
                f"the {part} part has {buyers} buyers among {sessions} sessions; at least one of each outcome is "
                "needed: take a longer log"
            )


def _encoder(
    dataset: PreparedDataset, properties: list[PropertySpec], rows: Sequence[pl.Series], limits: VocabularySettings
) -> Encoder:
    def words(column: str, at_least: int, at_most: int) -> list[str]:
        return words_by_sessions(dataset.shards, column, rows, at_least=at_least, at_most=at_most)

    names = words("event_name", limits.event_names_at_least, limits.event_names_at_most)
    if not names:
        raise TrainingError(
            f"no event name occurs in {limits.event_names_at_least} training sessions or more: take a longer log"
        )
    return Encoder(
        names,
        words("item_category", limits.categories_at_least, limits.categories_at_most),
        words("item_id", limits.items_at_least, limits.items_at_most),
        properties,
        {
            spec.name: words(f"property.{spec.name}", limits.property_values_at_least, limits.property_values_at_most)
            for spec in properties
            if spec.kind == "category"
        },
        # Dates without a time of day have no hour.
        calendar=dataset.clock == "calendar",
    )


def _storage(
    index: SessionIndex, encoder: Encoder, budget: StorageBudget, workers: Workers
) -> tuple[bool, AbstractContextManager[Storage]]:
    """Return whether the sessions go into files, and their storage."""
    codes, numbers = _widths(encoder)
    event_bytes = 4 * (len(encoder.feature_names) + numbers) + 8 * (len(encoder.index_names) + codes + 1)
    if int(index.lengths.sum()) * event_bytes > budget.memory_mib * _MIB:
        return True, files(budget.scratch, workers)
    return False, nullcontext(Memory())


def _widths(encoder: Encoder) -> tuple[int, int]:
    """Return how many codes and how many numbers an event has."""
    categories = sum(spec.kind == "category" for spec in encoder.properties)
    return FIXED_CODES + categories, FIXED_NUMBERS + len(encoder.properties) - categories


def _unfilled(index: SessionIndex, encoder: Encoder, part: str, storage: Storage) -> Encoded:
    """Return a part whose event tensors are allocated but not filled."""
    inside = index.inside(part)
    offsets = torch.from_numpy(np.append(0, index.lengths[inside].cumsum()))
    events = int(offsets[-1])
    codes, numbers = _widths(encoder)
    columns = Columns(
        index.session_id.filter(pl.Series(inside)).to_numpy(),
        index.session_start_ms[inside],
        torch.from_numpy(index.outcome[inside]),
        offsets,
        storage.empty((events,), torch.int64),
        storage.empty((events, codes), torch.int64),
        storage.empty((events, numbers), torch.float32),
    )
    return Encoded(
        storage.empty((events, len(encoder.feature_names)), torch.float32),
        storage.empty((events, len(encoder.index_names)), torch.int64),
        columns,
        storage=storage,
    )


def _fill(
    parts: dict[str, Encoded],
    dataset: PreparedDataset,
    index: SessionIndex,
    encoder: Encoder,
    shards: Iterable[int],
    progress: Callable[[int], None],
) -> None:
    """Read and encode these shards one after another, and write each session to its rows."""
    for shard in shards:
        columns = read_columns([dataset.shards[shard]], encoder.properties)
        first, part_of = index.shard(shard)
        for number, part in enumerate(PARTS):
            chosen = torch.from_numpy(np.flatnonzero(part_of == number))
            if not len(chosen):
                continue
            piece, into = columns.select(chosen), parts[part]
            begin = int(into.columns.offsets[np.count_nonzero(index.part[:first] == number)])
            rows = slice(begin, begin + len(piece.timestamp_ms))
            into.columns.timestamp_ms[rows] = piece.timestamp_ms
            into.columns.codes[rows] = piece.codes
            into.columns.numbers[rows] = piece.numbers
            encode(encoder, piece, progress=progress, into=(into.features[rows], into.indices[rows]))
            into.storage.touched(len(piece.timestamp_ms))
