"""What an artifact says of prepared sessions, read one shard at a time.

Shape legend: S sessions, N events of all sessions.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import torch
from numpy.typing import ArrayLike, NDArray

from model.columns import PropertySpec
from model.network import SessionModel
from training.data.dataset import Columns, read_columns
from training.data.encoded import Encoded, encode
from training.fit.loop import logits

_POSTERIOR: Final = ("session_id", "prefix_length", "probability")


class PosteriorError(ValueError):
    """A file is not the exact posterior of these sessions; the message says why."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Sessions that a model was asked about.

    Attributes:
        encoded: as the model sees them.
        probability: (N,) what it says after each event.
    """

    encoded: Encoded
    probability: NDArray[np.float64]


def read_sessions(shards: Sequence[Path], properties: Sequence[PropertySpec], session_ids: Collection[str]) -> Columns:
    """Return the sessions with these ids, in the order of the shards; memory holds one shard beside them.

    Raises:
        ValueError: none of the shards has any of them.
    """
    wanted = pl.Series(list(session_ids), dtype=pl.String)
    found = []
    for shard in shards:
        columns = read_columns([shard], properties)
        chosen = np.flatnonzero(pl.Series(columns.session_id, dtype=pl.String).is_in(wanted.implode()).to_numpy())
        if len(chosen):
            found.append(columns.select(torch.from_numpy(chosen)))
    if not found:
        raise ValueError("session_ids: no such session in the data")
    return joined(found)


def joined(parts: Sequence[Columns]) -> Columns:
    """Return the sessions of all parts as one, in their order."""
    offsets = [torch.zeros(1, dtype=torch.int64)]
    for part in parts:
        offsets.append(part.offsets[1:] + offsets[-1][-1])
    return Columns(
        np.concatenate([part.session_id for part in parts]),
        np.concatenate([part.session_start_ms for part in parts]),
        torch.cat([part.outcome for part in parts]),
        torch.cat(offsets),
        torch.cat([part.timestamp_ms for part in parts]),
        torch.cat([part.codes for part in parts]),
        torch.cat([part.numbers for part in parts]),
    )


def ask(
    model: SessionModel,
    shards: Sequence[Path],
    session_ids: Collection[str],
    progress: Callable[[int], None] | None = None,
) -> Asked:
    """Return what a model says after each event of these sessions."""
    encoded = encode(model.encoder, read_sessions(shards, model.encoder.properties, session_ids), progress=progress)
    with torch.inference_mode():
        said = model.calibrated(logits(model, encoded)).double().numpy()
    return Asked(encoded, said)


def posterior_of(path: Path, session_id: ArrayLike, prefix_length: ArrayLike) -> NDArray[np.float64]:
    """Return (N,) the exact posterior of each prefix, as `willbuy synthesize` wrote it.

    Args:
        path: the file.
        session_id: (N,) text, of each prefix.
        prefix_length: (N,) its number of events.

    Raises:
        PosteriorError: the file does not hold each of them.
    """
    asked = pl.DataFrame(
        {"session_id": np.asarray(session_id), "prefix_length": np.asarray(prefix_length)},
        schema_overrides={"session_id": pl.String, "prefix_length": pl.Int64},
    )
    try:
        truth = pl.read_parquet(path, columns=list(_POSTERIOR)).with_columns(pl.col("prefix_length").cast(pl.Int64))
        told = asked.join(truth, on=["session_id", "prefix_length"], how="left", maintain_order="left")["probability"]
    except (OSError, pl.exceptions.PolarsError) as exc:
        raise PosteriorError(f"{path}: not a posterior that `willbuy synthesize` wrote ({exc})") from exc
    if told.null_count():
        raise PosteriorError(f"{path}: is not of this log, {told.null_count()} prefixes are not in it")
    return told.to_numpy()
