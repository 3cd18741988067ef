"""The report as one HTML page that stands alone."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from training.report import charts, wording
from training.report.build import FEW_BUYERS
from training.report.content import OPTIMUM, Report
from training.report.drawings import MOST_DRAWN, Drawn, draw, rung_colour

# Half the width of the bar that shows a difference, in percent of its cell.
_HALF_BAR: Final = 50.0


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
    environment.filters["percent"] = wording.percent
    environment.filters["number"] = wording.number
    environment.filters["interval"] = wording.interval
    drawn: Drawn = draw(report)
    page = environment.get_template("report.html.j2").render(
        report=report,
        metrics=wording.METRICS,
        metric=wording.metric,
        row_facts=wording.row_facts,
        optimum=OPTIMUM,
        colours=drawn.colours,
        charts=drawn.charts,
        all_drawn=len(report.names) <= MOST_DRAWN,
        optimum_colour=charts.OPTIMUM_COLOUR,
        bars=_bars(report),
        rung_colour=rung_colour,
        few_buyers=FEW_BUYERS,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _bars(report: Report) -> dict[str, tuple[float, float, float]]:
    """Return where each pooled difference of log losses stands in its cell: low, value and high in percent."""
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
