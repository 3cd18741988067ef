"""The summary of a prepared log as tables for the terminal, 80 columns wide."""

from collections.abc import Iterator
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from training.report.log_page import bars, share_text
from training.report.log_summary import LogSummary

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_BAR: Final = 24
_NAMES_SHOWN: Final = 12
_EIGHTHS: Final = 8


def log_tables(summary: LogSummary) -> Iterator[RenderableType]:
    """Yield the summary part by part, but for its notes and warnings."""
    yield _figures(summary)
    yield _fates(summary)
    if summary.rejections:
        yield _rejections(summary)
    if summary.names:
        yield _names(summary)
    yield _lengths(summary)
    if any(summary.hours):
        yield _hours(summary)
    if summary.largest:
        yield _largest(summary)


def _table(title: str, *headings: tuple[str, str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for heading, side in headings:
        table.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    return table


def _figures(summary: LogSummary) -> Text:
    dataset, sessions = summary.dataset, summary.dataset.counts.sessions
    text = Text()
    text.append(
        f"{sessions.sessions:,} sessions, {sessions.buyers:,} buyers ({share_text(summary.buyer_share)})", "bold"
    )
    text.append(f", {sessions.events:,} events\n{dataset.source_format} log")
    if summary.span:
        first, last, length = summary.span
        text.append(f" from {first} to {last} UTC ({length})")
    properties = ", ".join(f"{spec.name} ({spec.kind}, {spec.scope})" for spec in dataset.properties)
    return text.append(f"\nproperties: {properties}" if properties else "")


def _fates(summary: LogSummary) -> Table:
    table = _table("Rows", ("fate", ""), ("rows", "right"), ("share", "right"), ("", ""))
    for fate in summary.fates:
        table.add_row(fate.name, f"{fate.rows:,}", share_text(fate.share), Text(fate.meaning, style="dim"))
    table.add_section()
    table.add_row("all", f"{summary.dataset.counts.rows_read:,}", "", "")
    return table


def _rejections(summary: LogSummary) -> Table:
    table = _table("Rejected", ("reason", ""), ("rows", "right"), ("file:line", ""))
    for found in summary.rejections:
        table.add_row(Text(found.reason), f"{found.rows:,}", Text(found.where))
    return table


def _names(summary: LogSummary) -> Table:
    table = _table("Event names", ("name", ""), ("read as", ""), ("rows", "right"), ("", ""))
    lengths = bars([entry["rows"] for entry in summary.names])
    for entry, length in zip(summary.names[:_NAMES_SHOWN], lengths, strict=False):
        read_as = Text(entry["read_as"], style="bold green" if entry["read_as"] == "purchase" else "")
        table.add_row(Text(entry["name"]), read_as, f"{entry['rows']:,}", _bar(length))
    more = len(summary.names) - _NAMES_SHOWN
    if more > 0:
        table.add_row(Text(f"and {more} more on the page", style="dim"))
    return table


def _lengths(summary: LogSummary) -> Table:
    table = _table(
        f"Events a session (median {summary.median_length})", ("events", ""), ("sessions", "right"), ("", "")
    )
    for (label, number), length in zip(summary.lengths, bars([number for _, number in summary.lengths]), strict=True):
        table.add_row(label, f"{number:,}", _bar(length))
    return table


def _hours(summary: LogSummary) -> Text:
    heights = bars(summary.hours)
    # Three columns an hour, as wide as the hours' names below.
    line = "".join(_BLOCKS[max(1, round(_EIGHTHS * height / 100)) if height else 0] * 2 + " " for height in heights)
    text = Text("Hours of the day (UTC)\n", style="bold")
    text.append(line + "\n", style="cyan")
    return text.append(" ".join(f"{hour:02}" for hour in range(24)), style="dim")


def _largest(summary: LogSummary) -> Table:
    table = _table("Largest sessions", ("session", ""), ("rows", "right"), ("begin", ""), ("length", "right"))
    for entry in summary.largest:
        table.add_row(Text(entry["session_id"]), entry["rows"], entry["first"], entry["length"])
    return table


def _bar(percent: float) -> Text:
    return Text("█" * max(1, round(_BAR * percent / 100)) if percent else "", style="cyan")
