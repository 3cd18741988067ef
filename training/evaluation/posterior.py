"""The exact posterior of a synthetic log, which reports show as the best possible prediction."""

from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray

_COLUMNS: Final = ("session_id", "prefix_length", "probability")


class PosteriorError(ValueError):
    """A file is not the exact posterior of these sessions; the message has the reason."""


def posterior_of(path: Path, session_id: ArrayLike, prefix_length: ArrayLike) -> NDArray[np.float64]:
    """Return (N,) the exact posterior of each prefix, as `willbuy synthesize` wrote it.

    Args:
        path: the file.
        session_id: (N,) text, of each prefix.
        prefix_length: (N,) its number of events.

    Raises:
        PosteriorError: the file does not hold each of them.
    """
    wanted = pl.DataFrame(
        {"session_id": np.asarray(session_id), "prefix_length": np.asarray(prefix_length)},
        schema_overrides={"session_id": pl.String, "prefix_length": pl.Int64},
    )
    try:
        truth = pl.read_parquet(path, columns=list(_COLUMNS)).with_columns(pl.col("prefix_length").cast(pl.Int64))
        found = wanted.join(truth, on=["session_id", "prefix_length"], how="left", maintain_order="left")["probability"]
    except (OSError, pl.exceptions.PolarsError) as exc:
        raise PosteriorError(f"{path}: not a posterior that `willbuy synthesize` wrote ({exc})") from exc
    if found.null_count():
        raise PosteriorError(f"{path}: is not of this log, {found.null_count()} prefixes are not in it")
    return found.to_numpy()
