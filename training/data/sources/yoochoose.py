"""YooChoose (RecSys Challenge 2015): `yoochoose-clicks.dat` and `yoochoose-buys.dat`, neither with a header.

Clicks: session, time, item, category. Buys: session, time, item, price, quantity. In the challenge's read-me,
category 0 is unknown, S a special offer, 1 to 12 a category and any longer number a brand; price and quantity are 0
where they are unknown.
"""

from pathlib import Path
from typing import Final

import polars as pl

from training.data.sources.base import Adapter, EventFile, Source, one_file
from training.data.sources.errors import SourceError
from training.data.sources.files import matching
from training.data.sources.mapping import ColumnMapping

CLICKS: Final = ColumnMapping(
    session_id="session",
    timestamp="time",
    constant_event_name="view_item",
    item_id="item",
    item_category="category",
)
BUYS: Final = ColumnMapping(
    session_id="session",
    timestamp="time",
    constant_event_name="purchase",
    item_id="item",
    price="price",
    quantity="quantity",
)


def _known_category(rows: pl.DataFrame) -> pl.DataFrame:
    unknown = pl.col("category").str.strip_chars() == "0"
    return rows.with_columns(category=pl.when(unknown).then(pl.lit("")).otherwise("category"))


def _known_amounts(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.with_columns(
        pl.when(pl.col(name).cast(pl.Float64, strict=False) == 0).then(pl.lit("")).otherwise(name).alias(name)
        for name in ("price", "quantity")
    )


def _recognises(path: Path) -> bool:
    return bool(matching(path, "yoochoose-clicks.dat"))


def _open(path: Path) -> Source:
    if not path.is_dir():
        raise SourceError(f"{path}: give the folder that holds yoochoose-clicks.dat and yoochoose-buys.dat")
    clicks, buys = one_file(path, "yoochoose-clicks.dat"), one_file(path, "yoochoose-buys.dat")
    return Source(
        format="yoochoose",
        clock="calendar",
        event_files=(
            EventFile(clicks, CLICKS, ("session", "time", "item", "category"), _known_category),
            EventFile(buys, BUYS, ("session", "time", "item", "price", "quantity"), _known_amounts),
        ),
    )


ADAPTER: Final = Adapter("YooChoose (RecSys Challenge 2015): the folder with both .dat files", _recognises, _open)
