"""Google Analytics 4: its export to BigQuery in Parquet or JSON Lines, and requests of its Measurement Protocol.

What the columns mean is in `model.vendors.ga4`. Events that were sent together have one `event_timestamp`; the three
`batch_` columns order them.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

import polars as pl

from model.vendors.ga4 import CLIENTS, GA4, SESSION, TABLE, USER
from model.vendors.paths import value_at
from training.data.sources.base import EventFile, adapter_of_tables
from training.data.sources.blocks import LINE
from training.data.sources.conversion import ORDER
from training.data.sources.json_lines import sample
from training.data.sources.nested import expression
from training.data.sources.tables import column_names, is_parquet, parquet_schema
from training.data.sources.vendors import filled, mapping_of

REQUIRED: Final = frozenset({"event_timestamp", "event_name", "event_params", USER})
_BATCH: Final = ("batch_page_id", "batch_ordering_id", "batch_event_index")
# Requests of a page and events of a request, in a power of two; a page's id is a time in milliseconds.
_MOST_REQUESTS: Final = 1 << 12
_MOST_EVENTS: Final = 1 << 8
MAPPING: Final = mapping_of(TABLE, session_key=(USER, SESSION), also_needed=_BATCH)


def _refined(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows in the order in which the browser made events of one time."""
    page, request, event = (pl.col(name).cast(pl.Int64, strict=False) for name in _BATCH)
    position = (page * _MOST_REQUESTS + request.clip(0, _MOST_REQUESTS - 1)) * _MOST_EVENTS
    order = pl.coalesce(position + event.clip(0, _MOST_EVENTS - 1), LINE)
    return filled(rows.with_columns(order.alias(ORDER)), TABLE)


def _event_file(path: Path) -> EventFile:
    lacking: list[str] = []
    if is_parquet(path):
        schema = parquet_schema(path)
        lacking = [name for name in MAPPING.needed_columns() if expression(name, schema) is None]
    elif not any(value_at(row, SESSION) for record in sample(path) for row in GA4.rows(record)):
        # No event has a session: visitors are split at idle times.
        by_visitor = replace(MAPPING, session_key=(), visitor_id=USER)
        return EventFile(path, by_visitor, refine=_refined, records=GA4.rows, may_lack=True)
    return EventFile(
        path,
        MAPPING,
        refine=_refined,
        given=dict.fromkeys(lacking),
        records=None if is_parquet(path) else GA4.rows,
        may_lack=True,
    )


def _is_ours(path: Path) -> bool:
    found = set(column_names(path))
    return found >= REQUIRED or ("events" in found and not found.isdisjoint(CLIENTS))


ADAPTER: Final = adapter_of_tables(
    "ga4",
    "Google Analytics 4: its export from BigQuery, or requests of its Measurement Protocol",
    _is_ours,
    f"no export of Google Analytics 4 ({', '.join(sorted(REQUIRED))}), nor requests of its Measurement Protocol",
    _event_file,
)
