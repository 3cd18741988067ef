"""Any CSV or Parquet, by a column mapping."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import polars as pl

from training.data.sources.base import EventFile, Source
from training.data.sources.errors import SourceError
from training.data.sources.mapping import ColumnMapping, PropertyColumn
from training.data.sources.tables import is_parquet, parquet_schema

TABLE_SUFFIXES: Final = (".csv", ".tsv", ".txt", ".dat", ".csv.gz", ".tsv.gz", ".txt.gz", ".dat.gz", ".parquet")


def open_mapped(path: Path, mapping: ColumnMapping) -> Source:
    """Open a file, or every table of a folder, as `mapping` says.

    Raises:
        SourceError: nothing is there to read.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.name.lower().endswith(TABLE_SUFFIXES))
        if not files:
            raise SourceError(f"{path}: no table in this folder; looked for {', '.join(TABLE_SUFFIXES)}")
    if all(file.is_file() and is_parquet(file) for file in files):
        mapping = replace(mapping, properties=parquet_property_kinds(files, mapping.properties))
    return Source(
        format="mapping",
        clock=mapping.clock,
        event_files=tuple(EventFile(file, mapping) for file in files),
    )


def parquet_property_kinds(files: Sequence[Path], properties: tuple[PropertyColumn, ...]) -> tuple[PropertyColumn, ...]:
    """Return the properties with a kind each: a number where every file that has it types it as number or Boolean."""
    schemas = [parquet_schema(file) for file in files]
    resolved = []
    for declared in properties:
        types = [schema[declared.column] for schema in schemas if declared.column in schema] or [pl.String()]
        numeric = all(dtype.is_numeric() or dtype == pl.Boolean for dtype in types)
        resolved.append(replace(declared, kind=declared.kind or ("number" if numeric else "category")))
    return tuple(resolved)
