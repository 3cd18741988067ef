"""The report as a table for the terminal."""

from typing import Final

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from training.evaluation.prefixes import POOLED
from training.report.content import METRICS, OPTIMUM, Report, row_facts

# Eighty columns do not fit the skill, which follows from the log loss, and the lift; the page shows both.
TERMINAL_METRICS: Final = tuple(metric for metric in METRICS if metric.field not in {"log_loss_skill", "lift"})
_MOST_BY_LENGTH: Final = 4
_HEADINGS: Final = {
    "auc": "AUC",
    "average_precision": "AP",
    "log_loss": "log loss",
    "brier": "Brier",
    "calibration_error": "ECE",
}


def console_table(report: Report) -> Table:
    """Return the scores by prefix length as a table of 80 columns, each row's best value in bold.

    With more than four models, of all prefixes only.
    """
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
    # With many models, only the page has the lengths.
    few = len(report.names) <= _MOST_BY_LENGTH
    for row in [*(report.by_length if few else []), report.pooled]:
        best = {
            metric: metric.best([row.scores[name][metric.field] for name in report.names])
            for metric in TERMINAL_METRICS
        }
        name_shown, count, share = row_facts(row)
        facts = ("all" if row.name == POOLED else name_shown, count, share)
        for position, name in enumerate(report.names):
            cells = [
                Text(metric.text(row.scores[name][metric.field]), style="bold green" if best[metric][position] else "")
                for metric in TERMINAL_METRICS
            ]
            table.add_row(*(facts if position == 0 else ("", "", "")), Text(name), *cells)
        if report.has_optimum:
            cells = [Text(metric.text(row.scores[OPTIMUM][metric.field]), style="dim") for metric in TERMINAL_METRICS]
            table.add_row("", "", "", Text("optimum", style="dim"), *cells)
        table.add_section()
    return table
