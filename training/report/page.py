"""The report as one HTML page that stands alone."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from training.report import charts
from training.report.content import FEW_BUYERS, Report
from training.report.wording import METRICS, row_facts


def write_html(path: Path, report: Report) -> None:
    """Write the report as one HTML file that asks no other host for anything."""
    environment = Environment(
        loader=PackageLoader("training.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["facts"] = lambda facts: list(_flat(facts))
    page = environment.get_template("report.html.j2").render(
        report=report,
        metrics=METRICS,
        names=list(report.models),
        colours=[charts.colour(position) for position in range(len(report.models))],
        row_facts=row_facts,
        charts=_charts(report),
        few_buyers=FEW_BUYERS,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _charts(report: Report) -> dict[str, Any]:
    rows = next(iter(report.models.values()))
    lengths = [row.prefix_length for row in rows if row.prefix_length is not None]
    drawn: dict[str, Any] = {
        metric.field: charts.lines_by_prefix_length(
            lengths,
            [[getattr(row.scores, metric.field) for row in rows[:-1]] for rows in report.models.values()],
            None if report.optimum is None else [getattr(row.scores, metric.field) for row in report.optimum[:-1]],
            metric=metric.name,
        )
        for metric in METRICS
        if metric.field in {"auc", "log_loss"}
    }
    spread = report.histogram
    drawn["reliability"] = charts.reliability_diagram(list(report.reliability.values()))
    drawn["histogram"] = charts.histogram(spread.edges, {"bought": spread.bought, "left": spread.left})
    drawn["learning"] = charts.learning_curve(report.epochs) if report.epochs else None
    return drawn


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{label}, ")
        else:
            yield label, _fact(value)


def _fact(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(_fact(item) for item in value) or "none"
    return str(value)
