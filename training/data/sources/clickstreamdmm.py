"""The ClickstreamDMM sessions (Ozyurt et al., WWW 2022), re-shaped into one row a page.

Columns: `session_id, elapsed_s, page, flag_1 ... flag_4, level, bought`. The outcome is given; no purchase is marked.
Times are whole seconds and rows name no item, so equal rows may be distinct page views and are kept.
"""

from pathlib import Path
from typing import Final

from training.data.sources.base import Adapter, EventFile, Source, one_file
from training.data.sources.files import matching
from training.data.sources.mapping import ColumnMapping, PropertyColumn
from training.data.sources.tables import column_names

FACTS: Final = ("flag_1", "flag_2", "flag_3", "flag_4", "level")
MAPPING: Final = ColumnMapping(
    session_id="session_id",
    timestamp="elapsed_s",
    event_name="page",
    outcome="bought",
    properties=tuple(PropertyColumn(name, name, "number") for name in FACTS),
    time_format="elapsed_s",
    equal_rows_are_duplicates=False,
)


def _recognises(path: Path) -> bool:
    files = [path] if path.is_file() else matching(path, "*.csv")
    return len(files) == 1 and set(column_names(files[0])) >= MAPPING.needed_columns().keys()


def _open(path: Path) -> Source:
    file = one_file(path, "*.csv") if path.is_dir() else path
    return Source(format="clickstreamdmm", clock="session", event_files=(EventFile(file, MAPPING),))


ADAPTER: Final = Adapter("ClickstreamDMM, one row a page: the CSV or its folder", _recognises, _open)
