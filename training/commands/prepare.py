"""`willbuy prepare`: options to a column mapping, progress bars, and counts of the rows."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from training.commands.console import ERR, OUT, prepare_progress
from training.config import ColumnOptions, LogFormat, LogSettings
from training.data.prepare import prepare
from training.data.prepared import REJECTED_FILE, PreparedDataset, PreparedDatasetError, is_prepared, read_prepared
from training.data.sources.errors import SourceError
from training.data.sources.mapping import Changes, ColumnMapping

PREPARE_ERRORS: Final = (SourceError, PreparedDatasetError, ValueError, OSError)
_ALWAYS_SHOWN: Final = frozenset({"rows_read", "rows_rejected", "sessions", "events", "buyers"})
_EXAMPLES: Final = 3
# A note is printed above this share of open sessions.
_MANY_OPEN: Final = 0.2


def column_mapping(log: LogFormat, columns: ColumnOptions | None = None) -> ColumnMapping | None:
    """Return the mapping of a log's columns; None where the format decides.

    Raises:
        SourceError: the options exclude each other, or the mapping is invalid.
    """
    columns = columns or ColumnOptions()
    pairs = _column_pairs(columns)
    settings: dict[str, Any] = {
        "properties": columns.properties,
        "constants": columns.constants,
        "time_format": columns.time_format,
        "separator": columns.separator,
        "encoding": columns.encoding,
    }
    if log.mapping is not None:
        if pairs or any(settings.values()):
            raise SourceError("give either --mapping, or --column and its companions, not both")
        return ColumnMapping.from_toml(log.mapping)
    if not pairs:
        if any(settings.values()):
            raise SourceError("--property, --constant, --time-format, --separator and --encoding go with --column")
        return None
    key = _columns_of(columns.session_key)
    return ColumnMapping.from_options(pairs, **{**settings, "session_key": key or None})


def column_changes(columns: ColumnOptions | None) -> Changes:
    """Return what the options say of any log, be its format known or mapped.

    Raises:
        SourceError: an option is malformed.
    """
    columns = columns or ColumnOptions()
    return Changes.from_options(columns.events, columns.drop, _columns_of(columns.session_key))


def _column_pairs(columns: ColumnOptions) -> list[str]:
    short = {"session_id": columns.session, "visitor_id": columns.visitor}
    return [*columns.columns, *(f"{name}={column}" for name, column in short.items() if column is not None)]


def _columns_of(texts: Sequence[str]) -> list[str]:
    return [column.strip() for text in texts for column in text.split(",") if column.strip()]


def prepared_or_read(
    data: Path, folder: Path, log: LogSettings, *, keep_rejected: Path | None = None
) -> PreparedDataset:
    """Return prepared sessions as they are, or those of a log, prepared into `folder`.

    Raises:
        PREPARE_ERRORS: there is no such data, or it is not readable.
    """
    return read_prepared(data) if is_prepared(data) else run_prepare(data, folder, log, keep_rejected=keep_rejected)


def run_prepare(
    source: Path,
    out: Path,
    log: LogSettings,
    columns: ColumnOptions | None = None,
    *,
    keep_rejected: Path | None = None,
) -> PreparedDataset:
    """Prepare a log, show the progress, and print the counts of its rows.

    Args:
        source: the log.
        out: folder for the prepared sessions.
        log: how the log is read.
        columns: a column mapping in place of `log.mapping`.
        keep_rejected: copy of the list of malformed rows, where there are any; for an `out` that is temporary.

    Raises:
        SourceError, PreparedDatasetError: see `training.data.prepare.prepare`.
    """
    mapping = column_mapping(log, columns)
    with prepare_progress() as progress:
        dataset = prepare(
            source,
            out,
            format=log.format,
            mapping=mapping,
            idle_timeout_s=log.idle_timeout_s,
            keep_open_sessions=log.keep_open_sessions,
            changes=column_changes(columns),
            time_unit=log.time_unit,
            earliest=log.earliest,
            days_ahead=log.days_ahead,
            keep_placeholder_ids=log.keep_placeholder_ids,
            keep_equal_rows=log.keep_equal_rows,
            progress=progress,
        )
    rejected = out / REJECTED_FILE
    if keep_rejected is not None:
        # A file of an earlier run would look like this run's.
        keep_rejected.unlink(missing_ok=True)
        if dataset.counts.rows_rejected:
            rejected = Path(shutil.copyfile(rejected, keep_rejected))
    _print_counts(dataset, rejected)
    return dataset


def _print_counts(dataset: PreparedDataset, rejected: Path) -> None:
    counts = dataset.to_dict()["counts"]
    OUT.print(f"{dataset.source_format} log, clock: {dataset.clock}", markup=False, highlight=False)
    table = Table(show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    for name, value in counts.items():
        if isinstance(value, int) and (value or name in _ALWAYS_SHOWN):
            table.add_row(name.replace("_", " "), f"{value:,}")
    OUT.print(table)
    if dataset.properties:
        declared = ", ".join(f"{spec.name} ({spec.kind}, {spec.scope})" for spec in dataset.properties)
        OUT.print(f"properties: {declared}", markup=False)
    if counts["sessions_open"] > _MANY_OPEN * counts["sessions"]:
        ERR.print(
            f"{counts['sessions_open']:,} sessions were still open at the log's end, so that their outcome is not "
            "known; they are left out. --keep-open-sessions keeps them.",
            style="yellow",
        )
    for warning in dataset.report.get("warnings", ()):
        ERR.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    if counts["rejected"]:
        # Not wrapped, so that the path can be copied.
        text = f"{counts['rows_rejected']:,} malformed rows, each in {rejected}:"
        ERR.print(text, style="yellow", markup=False, soft_wrap=True)
        for reason, count in counts["rejected"].items():
            ERR.print(f"  {count:,} x {reason}", markup=False)
        with rejected.open(encoding="utf-8") as lines:
            for _, line in zip(range(_EXAMPLES + 1), lines, strict=False):
                ERR.print(f"  {line.rstrip()}", markup=False, style="dim")
