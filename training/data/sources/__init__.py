"""Adapters from public log formats, and from any CSV or Parquet, into the canonical event table.

source = open_source(Path("2019-Oct.csv.gz"))
for batch in source.batches():
    batch.events, batch.rejected
"""

from pathlib import Path
from typing import Final

from training.data.sources import (
    canonical,
    clickstreamdmm,
    diginetica,
    ga4,
    matomo,
    otto,
    rees46,
    retailrocket,
    segment,
    shopify,
    snowplow,
    yoochoose,
)
from training.data.sources.base import MAPPING, Adapter, Batch, Source, open_mapped
from training.data.sources.errors import SourceError
from training.data.sources.files import head, table_files
from training.data.sources.mapping import Changes, Clock, ColumnMapping, PropertyColumn
from training.data.sources.session_tables import REFUSAL, is_session_table
from training.data.sources.tables import column_names

AUTO: Final = "auto"
FORMATS: Final[dict[str, Adapter]] = {
    "rees46": rees46.ADAPTER,
    "diginetica": diginetica.ADAPTER,
    "yoochoose": yoochoose.ADAPTER,
    "retailrocket": retailrocket.ADAPTER,
    "clickstreamdmm": clickstreamdmm.ADAPTER,
    "otto": otto.ADAPTER,
    "ga4": ga4.ADAPTER,
    "snowplow": snowplow.ADAPTER,
    "segment": segment.ADAPTER,
    "shopify": shopify.ADAPTER,
    "matomo": matomo.ADAPTER,
    "canonical": canonical.ADAPTER,
}

__all__ = [
    "AUTO",
    "FORMATS",
    "MAPPING",
    "Batch",
    "Changes",
    "Clock",
    "ColumnMapping",
    "PropertyColumn",
    "Source",
    "SourceError",
    "detect",
    "open_source",
]


def detect(path: Path) -> str:
    """Return the name of the format of `path`, from its file names and columns.

    Raises:
        SourceError: there is no such path, or its format is unknown.
    """
    _must_exist(path)
    for name, adapter in FORMATS.items():
        if adapter.recognises(path):
            return name
    for file in table_files(path):
        # A better reason than an unknown format: the file is damaged, or of a kind that holds no events.
        head(file)
        if is_session_table(column_names(file)) or is_session_table(column_names(file, ";")):
            raise SourceError(f"{file}: {REFUSAL}")
    raise SourceError(
        f"{path}: none of the known formats ({', '.join(FORMATS)}); describe its columns with a mapping: "
        "--column session_id=... --column timestamp=... --column event_name=..., or --mapping FILE.toml"
    )


def open_source(
    path: Path,
    format: str = AUTO,  # noqa: A002 - as the option
    mapping: ColumnMapping | None = None,
    changes: Changes | None = None,
) -> Source:
    """Open a log.

    Args:
        path: a file or a folder, depending on the format.
        format: a name in `FORMATS`, `"mapping"`, or `"auto"`: the mapping if there is one, else the detected format.
        mapping: the columns of a log in none of the known formats.
        changes: what is read otherwise than the format or the mapping says.

    Raises:
        SourceError: there is no such path, the format is unknown, or the files are of another format.
    """
    source = _opened(path, format, mapping)
    return source if changes is None else source.changed(changes)


def _opened(path: Path, format: str, mapping: ColumnMapping | None) -> Source:  # noqa: A002 - as the option
    _must_exist(path)
    if mapping is not None:
        if format not in {AUTO, MAPPING}:
            raise SourceError(f"a mapping describes a log of no known format; it does not go with format {format}")
        return open_mapped(path, mapping)
    if format == AUTO:
        format = detect(path)  # noqa: A001 - as above
    if format == MAPPING:
        raise SourceError("format mapping needs a mapping of columns")
    if format not in FORMATS:
        raise SourceError(f"unknown format {format!r}; known: {AUTO}, {', '.join(FORMATS)}, {MAPPING}")
    return FORMATS[format].open(path)


def _must_exist(path: Path) -> None:
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder")
    if path.is_dir() and (path / "dataset.json").exists():
        raise SourceError(f"{path}: these are prepared sessions already, not a log")
    if path.is_file() and path.stat().st_size == 0:
        raise SourceError(f"{path}: the file is empty")
