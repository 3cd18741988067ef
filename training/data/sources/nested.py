"""Values inside nested columns, by path: the same paths for JSON Lines and for Parquet.

`device.category` is a field of a record, `items[0].item_id` one of the first item, `items[#]` the number of items, and
`event_params[ga_session_id]` the value of an entry in a list of keys and values, as Google Analytics and Spark write.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import polars as pl
from polars.datatypes import DataTypeClass

_STEP: Final = re.compile(r"\.?([^.\[\]]+)|\[([^\[\]]+)\]")
_COUNT: Final = "#"
_KEY: Final = "key"
_VALUE: Final = "value"


@dataclass(frozen=True, slots=True)
class _Entry:
    """A step into a list of keys and values."""

    key: str


_Step = str | int | _Entry


@lru_cache(maxsize=1024)
def steps(path: str) -> tuple[_Step, ...]:
    """Return the steps of a path; none where it is the name of one column."""
    found: list[_Step] = []
    position = 0
    for match in _STEP.finditer(path):
        if match.start() != position:
            return ()
        position = match.end()
        name, inside = match.groups()
        found.append(name or (int(inside) if inside.isdecimal() else _Entry(inside)))
    return tuple(found) if position == len(path) and len(found) > 1 and isinstance(found[0], str) else ()


def value_at(record: Mapping[str, Any], path: str) -> Any:  # noqa: ANN401  # whatever JSON holds
    """Return the value at a path of a JSON object; None where there is none."""
    if path in record or not steps(path):
        return record.get(path)
    value: Any = record
    for step in steps(path):
        if isinstance(step, _Entry):
            value = _entry(value, step.key)
        elif isinstance(step, int):
            value = value[step] if isinstance(value, list) and step < len(value) else None
        else:
            value = value.get(step) if isinstance(value, dict) else None
        if value is None:
            return None
    return value


def _entry(value: Any, key: str) -> Any:  # noqa: ANN401  # as above
    if key == _COUNT:
        return len(value) if isinstance(value, list) else None
    if isinstance(value, dict):
        return value.get(key)
    if not isinstance(value, list):
        return None
    for entry in value:
        if isinstance(entry, dict) and entry.get(_KEY) == key:
            held = entry.get(_VALUE)
            # One of `string_value`, `int_value`, `float_value`, `double_value` is given.
            return next((one for one in held.values() if one is not None), None) if isinstance(held, dict) else held
    return None


def expression(path: str, schema: Mapping[str, pl.DataType]) -> pl.Expr | None:
    """Return what selects a path from a table with nested columns; None where the table has no such path."""
    if path in schema:
        return pl.col(path)
    first, *rest = steps(path) or (path,)
    if not isinstance(first, str) or first not in schema:
        return None
    selected = _selected(pl.col(first), schema[first], rest)
    return None if selected is None else selected.alias(path)


def _selected(value: pl.Expr, dtype: pl.DataType, rest: Sequence[_Step]) -> pl.Expr | None:
    if not rest:
        return value
    step, *others = rest
    if isinstance(dtype, pl.Struct):
        name, types = step.key if isinstance(step, _Entry) else str(step), _types(dtype)
        return _selected(value.struct.field(name), types[name], others) if name in types else None
    return _inside_list(value, _instance(dtype.inner), step, others) if isinstance(dtype, pl.List) else None


def _inside_list(value: pl.Expr, inner: pl.DataType, step: _Step, others: Sequence[_Step]) -> pl.Expr | None:
    if isinstance(step, int):
        return _selected(value.list.get(step, null_on_oob=True), inner, others)
    if isinstance(step, _Entry) and step.key == _COUNT:
        return value.list.len()
    types = _types(inner) if isinstance(inner, pl.Struct) else {}
    if isinstance(step, _Entry) and types.keys() >= {_KEY, _VALUE}:
        return _selected(_entry_of(value, step.key, types[_VALUE]), pl.String(), others)
    return None


def _types(dtype: pl.Struct) -> dict[str, pl.DataType]:
    return {each.name: _instance(each.dtype) for each in dtype.fields}


def _entry_of(value: pl.Expr, key: str, dtype: pl.DataType) -> pl.Expr:
    entry = value.list.eval(
        pl.element().struct.field(_VALUE).filter(pl.element().struct.field(_KEY).cast(pl.String) == key)
    ).list.first()
    if not isinstance(dtype, pl.Struct):
        return entry
    return pl.coalesce(entry.struct.field(field.name).cast(pl.String) for field in dtype.fields)


def _instance(dtype: pl.DataType | DataTypeClass) -> pl.DataType:
    return dtype() if isinstance(dtype, type) else dtype
