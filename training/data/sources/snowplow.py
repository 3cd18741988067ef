"""Snowplow's enriched events: TSV without a header, the JSON of its analytics SDKs, or its table of atomic events.

Fields: https://docs.snowplow.io/docs/fundamentals/canonical-event/ and
https://docs.snowplow.io/docs/pipeline/enriched-tsv-format/. Items come from the classic `ti_` fields, from the product
entity of the e-commerce tracking, and from the older `add_to_cart` and `remove_from_cart` events. Apps have no
`domain_sessionid`: their session is in the entity `client_session`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl

from training.data.sources.base import Adapter, EventFile, Source
from training.data.sources.errors import SourceError
from training.data.sources.files import opened, table_files
from training.data.sources.json_lines import is_json
from training.data.sources.mapping import ColumnMapping, PropertyColumn
from training.data.sources.nested import expression
from training.data.sources.tables import column_names, is_parquet, parquet_schema
from training.data.sources.text import MAX_LINE_BYTES

FIELDS: Final = (
    "app_id", "platform", "etl_tstamp", "collector_tstamp", "dvce_created_tstamp", "event", "event_id", "txn_id",
    "name_tracker", "v_tracker", "v_collector", "v_etl", "user_id", "user_ipaddress", "user_fingerprint",
    "domain_userid", "domain_sessionidx", "network_userid", "geo_country", "geo_region", "geo_city", "geo_zipcode",
    "geo_latitude", "geo_longitude", "geo_region_name", "ip_isp", "ip_organization", "ip_domain", "ip_netspeed",
    "page_url", "page_title", "page_referrer", "page_urlscheme", "page_urlhost", "page_urlport", "page_urlpath",
    "page_urlquery", "page_urlfragment", "refr_urlscheme", "refr_urlhost", "refr_urlport", "refr_urlpath",
    "refr_urlquery", "refr_urlfragment", "refr_medium", "refr_source", "refr_term", "mkt_medium", "mkt_source",
    "mkt_term", "mkt_content", "mkt_campaign", "contexts", "se_category", "se_action", "se_label", "se_property",
    "se_value", "unstruct_event", "tr_orderid", "tr_affiliation", "tr_total", "tr_tax", "tr_shipping", "tr_city",
    "tr_state", "tr_country", "ti_orderid", "ti_sku", "ti_name", "ti_category", "ti_price", "ti_quantity",
    "pp_xoffset_min", "pp_xoffset_max", "pp_yoffset_min", "pp_yoffset_max", "useragent", "br_name", "br_family",
    "br_version", "br_type", "br_renderengine", "br_lang", "br_features_pdf", "br_features_flash",
    "br_features_java", "br_features_director", "br_features_quicktime", "br_features_realplayer",
    "br_features_windowsmedia", "br_features_gears", "br_features_silverlight", "br_cookies", "br_colordepth",
    "br_viewwidth", "br_viewheight", "os_name", "os_family", "os_manufacturer", "os_timezone", "dvce_type",
    "dvce_ismobile", "dvce_screenwidth", "dvce_screenheight", "doc_charset", "doc_width", "doc_height",
    "tr_currency", "tr_total_base", "tr_tax_base", "tr_shipping_base", "ti_currency", "ti_price_base",
    "base_currency", "geo_timezone", "mkt_clickid", "mkt_network", "etl_tags", "dvce_sent_tstamp",
    "refr_domain_userid", "refr_dvce_tstamp", "derived_contexts", "domain_sessionid", "derived_tstamp",
    "event_vendor", "event_name", "event_format", "event_version", "event_fingerprint", "true_tstamp",
)  # fmt: skip
_SIGNS: Final = frozenset({"collector_tstamp", "domain_sessionid", "event_name"})
_EVENT: Final = FIELDS.index("event")
_EVENTS: Final = frozenset(
    {"page_view", "page_ping", "struct", "unstruct", "transaction", "transaction_item", "ad_impression", "event"}
)
_TIMES: Final = ("derived_tstamp", "collector_tstamp")
_PLAIN: Final = ("event", "se_action", "domain_userid", "domain_sessionidx", "collector_tstamp")
_UNSTRUCT: Final = "unstruct_event"
_CONTEXTS: Final = "contexts"
# Where the JSON and the tables have the parts of entities and of self-describing events.
_ACTION: Final = "unstruct_event_com_snowplowanalytics_snowplow_ecommerce_snowplow_ecommerce_action_1"
_PRODUCT: Final = "contexts_com_snowplowanalytics_snowplow_ecommerce_product_1"
_SESSION: Final = "contexts_com_snowplowanalytics_snowplow_client_session_1"
_SESSION_ID: Final = f"{_SESSION}[0].sessionId"
_CARTS: Final = tuple(
    f"unstruct_event_com_snowplowanalytics_snowplow_{name}_1" for name in ("add_to_cart", "remove_from_cart")
)
_TRANSACTION: Final = "contexts_com_snowplowanalytics_snowplow_ecommerce_transaction_1"
# Schemas of entities, and the columns that tables have for them.
_ENTITIES: Final = {
    "com.snowplowanalytics.snowplow.ecommerce/product/": _PRODUCT,
    "com.snowplowanalytics.snowplow/client_session/": _SESSION,
    "com.snowplowanalytics.snowplow.ecommerce/transaction/": _TRANSACTION,
}
_TYPE: Final = f"{_ACTION}.type"
# Our field, the classic field, and the names in the product entity and in the older events.
_ITEM: Final = (
    ("ti_sku", "id", "sku"),
    ("ti_category", "category", "category"),
    ("ti_price", "price", "unitPrice"),
    ("ti_quantity", "quantity", "quantity"),
)
# Where an event's value and its currency are; the first that is given counts.
_VALUES: Final = (f"{_TRANSACTION}[0].revenue",)
_CURRENCIES: Final = (
    f"{_TRANSACTION}[0].currency", f"{_PRODUCT}[0].currency", *(f"{cart}.currency" for cart in _CARTS)
)  # fmt: skip
_PATHS: Final = (
    _TYPE,
    _SESSION_ID,
    *_VALUES,
    *_CURRENCIES,
    *(f"{_PRODUCT}[0].{name}" for _, name, _ in _ITEM),
    *(f"{cart}.{name}" for cart in _CARTS for _, _, name in _ITEM),
)
# The types of e-commerce actions that are no names of Google Analytics.
NAMES: Final = {
    "product_view": "view_item",
    "list_view": "view_item_list",
    "list_click": "select_item",
    "checkout_step": "begin_checkout",
    "promo_view": "view_promotion",
    "promo_click": "select_promotion",
    "transaction": "purchase",
    # It tells of the purchase, and is none.
    "transaction_item": "transaction_item",
}


def _mapping(also_needed: Iterable[str], *, is_text: bool) -> ColumnMapping:
    return ColumnMapping(
        session_id="domain_sessionid",
        timestamp="derived_tstamp",
        event_name="event_name",
        item_id="ti_sku",
        item_category="ti_category",
        price="ti_price",
        quantity="ti_quantity",
        value="tr_total",
        currency="tr_currency",
        events=NAMES,
        properties=(
            PropertyColumn("device", "dvce_type", "category"),
            PropertyColumn("country", "geo_country", "category"),
            PropertyColumn("source", "mkt_source", "category"),
            PropertyColumn("medium", "refr_medium", "category"),
        ),
        separator="\t" if is_text else None,
        has_header=not is_text,
        has_quotes=not is_text,
        also_needed=(*_PLAIN, "ti_currency", *also_needed),
    )


def _given(column: str) -> pl.Expr:
    text = pl.col(column).cast(pl.String)
    return pl.when(text.str.strip_chars() != "").then(text)


def _refined(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows with the name, session, time and item that the event's kind keeps in fields of its own."""
    key = pl.concat_str(_given("domain_userid"), _given("domain_sessionidx"), separator="-")
    kind = _given("event_name").fill_null(pl.col("event"))
    name = (
        pl.when(kind == "snowplow_ecommerce_action")
        .then(pl.coalesce(_given(_TYPE), kind))
        .when(pl.col("event") == "struct")
        .then(pl.coalesce(_given("se_action"), kind))
        .otherwise(kind)
    )
    items = [
        pl.coalesce(
            _given(field), _given(f"{_PRODUCT}[0].{entity}"), *(_given(f"{cart}.{older}") for cart in _CARTS)
        ).alias(field)
        for field, entity, older in _ITEM
    ]
    times = pl.coalesce(*(_given(column) for column in _TIMES))
    typed = all(rows[column].dtype.is_temporal() for column in _TIMES)
    return rows.with_columns(
        pl.coalesce(_given("domain_sessionid"), _given(_SESSION_ID), key).alias("domain_sessionid"),
        (pl.coalesce(*_TIMES) if typed else times).alias("derived_tstamp"),
        name.alias("event_name"),
        *items,
        pl.coalesce(*map(_given, ("tr_total", *_VALUES))).alias("tr_total"),
        pl.coalesce(*map(_given, ("tr_currency", "ti_currency", *_CURRENCIES))).alias("tr_currency"),
    )


def _refined_text(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows of the TSV, whose entities and self-describing events are JSON."""
    found = [
        _parts(event, contexts)
        for event, contexts in zip(
            _relevant(rows[_UNSTRUCT], "com.snowplowanalytics.snowplow"),
            _relevant(rows[_CONTEXTS], *_ENTITIES),
            strict=True,
        )
    ]
    parts = [pl.Series(path, [part.get(path) for part in found], dtype=pl.String) for path in _PATHS]
    return _refined(rows.with_columns(parts))


def _relevant(texts: pl.Series, *parts: str) -> list[str | None]:
    wanted = texts.str.contains_any(list(parts)).fill_null(value=False)
    return texts.to_frame("text").select(pl.when(wanted).then("text")).to_series().to_list()


def _parts(event: str | None, contexts: str | None) -> dict[str, str | None]:
    """Return the values at `_PATHS` of one row."""
    found: dict[str, str | None] = {}
    for schema, data in _described(event):
        # A schema is called `iglu:VENDOR/NAME/jsonschema/VERSION`.
        name = schema.removeprefix("iglu:").partition("/jsonschema")[0].replace(".", "_").replace("/", "_")
        column = f"{_UNSTRUCT}_{name}_1"
        found |= {f"{column}.{key}": _text(value) for key, value in data.items()}
    entities = set(_ENTITIES)
    for schema, data in _described(contexts):
        for entity in [entity for entity in entities if entity in schema]:
            entities.remove(entity)  # of several products, the first one's values
            found |= {f"{_ENTITIES[entity]}[0].{key}": _text(value) for key, value in data.items()}
    return found


def _described(text: str | None) -> list[tuple[str, Mapping[str, Any]]]:
    """Return schema and data of the self-describing JSON inside of a field."""
    if text is None:
        return []
    try:
        outer = msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, RecursionError):
        return []
    inner = outer.get("data") if isinstance(outer, dict) else None
    parts = [part for part in (inner if isinstance(inner, list) else [inner]) if isinstance(part, dict)]
    return [(str(part.get("schema")), data) for part in parts for data in [part.get("data")] if isinstance(data, dict)]


def _text(value: object) -> str | None:
    return None if value is None or isinstance(value, dict | list) else str(value)


def _first_fields(path: Path) -> list[str]:
    try:
        with opened(path) as (content, _):
            return content.readline(MAX_LINE_BYTES).decode("utf-8", "replace").rstrip("\r\n").split("\t")
    except (OSError, SourceError):
        return []


def _is_text_log(path: Path) -> bool:
    fields = _first_fields(path)
    return len(fields) > _EVENT + 100 and len(fields) <= len(FIELDS) and fields[_EVENT] in _EVENTS


def _event_file(path: Path) -> EventFile:
    if not is_json(path) and not is_parquet(path) and _is_text_log(path):
        names = FIELDS[: len(_first_fields(path))]
        mapping = _mapping((_UNSTRUCT, _CONTEXTS), is_text=True)
        lacking = [name for name in mapping.needed_columns() if name not in names]
        return EventFile(path, mapping, names, _refined_text, dict.fromkeys(lacking))
    mapping = _mapping(_PATHS, is_text=False)
    given: dict[str, str | None] = {}
    if is_parquet(path):
        schema = parquet_schema(path)
        given = dict.fromkeys(name for name in mapping.needed_columns() if expression(name, schema) is None)
    elif not is_json(path):
        found = column_names(path)
        given = dict.fromkeys(name for name in mapping.needed_columns() if name not in found)
    return EventFile(path, mapping, refine=_refined, given=given, may_lack=True)


def _is_ours(path: Path) -> bool:
    found = frozenset(column_names(path))
    if found >= _SIGNS:
        return True
    return not is_json(path) and not is_parquet(path) and _is_text_log(path)


def _recognises(path: Path) -> bool:
    try:
        return all(map(_is_ours, table_files(path)))
    except SourceError:
        return False


def _open(path: Path) -> Source:
    files = table_files(path)
    for file in files:
        if not _is_ours(file):
            raise SourceError(f"{file}: no enriched events of Snowplow, neither TSV of {len(FIELDS)} fields nor JSON")
    return Source(format="snowplow", clock="calendar", event_files=tuple(map(_event_file, files)))


ADAPTER: Final = Adapter("Snowplow: enriched events as TSV, JSON or a table", _recognises, _open)
