"""RetailRocket: `events.csv`, and optionally the items' changing properties in `item_properties_part*.csv`.

Events: `timestamp` (ms), `visitorid`, `event` (view, addtocart, transaction), `itemid`, `transactionid`. There are no
session ids. Properties: `timestamp, itemid, property, value`; the property `categoryid` is the item's category from
that time on, so an event takes the latest one at or before its own time, never one from its future.
"""

from collections.abc import Generator
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

import polars as pl

from training.data.sources import values
from training.data.sources.base import Adapter, Batch, Enrichment, EventFile, Source, lookup_batch, one_file
from training.data.sources.blocks import LINE, rejections
from training.data.sources.files import matching, plain_name
from training.data.sources.mapping import ColumnMapping
from training.data.sources.tables import column_names, read_table
from training.data.sources.text import TextLayout

MAPPING: Final = ColumnMapping(
    visitor_id="visitorid",
    timestamp="timestamp",
    event_name="event",
    item_id="itemid",
    events={"view": "view_item", "addtocart": "add_to_cart", "transaction": "purchase"},
    time_format="epoch_ms",
)
PROPERTY_COLUMNS: Final = {
    "timestamp": "timestamp",
    "itemid": "item_id",
    "property": "property",
    "value": "item_category",
}
HISTORY_SCHEMA: Final = {"timestamp_ms": pl.Int64, "item_id": pl.String, "category": pl.String}


def _category_history(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return when which item changed to which category, and the rows whose time cannot be read."""
    changes = rows.filter(pl.col("property") == "categoryid")
    times, problems = values.time_ms(changes["timestamp"], "epoch_ms")
    refused = times.is_null()
    rejected = [
        rejections(changes.filter(mask)[LINE], "timestamp", reason, changes.filter(mask)["timestamp"])
        for mask, reason in problems
    ]
    history = pl.DataFrame(
        {
            "timestamp_ms": times,
            "item_id": values.text(changes["itemid"]),
            "category": values.text(changes["value"]),
        }
    )
    return history.filter(~refused), pl.concat(rejected)


def _categories(paths: tuple[Path, ...], block_bytes: int) -> Generator[Batch, None, Enrichment]:
    parts = [pl.DataFrame(schema=HISTORY_SCHEMA)]
    for index, path in enumerate(paths):
        for block in read_table(path, PROPERTY_COLUMNS, TextLayout(), block_bytes):
            history, rejected = _category_history(block.rows)
            parts.append(history)
            yield lookup_batch(
                path,
                index,
                pl.concat([block.rejected, rejected]),
                rows_read=block.rows_read,
                bytes_done=block.bytes_done,
            )
    history = pl.concat(parts).sort("timestamp_ms", maintain_order=True)

    def enrich(events: pl.DataFrame) -> pl.DataFrame:
        ordered = events.sort("timestamp_ms", maintain_order=True)
        joined = ordered.join_asof(history, on="timestamp_ms", by="item_id", strategy="backward")
        return joined.with_columns(item_category=pl.col("category")).drop("category")

    return enrich


def _recognises(path: Path) -> bool:
    files = [path] if path.is_file() else matching(path, "events.csv")
    return len(files) == 1 and set(column_names(files[0])) >= MAPPING.needed_columns().keys()


def _open(path: Path) -> Source:
    events = one_file(path, "events.csv") if path.is_dir() else path
    beside = sorted(events.parent.iterdir())
    changes = tuple(file for file in beside if fnmatch(plain_name(file), "item_properties_part*.csv"))
    return Source(
        format="retailrocket",
        clock="calendar",
        event_files=(EventFile(events, MAPPING),),
        lookup=(lambda block_bytes: _categories(changes, block_bytes)) if changes else None,
        lookup_paths=changes,
    )


ADAPTER: Final = Adapter(
    "RetailRocket: events.csv, or the folder that also holds the item properties", _recognises, _open
)
