"""Values inside nested columns of Parquet, by the paths of `model.vendors.paths`, which JSON has too."""

from collections.abc import Mapping, Sequence

import polars as pl
from polars.datatypes import DataTypeClass

from model.vendors.paths import COUNT, KEY, VALUE, Entry, Step, steps


def expression(path: str, schema: Mapping[str, pl.DataType]) -> pl.Expr | None:
    """Return what selects a path from a table with nested columns; None where the table has no such path."""
    if path in schema:
        return pl.col(path)
    first, *rest = steps(path) or (path,)
    if not isinstance(first, str) or first not in schema:
        return None
    selected = _selected(pl.col(first), schema[first], rest)
    return None if selected is None else selected.alias(path)


def _selected(value: pl.Expr, dtype: pl.DataType, rest: Sequence[Step]) -> pl.Expr | None:
    if not rest:
        return value
    step, *others = rest
    if isinstance(dtype, pl.Struct):
        name, types = step.key if isinstance(step, Entry) else str(step), _types(dtype)
        return _selected(value.struct.field(name), types[name], others) if name in types else None
    return _inside_list(value, _instance(dtype.inner), step, others) if isinstance(dtype, pl.List) else None


def _inside_list(value: pl.Expr, inner: pl.DataType, step: Step, others: Sequence[Step]) -> pl.Expr | None:
    if isinstance(step, int):
        return _selected(value.list.get(step, null_on_oob=True), inner, others)
    if isinstance(step, Entry) and step.key == COUNT:
        return value.list.len()
    types = _types(inner) if isinstance(inner, pl.Struct) else {}
    if isinstance(step, Entry) and types.keys() >= {KEY, VALUE}:
        return _selected(_entry_of(value, step.key, types[VALUE]), pl.String(), others)
    return None


def _types(dtype: pl.Struct) -> dict[str, pl.DataType]:
    return {each.name: _instance(each.dtype) for each in dtype.fields}


def _entry_of(value: pl.Expr, key: str, dtype: pl.DataType) -> pl.Expr:
    entry = value.list.eval(
        pl.element().struct.field(VALUE).filter(pl.element().struct.field(KEY).cast(pl.String) == key)
    ).list.first()
    if not isinstance(dtype, pl.Struct):
        return entry
    return pl.coalesce(entry.struct.field(field.name).cast(pl.String) for field in dtype.fields)


def _instance(dtype: pl.DataType | DataTypeClass) -> pl.DataType:
    return dtype() if isinstance(dtype, type) else dtype
