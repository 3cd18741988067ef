"""Values inside of a record, by path: the same paths for JSON, where this module reads them, and for Parquet.

`device.category` is a field of a record, `items[0].item_id` one of the first item, `items[#]` the number of items, and
`event_params[ga_session_id]` the value of an entry in a list of keys and values, as Google Analytics and Spark write.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import msgspec

_STEP: Final = re.compile(r"\.?([^.\[\]]+)|\[([^\[\]]+)\]")
COUNT: Final = "#"
KEY: Final = "key"
VALUE: Final = "value"


@dataclass(frozen=True, slots=True)
class Entry:
    """A step into a list of keys and values."""

    key: str


Step = str | int | Entry


@lru_cache(maxsize=1024)
def steps(path: str) -> tuple[Step, ...]:
    """Return the steps of a path; none where it is the name of one column."""
    found: list[Step] = []
    position = 0
    for match in _STEP.finditer(path):
        if match.start() != position:
            return ()
        position = match.end()
        name, inside = match.groups()
        found.append(name or (int(inside) if inside.isdecimal() else Entry(inside)))
    return tuple(found) if position == len(path) and len(found) > 1 and isinstance(found[0], str) else ()


def value_at(record: Mapping[str, Any], path: str) -> Any:  # noqa: ANN401  # whatever JSON holds
    """Return the value at a path of a JSON object; None where there is none."""
    if path in record or not steps(path):
        return record.get(path)
    value: Any = record
    for step in steps(path):
        if isinstance(step, Entry):
            value = _entry(value, step.key)
        elif isinstance(step, int):
            value = value[step] if isinstance(value, list) and step < len(value) else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
        if value is None:
            return None
    return value


def _entry(value: Any, key: str) -> Any:  # noqa: ANN401  # as above
    if key == COUNT:
        return len(value) if isinstance(value, list) else None
    if isinstance(value, dict):
        return value.get(key)
    if not isinstance(value, list):
        return None
    for entry in value:
        if isinstance(entry, dict) and entry.get(KEY) == key:
            held = entry.get(VALUE)
            # One of `string_value`, `int_value`, `float_value`, `double_value` is given.
            return next((one for one in held.values() if one is not None), None) if isinstance(held, dict) else held
    return None


def scalar_text(value: Any) -> str | None:  # noqa: ANN401  # any JSON
    """Return a value as a text table would hold it."""
    if isinstance(value, str):
        # A half of a surrogate pair is valid in JSON and in no text.
        return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return None if value != value else repr(value)  # noqa: PLR0124  # NaN
    if isinstance(value, int):
        return str(value)
    return msgspec.json.encode(value).decode("utf-8")
