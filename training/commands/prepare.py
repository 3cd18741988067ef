"""Preparing a log as the commands do it: options to a mapping, bars while it runs, counts at its end."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.table import Table

from training.commands.console import ERR, OUT, prepare_progress
from training.data.prepare import DEFAULT_IDLE_TIMEOUT_S, prepare
from training.data.prepared import REJECTED_FILE, PreparedDataset, PreparedDatasetError
from training.data.sources import AUTO
from training.data.sources.errors import SourceError
from training.data.sources.mapping import ColumnMapping

PREPARE_ERRORS: Final = (SourceError, PreparedDatasetError, ValueError, OSError)
_ALWAYS_SHOWN: Final = frozenset({"rows_read", "rows_rejected", "sessions", "events", "buyers"})
_EXAMPLES: Final = 3
# A larger share of open sessions than this is worth a word.
_MANY_OPEN: Final = 0.2


@dataclass(frozen=True, slots=True)
class LogOptions:
    """What a command line says of a log.

    Attributes:
        format: a known format, `auto` or `mapping`.
        mapping: TOML file with the column mapping; instead of the next five.
        columns, events, properties: the mapping as `name=value` pairs.
        time_format: how times are written.
        separator: between fields.
        idle_timeout_s: idle time that ends a session.
        keep_open_sessions: keep sessions that the log's end cuts off.
    """

    format: str = AUTO
    mapping: Path | None = None
    columns: Sequence[str] = ()
    events: Sequence[str] = ()
    properties: Sequence[str] = ()
    time_format: str | None = None
    separator: str | None = None
    idle_timeout_s: float = DEFAULT_IDLE_TIMEOUT_S
    keep_open_sessions: bool = False

    def column_mapping(self) -> ColumnMapping | None:
        """Return the mapping that the options describe; None where they leave it to the format.

        Raises:
            SourceError: options that exclude each other, or a mapping that is none.
        """
        others = self.events or self.properties or self.time_format or self.separator
        if self.mapping is not None:
            if self.columns or others:
                raise SourceError("give either --mapping, or --column and what goes with it, not both")
            return ColumnMapping.from_toml(self.mapping)
        if not self.columns:
            if others:
                raise SourceError("--event, --property, --time-format and --separator go with --column")
            return None
        return ColumnMapping.from_options(
            columns=self.columns,
            events=self.events,
            properties=self.properties,
            time_format=self.time_format,
            separator=self.separator,
        )


def run_prepare(source: Path, out: Path, options: LogOptions, *, keep_rejected: Path | None = None) -> PreparedDataset:
    """Prepare a log, show how far it is, and print what became of its rows.

    Args:
        source: the log.
        out: folder for the prepared sessions.
        options: what the log is like.
        keep_rejected: where to copy the list of malformed rows, if there are any and `out` will not stay.

    Raises:
        SourceError, PreparedDatasetError: see `training.data.prepare.prepare`.
    """
    mapping = options.column_mapping()
    with prepare_progress() as progress:
        dataset = prepare(
            source,
            out,
            format=options.format,
            mapping=mapping,
            idle_timeout_s=options.idle_timeout_s,
            keep_open_sessions=options.keep_open_sessions,
            progress=progress,
        )
    rejected = out / REJECTED_FILE
    if keep_rejected is not None:
        # One of an earlier run would be taken for this run's.
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
    if counts["rejected"]:
        # A path that is broken at the terminal's width could not be copied.
        told = f"{counts['rows_rejected']:,} malformed rows, each in {rejected}:"
        ERR.print(told, style="yellow", markup=False, soft_wrap=True)
        for reason, count in counts["rejected"].items():
            ERR.print(f"  {count:,} x {reason}", markup=False)
        with rejected.open(encoding="utf-8") as lines:
            for _, line in zip(range(_EXAMPLES + 1), lines, strict=False):
                ERR.print(f"  {line.rstrip()}", markup=False, style="dim")
