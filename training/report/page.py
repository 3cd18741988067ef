"""The report as one self-contained HTML page."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from training.baselines.suite import BASE_RATE
from training.evaluation.curves import GRID
from training.evaluation.ladder import CELLS, Rung
from training.evaluation.resampling import Estimate
from training.report import charts
from training.report.build import FEW_BUYERS
from training.report.content import METRICS, OPTIMUM, Report, interval, metric, number, percent, row_facts
from training.report.rendering import templates
from training.report.verdict import verdict

# Half the width of the bar that shows a difference, in percent of its cell.
_HALF_BAR: Final = 50.0


def write_html(path: Path, report: Report) -> None:
    """Write the report as one HTML file that loads nothing from other hosts."""
    environment = templates()
    environment.filters["facts"] = lambda facts: list(_flat(facts))
    environment.filters["percent"] = percent
    environment.filters["number"] = number
    environment.filters["interval"] = interval
    drawn: Drawn = draw(report)
    page = environment.get_template("report.html.j2").render(
        report=report,
        metrics=METRICS,
        metric=metric,
        row_facts=row_facts,
        optimum=OPTIMUM,
        colours=drawn.colours,
        charts=drawn.charts,
        all_drawn=len(report.names) <= MOST_DRAWN,
        optimum_colour=charts.OPTIMUM_COLOUR,
        bars=_bars(report),
        rung_colour=rung_colour,
        few_buyers=FEW_BUYERS,
        verdict=verdict(report),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _bars(report: Report) -> dict[str, tuple[float, float, float]]:
    """Return the position of each pooled difference of log losses in its cell: low, value and high in percent."""
    known = {
        name: (found.low, found.value, found.high)
        for name, found in report.differences.items()
        if found.low is not None and found.value is not None and found.high is not None
    }
    furthest = max((abs(end) for ends in known.values() for end in ends), default=0.0) or 1.0
    return {
        name: (
            _HALF_BAR * (1 + low / furthest),
            _HALF_BAR * (1 + value / furthest),
            _HALF_BAR * (1 + high / furthest),
        )
        for name, (low, value, high) in known.items()
    }


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


MOST_DRAWN: Final = 6
"""Most models in a chart, as more lines could not be distinguished. The tables have all models."""

_LINE_CHARTS: Final = ("auc", "log_loss", "log_loss_skill", "lift")


@dataclass(frozen=True, slots=True)
class Drawn:
    """The charts by name, None where there is nothing to draw, and the colour of each model that is drawn."""

    charts: dict[str, Markup | None]
    colours: dict[str, str]


def draw(report: Report) -> Drawn:
    """Return all charts of a report."""
    names = _chosen(report)
    colours = {name: charts.colour(position) for position, name in enumerate(names)}
    lengths = [row.name for row in report.by_length]

    def score_lines(field: str) -> list[charts.Line]:
        return _lines(report, colours, lambda name: [row.scores[name][field] for row in report.by_length])

    drawn: dict[str, Markup | None] = {
        metric.field: charts.lines_by_length(lengths, score_lines(metric.field), quantity=metric.name)
        for metric in METRICS
        if metric.field in _LINE_CHARTS
    }
    spread = report.histogram
    drawn["reliability"] = charts.reliability_diagram([report.reliability[name] for name in names])
    drawn["reliability_by_length"] = charts.reliability_by_length(report.reliability_by_length)
    drawn["histogram"] = charts.histogram(spread.edges, {"bought": spread.bought, "left": spread.left})
    drawn["learning"] = charts.learning_curve(report.epochs) if report.epochs else None
    for rule, found in report.earliness.items():
        shown = ["whole" if length is None else str(length) for length in found[report.subject].lengths]
        recall = {name: one.recall for name, one in found.items()}
        lines = _lines(report, colours, recall.__getitem__)
        drawn[rule] = charts.lines_by_length(shown, lines, quantity=f"buyers found, {rule} fixed", percent=True)
    drawn["roc"], drawn["precision_recall"] = _ranking(report, colours)
    drawn["profit"] = _profit(report, colours)
    drawn["ladder"] = _ladder(report, lengths) if report.ladder else None
    return Drawn(drawn, colours)


def rung_colour(rung: Rung) -> str:
    """Return the colour of a rung's cell; a rung without aggregates has a dashed line."""
    return charts.colour(CELLS.index(rung.cell))


def _chosen(report: Report) -> list[str]:
    """Return the models to draw: the subject, the base rate, and of the others those with the least log loss."""
    if len(report.names) <= MOST_DRAWN:
        return report.names
    always = [report.subject, *(name for name in report.names[1:] if name == BASE_RATE)]
    others = [name for name in report.names if name not in always]
    others.sort(key=lambda name: report.pooled.scores[name]["log_loss"].value or 0.0)
    kept = {*always, *others[: MOST_DRAWN - len(always)]}
    return [name for name in report.names if name in kept]


def _lines(report: Report, colours: dict[str, str], values: Callable[[str], Sequence[Estimate]]) -> list[charts.Line]:
    lines = [_line(values(name), ink, band=name == report.subject) for name, ink in colours.items()]
    if report.has_optimum:
        lines.append(charts.Line([found.value for found in values(OPTIMUM)], charts.OPTIMUM_COLOUR, dashed=True))
    return lines


def _line(found: Sequence[Estimate], ink: str, *, band: bool) -> charts.Line:
    values = [one.value for one in found]
    if not band:
        return charts.Line(values, ink)
    return charts.Line(values, ink, low=[one.low for one in found], high=[one.high for one in found])


def _ladder(report: Report, lengths: list[str]) -> Markup:
    lines = [
        charts.Line(
            [row.scores[name]["log_loss_skill"].value for row in report.by_length],
            rung_colour(rung),
            dashed=not rung.aggregates,
        )
        for name, rung in report.rungs.items()
    ]
    return charts.lines_by_length(lengths, lines, quantity="Skill")


def _ranking(report: Report, colours: dict[str, str]) -> tuple[Markup | None, Markup | None]:
    """Draw the ROC and the precision-recall curve, with what guessing gives as a broken line."""
    inks = {**colours, **({OPTIMUM: charts.OPTIMUM_COLOUR} if report.has_optimum else {})}
    found = {name: report.ranking[name] for name in inks}
    if any(one is None for one in found.values()):
        return None, None
    base_rate = report.pooled.base_rate.value
    known = [(inks[name], one) for name, one in found.items() if one is not None]
    roc = [charts.Line(one.recall, ink, dashed=ink == charts.OPTIMUM_COLOUR) for ink, one in known]
    precision = [charts.Line(one.precision, ink, dashed=ink == charts.OPTIMUM_COLOUR) for ink, one in known]
    guess = charts.PALETTE[2]
    roc.append(charts.Line(GRID, guess, dashed=True))
    precision.append(charts.Line([base_rate] * len(GRID), guess, dashed=True))
    return (
        charts.curves(GRID, roc, along="non-buyers above the threshold", quantity="buyers above it"),
        charts.curves(GRID, precision, along="buyers above the threshold", quantity="share that bought"),
    )


def _profit(report: Report, colours: dict[str, str]) -> Markup:
    lines = [_line(report.profit[name].profit, ink, band=name == report.subject) for name, ink in colours.items()]
    subject = report.profit[report.subject]
    lines.append(charts.Line(subject.evenly, charts.OPTIMUM_COLOUR, dashed=True))
    return charts.curves(
        subject.shares, lines, along="share of sessions contacted", quantity="profit for 1,000 sessions"
    )
