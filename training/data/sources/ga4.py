"""Google Analytics 4 as BigQuery exports it: one row an event, in Parquet or JSON Lines.

Schema: https://support.google.com/analytics/answer/7029846. `ga_session_id` is the session's start in seconds, which
several users may share, so that a session is `user_pseudo_id` and `ga_session_id` together. Events that were sent
together have one `event_timestamp`; the three `batch_` columns order them. An event with several items is one event
and has the values of the first item; the property `items` is their number.
"""

from pathlib import Path
from typing import Final

import polars as pl

from training.data.sources.base import Adapter, EventFile, Source
from training.data.sources.conversion import ORDER
from training.data.sources.errors import SourceError
from training.data.sources.files import table_files
from training.data.sources.mapping import ColumnMapping, PropertyColumn
from training.data.sources.nested import expression
from training.data.sources.tables import column_names, is_parquet, parquet_schema
from training.data.sources.text import LINE

REQUIRED: Final = frozenset({"event_timestamp", "event_name", "event_params", "user_pseudo_id"})
_SESSION: Final = "event_params[ga_session_id]"
_USER: Final = "user_pseudo_id"
_BATCH: Final = ("batch_page_id", "batch_ordering_id", "batch_event_index")
# Requests of a page and events of a request, in a power of two; a page's id is a time in milliseconds.
_MOST_REQUESTS: Final = 1 << 12
_MOST_EVENTS: Final = 1 << 8
MAPPING: Final = ColumnMapping(
    session_key=(_USER, _SESSION),
    timestamp="event_timestamp",
    event_name="event_name",
    item_id="items[0].item_id",
    item_category="items[0].item_category",
    price="items[0].price",
    quantity="items[0].quantity",
    value="event_params[value]",
    currency="event_params[currency]",
    properties=(
        PropertyColumn("device", "device.category", "category"),
        PropertyColumn("country", "geo.country", "category"),
        PropertyColumn("source", "traffic_source.source", "category"),
        PropertyColumn("medium", "traffic_source.medium", "category"),
        PropertyColumn("items", "items[#]", "number"),
    ),
    time_format="epoch_us",
    missing_values=("(not set)", "(data deleted)"),
    also_needed=_BATCH,
)


def _refined(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows in the order in which the browser made events of one time."""
    page, request, event = (pl.col(name).cast(pl.Int64, strict=False) for name in _BATCH)
    position = (page * _MOST_REQUESTS + request.clip(0, _MOST_REQUESTS - 1)) * _MOST_EVENTS
    order = pl.coalesce(position + event.clip(0, _MOST_EVENTS - 1), LINE)
    items = pl.col("items[#]").fill_null(pl.lit(0))
    return rows.with_columns(order.alias(ORDER), items)


def _event_file(path: Path) -> EventFile:
    lacking: list[str] = []
    if is_parquet(path):
        schema = parquet_schema(path)
        lacking = [name for name in MAPPING.needed_columns() if expression(name, schema) is None]
    return EventFile(path, MAPPING, refine=_refined, given=dict.fromkeys(lacking), may_lack=True)


def _is_export(path: Path) -> bool:
    return set(column_names(path)) >= REQUIRED


def _recognises(path: Path) -> bool:
    try:
        return all(map(_is_export, table_files(path)))
    except SourceError:
        return False


def _open(path: Path) -> Source:
    files = table_files(path)
    for file in files:
        missing = REQUIRED - set(column_names(file))
        if missing:
            raise SourceError(f"{file}: no export of Google Analytics 4: {', '.join(sorted(missing))} missing")
    return Source(format="ga4", clock="calendar", event_files=tuple(map(_event_file, files)))


ADAPTER: Final = Adapter("Google Analytics 4, exported from BigQuery: Parquet or JSON Lines", _recognises, _open)
