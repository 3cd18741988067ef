"""REES46's multi-category store log: one CSV a month, one row an event.

Columns as published (https://rees46.com/en/datasets): `event_time, event_type, product_id, category_id, category_code,
brand, price, user_id, user_session`. A category without a code keeps its number.
"""

from pathlib import Path
from typing import Final

import polars as pl

from training.data.sources.base import Adapter, EventFile, Source
from training.data.sources.errors import SourceError
from training.data.sources.files import matching
from training.data.sources.mapping import ColumnMapping, PropertyColumn
from training.data.sources.tables import column_names

COLUMNS: Final = frozenset(
    {
        "event_time",
        "event_type",
        "product_id",
        "category_id",
        "category_code",
        "brand",
        "price",
        "user_id",
        "user_session",
    }
)
MAPPING: Final = ColumnMapping(
    session_id="user_session",
    timestamp="event_time",
    event_name="event_type",
    item_id="product_id",
    item_category="category_code",
    price="price",
    events={"view": "view_item", "cart": "add_to_cart"},
    properties=(PropertyColumn("brand", "brand", "category"),),
    also_needed=("category_id",),
)


def _files(path: Path) -> list[Path]:
    return matching(path, "*.csv") if path.is_dir() else [path]


def _with_category(rows: pl.DataFrame) -> pl.DataFrame:
    code, number = pl.col("category_code").cast(pl.String), pl.col("category_id").cast(pl.String)
    coded = (code.str.strip_chars() != "").fill_null(value=False)
    return rows.with_columns(category_code=pl.when(coded).then(code).otherwise(number))


def _recognises(path: Path) -> bool:
    files = _files(path)
    return bool(files) and all(set(column_names(file)) >= COLUMNS for file in files)


def _open(path: Path) -> Source:
    files = _files(path)
    if not files:
        raise SourceError(f"{path}: no .csv in this folder, nor a compressed one")
    return Source(
        format="rees46",
        clock="calendar",
        event_files=tuple(EventFile(file, MAPPING, refine=_with_category) for file in files),
    )


ADAPTER: Final = Adapter("REES46 multi-category store: one CSV or a folder of monthly ones", _recognises, _open)
