"""The report as a table for the terminal."""

from rich.table import Table
from rich.text import Text

from training.report.content import Report
from training.report.wording import METRICS, row_facts


def console_table(report: Report) -> Table:
    """Return the scores by prefix length as a table for the terminal, each row's best value in bold."""
    table = Table(title=Text(f"{report.title}: {report.buyers:,} buyers in {report.sessions:,} sessions"))
    for heading in ("events", "prefixes", "bought"):
        table.add_column(heading, justify="right")
    table.add_column("model", no_wrap=True)
    for heading in ("AUC", "avg prec", "log loss", "skill", "Brier", "cal err"):
        table.add_column(heading, justify="right")
    names = list(report.models)
    for rows in zip(*report.models.values(), strict=True):
        index = report.models[names[0]].index(rows[0])
        scores = [row.scores for row in rows]
        best = [metric.best(scores) for metric in METRICS]
        for position, name in enumerate(names):
            facts = row_facts(rows[0]) if position == 0 else ("", "", "")
            cells = [
                Text(metric.text(scores[position]), style="bold green" if marks[position] else "")
                for metric, marks in zip(METRICS, best, strict=True)
            ]
            is_last = position == len(names) - 1 and report.optimum is None
            table.add_row(*facts, Text(name), *cells, end_section=is_last)
        if report.optimum is not None:
            possible = report.optimum[index].scores
            cells = [Text(metric.text(possible), style="dim") for metric in METRICS]
            table.add_row("", "", "", Text("optimum", style="dim"), *cells, end_section=True)
    return table
