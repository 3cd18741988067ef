"""Snowplow's enriched events: TSV without a header, the JSON of its analytics SDKs, or its table of atomic events.

What the columns mean is in `model.vendors.snowplow`; the TSV's order of fields:
https://docs.snowplow.io/docs/pipeline/enriched-tsv-format/.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl

from model.vendors.snowplow import PRODUCT, SESSION, SESSION_INDEX, SESSION_PARTS, SNOWPLOW, TABLE, TRANSACTION
from training.data.sources.base import EventFile, adapter_of_tables
from training.data.sources.blocks import MAX_LINE_BYTES
from training.data.sources.errors import SourceError
from training.data.sources.files import opened
from training.data.sources.json_lines import is_json
from training.data.sources.mapping import ColumnMapping
from training.data.sources.nested import expression
from training.data.sources.tables import column_names, is_parquet, parquet_schema
from training.data.sources.vendors import filled, mapping_of

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
_UNSTRUCT: Final = "unstruct_event"
_CONTEXTS: Final = "contexts"
# Schemas of entities, and the columns that tables have for them.
_ENTITIES: Final = {
    "com.snowplowanalytics.snowplow.ecommerce/product/": PRODUCT,
    "com.snowplowanalytics.snowplow/client_session/": SESSION,
    "com.snowplowanalytics.snowplow.ecommerce/transaction/": TRANSACTION,
}


def _mapping(also_needed: Iterable[str], *, is_text: bool) -> ColumnMapping:
    return mapping_of(
        TABLE,
        separator="\t" if is_text else None,
        has_header=not is_text,
        has_quotes=not is_text,
        also_needed=(*SESSION_PARTS, *also_needed),
    )


def _refined(rows: pl.DataFrame) -> pl.DataFrame:
    """Return rows with the name, session, time and item that the event's kind keeps in fields of its own."""
    parts = [pl.when(pl.col(name).cast(pl.String).str.strip_chars() != "").then(name) for name in SESSION_PARTS]
    return filled(rows.with_columns(pl.concat_str(parts, separator="-").alias(SESSION_INDEX)), TABLE)


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
    nested = [path for path in rows.columns if path.startswith((f"{_UNSTRUCT}_", f"{_CONTEXTS}_"))]
    return _refined(
        rows.with_columns(pl.Series(path, [part.get(path) for part in found], dtype=pl.String) for path in nested)
    )


def _relevant(texts: pl.Series, *parts: str) -> list[str | None]:
    wanted = texts.str.contains_any(list(parts)).fill_null(value=False)
    return texts.to_frame("text").select(pl.when(wanted).then("text")).to_series().to_list()


def _parts(event: str | None, contexts: str | None) -> dict[str, str | None]:
    """Return the values of nested columns of one row."""
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
    mapping = _mapping((), is_text=False)
    given: dict[str, str | None] = {}
    if is_parquet(path):
        schema = parquet_schema(path)
        given = dict.fromkeys(name for name in mapping.needed_columns() if expression(name, schema) is None)
    elif not is_json(path):
        found = column_names(path)
        given = dict.fromkeys(name for name in mapping.needed_columns() if name not in found)
    return EventFile(
        path, mapping, refine=_refined, given=given, records=SNOWPLOW.rows if is_json(path) else None, may_lack=True
    )


def _is_ours(path: Path) -> bool:
    found = frozenset(column_names(path))
    if found >= _SIGNS:
        return True
    return not is_json(path) and not is_parquet(path) and _is_text_log(path)


ADAPTER: Final = adapter_of_tables(
    "snowplow",
    "Snowplow: enriched events as TSV, JSON or a table",
    _is_ours,
    f"no enriched events of Snowplow, neither TSV of {len(FIELDS)} fields nor JSON",
    _event_file,
)
