"""What the training sessions alone show a property to be.

`dataset.json` tells a property's scope over the whole log. The model must not learn from later sessions that a value
changes within a session: a property that first does so in the test period would be encoded otherwise because of it.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from model.columns import PropertySpec


def with_training_scopes(
    shards: Sequence[Path], properties: Sequence[PropertySpec], training_ids: set[str]
) -> list[PropertySpec]:
    """Return the properties, each of scope `session` where it is constant within every training session.

    Args:
        shards: prepared shards; every session is whole in one.
        properties: declared properties.
        training_ids: sessions to look at.
    """
    varying: set[str] = set()
    wanted = pl.DataFrame({"session_id": list(training_ids)}, schema={"session_id": pl.String}).lazy()
    for shard in shards:
        columns = {spec.name: f"property.{spec.name}" for spec in properties if spec.name not in varying}
        if columns:
            rows = pl.scan_parquet(shard, glob=False).join(wanted, on="session_id", how="semi")
            distinct = rows.group_by("session_id").agg(pl.col(list(columns.values())).n_unique()).max().collect()
            varying |= {name for name, column in columns.items() if (distinct[column].item() or 1) > 1}
    return [replace(spec, scope="event" if spec.name in varying else "session") for spec in properties]
