"""The page on a prepared log: one self-contained HTML file."""

from collections.abc import Sequence
from pathlib import Path

from training.report.log_summary import LogSummary
from training.report.rendering import templates


def write_log_page(path: Path, summary: LogSummary) -> None:
    """Write the summary as one HTML file that loads nothing from other hosts."""
    environment = templates()
    environment.filters["count"] = lambda value: f"{value:,}"
    environment.filters["share"] = share_text
    page = environment.get_template("log.html.j2").render(
        summary=summary,
        dataset=summary.dataset,
        counts=summary.dataset.counts,
        sessions=summary.dataset.counts.sessions,
        length_bars=bars([number for _, number in summary.lengths]),
        hour_bars=bars(summary.hours),
        name_bars=bars([entry["rows"] for entry in summary.names]),
    )
    path.write_text(page, encoding="utf-8")


def bars(values: Sequence[int]) -> list[float]:
    """Return the values in percent of the largest."""
    most = max(values, default=0) or 1
    return [100.0 * value / most for value in values]


def share_text(share: float) -> str:
    """Return a share in percent, with as many digits as tell it from nothing."""
    percent = 100.0 * share
    if percent and percent < 0.01:  # noqa: PLR2004  # what two decimals show as zero
        return "< 0.01 %"
    return f"{percent:.2f} %" if percent < 1 else f"{percent:.1f} %"
