"""OTTO (2022): JSON Lines with one visitor a line and all events inside, or Parquet with one row an event.

Line: `{"session": 42, "events": [{"aid": 0, "ts": 1661200010000, "type": "clicks"}, ...]}`. What the data set calls a
session is all that one user did in four weeks, so it is read as a visitor. Copies in Parquet have `session, aid, ts,
type`, and some of them seconds for milliseconds and 0, 1, 2 for clicks, carts, orders.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from training.data.sources.base import EventFile, adapter_of_tables
from training.data.sources.conversion import ORDER
from training.data.sources.json_lines import is_json, sample
from training.data.sources.mapping import ColumnMapping
from training.data.sources.tables import column_names, is_parquet, parquet_head

COLUMNS: Final = frozenset({"session", "aid", "ts", "type"})
NAMES: Final = {"clicks": "view_item", "carts": "add_to_cart", "orders": "purchase"}
# Seconds reach this in the year 5138; milliseconds passed it in 1973.
_LEAST_MS: Final = 100_000_000_000


def _mapping(*, in_seconds: bool, also_needed: tuple[str, ...] = ()) -> ColumnMapping:
    return ColumnMapping(
        visitor_id="session",
        timestamp="ts",
        event_name="type",
        item_id="aid",
        events={**NAMES, **{str(code): name for code, name in enumerate(NAMES.values())}},
        time_format="epoch_s" if in_seconds else "epoch_ms",
        also_needed=also_needed,
    )


def _records(visitor: dict[str, Any]) -> Iterator[dict[str, Any]]:
    events = visitor.get("events")
    for position, event in enumerate(events if isinstance(events, list) else []):
        if isinstance(event, dict):
            yield {"session": visitor.get("session"), **event, ORDER: position}


def _are_seconds(time: object) -> bool:
    return isinstance(time, int | float) and 0 < time < _LEAST_MS


def _event_file(path: Path) -> EventFile:
    if is_json(path):
        times = [event.get("ts") for visitor in sample(path) for event in _records(visitor)]
        mapping = _mapping(in_seconds=any(map(_are_seconds, times)), also_needed=(ORDER,))
        return EventFile(path, mapping, records=_records, may_lack=True)
    first = parquet_head(path, ["ts"])["ts"].to_list()
    return EventFile(path, _mapping(in_seconds=any(map(_are_seconds, first))))


def _is_otto(path: Path) -> bool:
    if is_parquet(path):
        return set(column_names(path)) == COLUMNS
    names = column_names(path)
    return names == ("session", "events") and is_json(path)


ADAPTER: Final = adapter_of_tables(
    "otto",
    "OTTO (2022): JSON Lines of visitors, or Parquet of events",
    _is_otto,
    "no OTTO log: neither JSON Lines of session and events nor Parquet of them",
    _event_file,
)
