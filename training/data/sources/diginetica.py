"""Diginetica (CIKM Cup 2016): item views, purchases and item categories in three `;`-separated files of one folder.

The full data set names its columns `sessionId, userId, itemId`, its samples partly `session_id, user_id, item_id`; both
are read. `timeframe` counts milliseconds from the session's start and may run over days, `eventdate` is the day.
"""

from collections.abc import Generator
from pathlib import Path
from typing import Final

import polars as pl

from training.data.sources import values
from training.data.sources.base import Adapter, Batch, Enrichment, EventFile, Source, lookup_batch, one_file
from training.data.sources.errors import SourceError
from training.data.sources.files import matching
from training.data.sources.mapping import ColumnMapping
from training.data.sources.tables import column_names, read_table
from training.data.sources.text import TextLayout

SEPARATOR: Final = ";"


def _either(found: tuple[str, ...], name: str, other: str) -> str:
    return other if other in found and name not in found else name


def _event_file(path: Path, event_name: str) -> EventFile:
    found = column_names(path, SEPARATOR)
    mapping = ColumnMapping(
        session_id=_either(found, "sessionId", "session_id"),
        timestamp="timeframe",
        date="eventdate",
        constant_event_name=event_name,
        item_id=_either(found, "itemId", "item_id"),
        time_format="elapsed_ms",
        separator=SEPARATOR,
    )
    return EventFile(path, mapping)


def _categories(path: Path, block_bytes: int) -> Generator[Batch, None, Enrichment]:
    found = column_names(path, SEPARATOR)
    item, category = _either(found, "itemId", "item_id"), _either(found, "categoryId", "category_id")
    needed = {item: "item_id", category: "item_category"}
    parts = [pl.DataFrame(schema={"item_id": pl.String, "category": pl.String})]
    for block in read_table(path, needed, TextLayout(SEPARATOR), block_bytes):
        rows = block.rows.select(item_id=values.text(block.rows[item]), category=values.text(block.rows[category]))
        parts.append(rows.drop_nulls())
        yield lookup_batch(path, 0, block.rejected, rows_read=block.rows_read, bytes_done=block.bytes_done)
    categories = pl.concat(parts).unique("item_id", keep="last", maintain_order=True)

    def enrich(events: pl.DataFrame) -> pl.DataFrame:
        joined = events.join(categories, on="item_id", how="left", maintain_order="left")
        return joined.with_columns(item_category=pl.col("category")).drop("category")

    return enrich


def _recognises(path: Path) -> bool:
    return bool(matching(path, "*item-views.csv"))


def _open(path: Path) -> Source:
    if not path.is_dir():
        raise SourceError(f"{path}: give the folder that holds the item views, the purchases and the categories")
    views, purchases = one_file(path, "*item-views.csv"), one_file(path, "*purchases.csv")
    categories = one_file(path, "*product-categories.csv")
    return Source(
        format="diginetica",
        clock="date",
        event_files=(_event_file(views, "view_item"), _event_file(purchases, "purchase")),
        lookup=lambda block_bytes: _categories(categories, block_bytes),
        lookup_paths=(categories,),
    )


ADAPTER: Final = Adapter(
    "Diginetica (CIKM Cup 2016): the folder with item views, purchases and categories", _recognises, _open
)
