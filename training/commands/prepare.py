"""`willbuy prepare`: options to a column mapping, progress bars, and what became of the rows."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from training.commands.console import ERR, OUT, print_line
from training.commands.stages import prepare_progress
from training.config import ColumnOptions, LogFormat, LogSettings
from training.data.prepare import prepare
from training.data.prepared import (
    LOG_PAGE,
    REJECTED_FILE,
    PreparedDataset,
    PreparedDatasetError,
    is_prepared,
    read_prepared,
)
from training.data.sources.errors import SourceError
from training.data.sources.mapping import Changes, ColumnMapping
from training.data.sources.tables import BLOCK_BYTES
from training.report.log_page import write_log_page
from training.report.log_summary import LogSummary, summarise
from training.report.log_table import log_tables

PREPARE_ERRORS: Final = (SourceError, PreparedDatasetError, ValueError, OSError)
# Enough for the rows of a first look, and no more.
_FIRST_BLOCK_BYTES: Final = 2_000_000


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
        "missing_values": columns.missing_values,
        "has_header": None if columns.has_header else False,
        "decimal_comma": columns.decimal_comma or None,
    }
    given = any(value is not None and value != () for value in settings.values())
    if log.mapping is not None:
        if pairs or given:
            raise SourceError("give either --mapping, or --column and its companions, not both")
        return ColumnMapping.from_toml(log.mapping)
    if not pairs:
        if given:
            raise SourceError(
                "--property, --constant, --time-format, --separator, --encoding, --no-header, --missing-value and "
                "--decimal-comma go with --column"
            )
        return None
    key = _columns_of(columns.session_key)
    return ColumnMapping.from_options(pairs, **{**settings, "session_key": key or None})


def column_changes(columns: ColumnOptions | None) -> Changes:
    """Return what the options change in any log, of a known format or mapped.

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


@contextmanager
def prepared_sessions(data: Path, prepare_into: Callable[[Path], PreparedDataset]) -> Iterator[PreparedDataset]:
    """Yield prepared sessions as they are, or those that `prepare_into` makes of a log in a temporary folder.

    Raises:
        PREPARE_ERRORS: there is no such data, or it is not readable.
    """
    if is_prepared(data):
        yield read_prepared(data)
        return
    with tempfile.TemporaryDirectory(prefix="willbuy-") as folder:
        yield prepare_into(Path(folder) / "prepared")


def run_prepare(
    source: Path,
    out: Path,
    log: LogSettings,
    columns: ColumnOptions | None = None,
    *,
    keep_rejected: Path | None = None,
    first_rows: int | None = None,
) -> PreparedDataset:
    """Prepare a log, show the progress, and print and write what became of its rows.

    Args:
        source: the log.
        out: folder for the prepared sessions.
        log: how the log is read.
        columns: a column mapping in place of `log.mapping`.
        keep_rejected: copy of the list of malformed rows, where there are any; for an `out` that is temporary.
        first_rows: about how many rows to read; None: all.

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
            time_zone=log.time_zone,
            earliest=log.earliest,
            days_ahead=log.days_ahead,
            keep_placeholder_ids=log.keep_placeholder_ids,
            after_purchase=log.after_purchase,
            equal_rows=log.equal_rows,
            needs_buyers=first_rows is None,
            first_rows=first_rows,
            block_bytes=BLOCK_BYTES if first_rows is None else _FIRST_BLOCK_BYTES,
            progress=progress,
        )
    rejected = out / REJECTED_FILE
    if keep_rejected is not None:
        # A file of an earlier run would look like this run's.
        keep_rejected.unlink(missing_ok=True)
        if dataset.counts.rows_rejected:
            rejected = Path(shutil.copyfile(rejected, keep_rejected))
    summary = summarise(dataset)
    is_kept = first_rows is None and keep_rejected is None
    if is_kept:
        write_log_page(out / LOG_PAGE, summary)
    show_summary(summary)
    if first_rows is None and dataset.counts.rows_rejected:
        print_line(f"rejected rows: {rejected}", console=ERR)
    if is_kept:
        print_line(f"page: {out / LOG_PAGE}")
    return dataset


def run_dry(source: Path, log: LogSettings, columns: ColumnOptions | None, rows: int) -> None:
    """Show what the first rows of a log are read as, and write nothing.

    Raises:
        SourceError, PreparedDatasetError: see `training.data.prepare.prepare`.
    """
    with tempfile.TemporaryDirectory(prefix="willbuy-") as folder:
        run_prepare(source, Path(folder) / "sessions", log, columns, first_rows=rows)
    print_line(f"This was a look at the first {rows:,} rows or so; nothing was written.")


def show_summary(summary: LogSummary) -> None:
    """Print the summary, warnings last and to standard error."""
    for part in log_tables(summary):
        OUT.print(part)
    for note in summary.notes:
        ERR.print(note, style="dim", markup=False, highlight=False)
    for warning in summary.warnings:
        ERR.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
