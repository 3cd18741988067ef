"""Matomo: `log_link_visit_action` with `log_action` and `log_conversion`, exported as tables into one folder.

Schema: https://developer.matomo.org/guides/database-schema. Actions name URLs, titles, items and categories by numbers
of `log_action`. Orders are no actions: they are the rows of `log_conversion` with goal 0. Its rows with goal -1 are
carts as they were at last; they are changed after the fact and are left out.
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

ACTIONS: Final = "*log_link_visit_action*"
NAMES: Final = "*log_action*"
CONVERSIONS: Final = "*log_conversion*"
_REQUIRED: Final = frozenset({"idvisit", "server_time", "idaction_url"})
_ORDER_GOAL: Final = "0"
# What `log_action.type` means for an action's URL.
_URL_NAMES: Final = {"2": "click", "3": "file_download", "8": "search"}
_NAMED_TYPES: Final = ("5", "7", "11")
_OPTIONAL: Final = ("idaction_product_sku", "idaction_product_cat", "product_price", "idaction_event_action")
_MISSING: Final = ("\\N", "NULL")


class _Names:
    """What `log_action` contains: names of items, categories and events, and the kinds of URLs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = pl.DataFrame(schema={"id": pl.String, "name": pl.String, "type": pl.String})

    def read(self, block_bytes: int) -> Generator[Batch, None, Enrichment]:
        """Read the table."""
        parts = [self._known]
        needed = {"idaction": "action", "name": "name", "type": "type"}
        for block in read_table(self._path, needed, TextLayout(), block_bytes):
            ids, names, types = (values.text(block.rows[name], _MISSING) for name in needed)
            wanted = [*_NAMED_TYPES, *_URL_NAMES]
            # URLs and titles of pages are most of the table and are not needed.
            parts.append(pl.DataFrame({"id": ids, "name": names, "type": types}).filter(pl.col("type").is_in(wanted)))
            yield lookup_batch(self._path, 0, block.rejected, rows_read=block.rows_read, bytes_done=block.bytes_done)
        self._known = pl.concat(parts).unique("id", keep="last")
        return lambda events: events

    def refine(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return actions with names in place of numbers."""
        item, category, event = (
            self._name(rows, column)
            for column in ("idaction_product_sku", "idaction_product_cat", "idaction_event_action")
        )
        kinds = dict(self._known.filter(pl.col("type").is_in(list(_URL_NAMES))).select("id", "type").iter_rows())
        url = values.text(rows["idaction_url"], _MISSING)
        kind = url.replace_strict(
            {action: _URL_NAMES[kind] for action, kind in kinds.items()}, default="page_view", return_dtype=pl.String
        )
        named = rows.with_columns(kind.fill_null("page_view").alias("idaction_url"), item, category, event)
        viewed = pl.when(pl.col("idaction_product_sku").is_not_null()).then(pl.lit("view_item"))
        return named.with_columns(pl.coalesce("idaction_event_action", viewed, "idaction_url").alias("idaction_url"))

    def _name(self, rows: pl.DataFrame, column: str) -> pl.Series:
        """Return the names of a column's numbers; 0 stands for none."""
        ids = values.text(rows[column], (*_MISSING, "0"))
        names = self._known.select("id", "name")
        joined = ids.alias("id").to_frame().join(names, on="id", how="left", maintain_order="left")
        return joined.select(pl.coalesce("name", "id").alias(column)).to_series()


def _orders(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(values.text(rows["idgoal"]).eq_missing(_ORDER_GOAL))


_ACTION_MAPPING: Final = ColumnMapping(
    session_id="idvisit",
    timestamp="server_time",
    event_name="idaction_url",
    item_id="idaction_product_sku",
    item_category="idaction_product_cat",
    price="product_price",
    missing_values=_MISSING,
    also_needed=("idaction_event_action",),
)
_ORDER_MAPPING: Final = ColumnMapping(
    session_id="idvisit",
    timestamp="server_time",
    constant_event_name="purchase",
    value="revenue",
    missing_values=_MISSING,
    also_needed=("idgoal",),
)


def _actions(path: Path) -> list[Path]:
    files = [path] if path.is_file() else matching(path, ACTIONS)
    return [file for file in files if set(column_names(file)) >= _REQUIRED]


def _recognises(path: Path) -> bool:
    return bool(_actions(path))


def _open(path: Path) -> Source:
    actions = _actions(path)
    if len(actions) != 1:
        raise SourceError(f"{path}: one file must be log_link_visit_action, with a header; found {len(actions)}")
    folder = actions[0].parent
    if path.is_file() or not matching(folder, CONVERSIONS):
        raise SourceError(
            f"{path}: Matomo keeps purchases in log_conversion and names in log_action: export both tables too, and "
            "give the folder"
        )
    found = column_names(actions[0])
    names = _Names(one_file(folder, NAMES))
    conversions = [file for file in matching(folder, CONVERSIONS) if "item" not in file.name.lower()]
    if len(conversions) != 1:
        raise SourceError(f"{folder}: one file must be log_conversion; found {len(conversions)}")
    lacking = dict.fromkeys(column for column in _OPTIONAL if column not in found)
    has_revenue = "revenue" in column_names(conversions[0])
    return Source(
        format="matomo",
        clock="calendar",
        event_files=(
            EventFile(actions[0], _ACTION_MAPPING, refine=names.refine, given=lacking),
            EventFile(conversions[0], _ORDER_MAPPING, refine=_orders, given={} if has_revenue else {"revenue": None}),
        ),
        lookup=names.read,
        lookup_paths=(one_file(folder, NAMES),),
    )


ADAPTER: Final = Adapter("Matomo: a folder of log_link_visit_action, log_action and log_conversion", _recognises, _open)
