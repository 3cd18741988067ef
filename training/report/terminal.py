"""The report as a table for the terminal."""

from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from training.report.content import Report
from training.report.wording import METRICS, row_facts

# Eighty columns have no room for the skill, which the log loss already tells; the page shows it.
TERMINAL_METRICS: Final = tuple(metric for metric in METRICS if metric.field != "log_loss_skill")
_HEADINGS: Final = {
    "auc": "AUC",
    "average_precision": "AP",
    "log_loss": "log loss",
    "brier": "Brier",
    "calibration_error": "ECE",
}


def console_table(report: Report) -> Table:
    """Return the scores by prefix length as a table of 80 columns, each row's best value in bold."""
    table = Table(
        title=Text(f"{report.title}: {report.buyers:,} buyers in {report.sessions:,} sessions"),
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in ("events", "prefixes", "bought"):
        table.add_column(heading, justify="right")
    table.add_column("model", no_wrap=True)
    for metric in TERMINAL_METRICS:
        table.add_column(_HEADINGS[metric.field], justify="right", no_wrap=True)
    for index, rows in enumerate(zip(*report.models.values(), strict=True)):
        scores = [row.scores for row in rows]
        best = [metric.best(scores) for metric in TERMINAL_METRICS]
        for position, name in enumerate(report.models):
            facts = row_facts(rows[0]) if position == 0 else ("", "", "")
            cells = [
                Text(metric.text(scores[position]), style="bold green" if marks[position] else "")
                for metric, marks in zip(TERMINAL_METRICS, best, strict=True)
            ]
            table.add_row(*facts, Text(name), *cells)
        if report.optimum is not None:
            cells = [Text(metric.text(report.optimum[index].scores), style="dim") for metric in TERMINAL_METRICS]
            table.add_row("", "", "", Text("optimum", style="dim"), *cells)
        table.add_section()
    return table
