"""Segment and RudderStack: tables of their warehouses, and their calls as JSON.

Schemas: https://www.twilio.com/docs/segment/connections/storage/warehouses/schema and
https://www.rudderstack.com/docs/destinations/warehouse-destinations/warehouse-schema/. A folder may hold `tracks`,
`pages` and a table for each event; an event with a table of its own is taken from there, since `tracks` has none of its
properties. Calls have no session, so that visitors are split into sessions at idle times. An event with several
products is one event and has the values of the first product; the property `items` is their number.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl

from training.data.sources.base import Adapter, EventFile, Source
from training.data.sources.errors import SourceError
from training.data.sources.files import plain_name, table_files
from training.data.sources.json_lines import is_json, sample, scalar_text
from training.data.sources.mapping import ColumnMapping, PropertyColumn
from training.data.sources.nested import expression, value_at
from training.data.sources.tables import column_names, is_parquet, parquet_schema

TRACKS: Final = "tracks"
# Tables and calls of pages, with the name that their events get.
PAGES: Final = {"pages": "page_view", "page": "page_view", "screens": "screen_view", "screen": "screen_view"}
NO_EVENTS: Final = frozenset({"identifies", "identify", "users", "groups", "group", "accounts", "aliases", "alias"})
_TIMES: Final = ("timestamp", "original_timestamp", "sent_at", "received_at")
_SIGNS: Final = frozenset(
    {"original_timestamp", "sent_at", "received_at", "event_text", "uuid_ts", "context_library_name"}
)
_CALLS: Final = frozenset({"track", *PAGES, *NO_EVENTS})
_ITEM: Final = ("product_id", "sku", "category", "price", "quantity")
# The products of an event: JSON in a table's column or a call, or a nested column of Parquet.
_PRODUCTS: Final = "products"
_NESTED: Final = {name: f"{_PRODUCTS}[0].{name}" for name in _ITEM}
_NESTED_COUNT: Final = f"{_PRODUCTS}[#]"
_COUNT: Final = "items"
# Columns of a warehouse's table, and where a call has the value.
_CONTEXT: Final = {
    "context_device_type": "context.device.type",
    "context_campaign_source": "context.campaign.source",
    "context_campaign_medium": "context.campaign.medium",
    "context_locale": "context.locale",
}
_CALL: Final = {
    "anonymous_id": "anonymousId",
    "user_id": "userId",
    "event_text": "event",
    "timestamp": "timestamp",
    "original_timestamp": "originalTimestamp",
    "sent_at": "sentAt",
    "received_at": "receivedAt",
    **_CONTEXT,
}
# What an order is worth: the first that is given.
_VALUES: Final = ("revenue", "total", "value")
_Case = Callable[[str], str]


def _mapping(case: _Case) -> ColumnMapping:
    names = ("device", "source", "medium", "locale")
    return ColumnMapping(
        visitor_id=case("anonymous_id"),
        timestamp=case("timestamp"),
        event_name=case("event_text"),
        item_id=case("product_id"),
        item_category=case("category"),
        price=case("price"),
        quantity=case("quantity"),
        value=case("value"),
        currency=case("currency"),
        properties=(
            *(PropertyColumn(name, case(column), "category") for name, column in zip(names, _CONTEXT, strict=True)),
            PropertyColumn(_COUNT, _COUNT, "number"),
        ),
        also_needed=tuple(
            map(
                case,
                ("user_id", "event", "sku", _PRODUCTS, *_VALUES[:2], *_TIMES[1:], *_NESTED.values(), _NESTED_COUNT),
            )
        ),
    )


def _refine(case: _Case, taken: frozenset[str]) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Return what fills gaps of a table from its other columns, and leaves out events that other tables have."""

    def given(name: str) -> pl.Expr:
        text = pl.col(case(name)).cast(pl.String)
        return pl.when(text.str.strip_chars() != "").then(text)

    def of_item(name: str) -> list[pl.Expr]:
        return [given(name), pl.col(_first(name)), given(_NESTED[name])]

    def refine(rows: pl.DataFrame) -> pl.DataFrame:
        products, counts = _first_products(rows[case(_PRODUCTS)])
        items = [pl.coalesce(*of_item(name)).alias(case(name)) for name in _ITEM[2:]]
        item = pl.coalesce(*of_item("product_id"), *of_item("sku"))
        filled = rows.with_columns(*products, *(_as_text(rows[case(name)]) for name in _TIMES)).with_columns(
            pl.coalesce(given("anonymous_id"), given("user_id")).alias(case("anonymous_id")),
            pl.coalesce(given("event_text"), given("event")).alias(case("event_text")),
            item.alias(case("product_id")),
            pl.coalesce(*map(given, _VALUES)).alias(case("value")),
            *items,
            pl.coalesce(
                counts, given(_NESTED_COUNT).cast(pl.Int64, strict=False), item.is_not_null().cast(pl.Int64)
            ).alias(_COUNT),
            pl.coalesce(*map(given, _TIMES)).alias(case("timestamp")),
        )
        if not taken:
            return filled
        return filled.filter(~pl.col(case("event")).cast(pl.String).is_in(list(taken)).fill_null(value=False))

    return refine


def _first(name: str) -> str:
    return f" first {name}"


def _first_products(column: pl.Series) -> tuple[list[pl.Series], pl.Series]:
    """Return the first product's values, and the number of products, of lists in JSON; null where there is none."""
    found = [_product_list(text) for text in column]
    firsts = [next((product for product in products or () if isinstance(product, dict)), {}) for products in found]
    values = [
        pl.Series(_first(name), [scalar_text(first.get(name)) or None for first in firsts], dtype=pl.String)
        for name in _ITEM
    ]
    return values, pl.Series([None if products is None else len(products) for products in found], dtype=pl.Int64)


def _product_list(text: str | None) -> list[Any] | None:
    if not text or not text.lstrip().startswith("["):
        return None
    try:
        products = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return products if isinstance(products, list) else None


def _as_text(times: pl.Series) -> pl.Series:
    """Return times as ISO 8601 in UTC, so that typed times and texts fill each other's gaps."""
    if not isinstance(times.dtype, pl.Datetime):
        return times.cast(pl.String)
    in_utc = times.dt.convert_time_zone("UTC") if times.dtype.time_zone else times
    return in_utc.dt.to_string("%Y-%m-%dT%H:%M:%S%.6f")


def _records(call: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield calls as rows of a warehouse's table; none for calls that are no events."""
    batch = call.get("batch")
    for one in batch if isinstance(batch, list) else [call]:
        kind = one.get("type", "track") if isinstance(one, dict) else None
        if kind != "track" and kind not in PAGES:
            continue
        row = {column: value_at(one, path) for column, path in _CALL.items()}
        held = one.get("properties")
        facts = held if isinstance(held, dict) else {}
        row |= {name: facts.get(name) for name in (*_ITEM, _PRODUCTS, *_VALUES, "currency")}
        yield row if kind == "track" else row | {"event_text": PAGES[kind]}


def _table_name(file: Path, root: Path) -> str:
    """Return the table's name: of the file, or of a folder that holds the table in parts."""
    stem = plain_name(file).partition(".")[0]
    parts = [part.lower() for part in file.relative_to(root).parts[:-1]] if root.is_dir() else []
    known = {TRACKS, *PAGES, *NO_EVENTS}
    return next((part for part in reversed(parts) if part in known or not stem.strip("0123456789-_part")), stem)


def _event_file(file: Path, name: str, taken: frozenset[str]) -> EventFile:
    if is_json(file):
        return EventFile(file, _mapping(str), refine=_refine(str, frozenset()), records=_records, may_lack=True)
    found = column_names(file)
    # Snowflake writes names in upper case.
    case: _Case = str.upper if "ANONYMOUS_ID" in found else str
    mapping = _mapping(case)
    if is_parquet(file):
        found = _readable(parquet_schema(file), found, mapping)
    given: dict[str, str | None] = dict.fromkeys(column for column in mapping.needed_columns() if column not in found)
    if case("event") not in found and case("event_text") not in found:
        given[case("event_text")] = PAGES.get(name, name)
    return EventFile(file, mapping, refine=_refine(case, taken if name == TRACKS else frozenset()), given=given)


def _readable(schema: pl.Schema, found: Sequence[str], mapping: ColumnMapping) -> tuple[str, ...]:
    """Return the columns of a Parquet file that hold single values, and the paths into others that it has."""
    single = [name for name in found if not schema[name].is_nested()]
    return (
        *single,
        *(path for path in mapping.needed_columns() if path not in schema and expression(path, schema) is not None),
    )


def _is_ours(file: Path) -> bool:
    if is_json(file):
        calls = sample(file)[:1]
        return any(isinstance(call.get("batch"), list) or _is_call(call) for call in calls)
    found = {name.lower() for name in column_names(file)}
    return "anonymous_id" in found and not found.isdisjoint(_TIMES) and not found.isdisjoint(_SIGNS)


def _is_call(call: dict[str, Any]) -> bool:
    return call.get("type") in _CALLS and not call.keys().isdisjoint({"anonymousId", "userId"})


def _tables(path: Path) -> dict[Path, str]:
    named = {file: _table_name(file, path) for file in table_files(path)}
    events = {file: name for file, name in named.items() if name not in NO_EVENTS}
    return events or named


def _recognises(path: Path) -> bool:
    try:
        return all(map(_is_ours, _tables(path)))
    except SourceError:
        return False


def _open(path: Path) -> Source:
    tables = _tables(path)
    for file in tables:
        if not _is_ours(file):
            raise SourceError(
                f"{file}: neither a table of Segment's or RudderStack's warehouse nor their calls as JSON"
            )
    own = frozenset(tables.values()) - {TRACKS, *PAGES}
    files = tuple(_event_file(file, name, own) for file, name in tables.items())
    return Source(format="segment", clock="calendar", event_files=files)


ADAPTER: Final = Adapter("Segment or RudderStack: tables of the warehouse, or calls as JSON", _recognises, _open)
