"""Charts of the report as inline SVG: no script, no other file, and the page's own text colour in light and dark.

Every function returns one `<svg>` element that is safe to place into a page as it is. Legends are the page's, so no
name that a caller chose is ever laid out by matplotlib.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from training.evaluation.metrics import ReliabilityPoint
from training.fit.checkpoint import Epoch

PALETTE: Final = ("#2b6cd9", "#dd7a27", "#8b93a1", "#1f9e83", "#b257cc", "#c4a114", "#d1495b", "#5aa9c4")
"""Colours of the models, in their order; most colour-blind readers can distinguish them."""

OPTIMUM_COLOUR: Final = "#000001"
"""Placeholder of the page's text colour in every chart, also for the best possible predictions."""

# Any: matplotlib types the keys of its settings one by one.
_STYLE: Final[Any] = {
    "svg.fonttype": "none",  # text stays text: the page's font, selectable, and small
    "font.size": 9.5,
    "text.parse_math": False,
    "text.color": OPTIMUM_COLOUR,
    "axes.edgecolor": OPTIMUM_COLOUR,
    "axes.labelcolor": OPTIMUM_COLOUR,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.color": OPTIMUM_COLOUR,
    "ytick.color": OPTIMUM_COLOUR,
    "grid.color": OPTIMUM_COLOUR,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
}


# Margins in inches: a layout engine measures all text several times, which is half of a chart's cost. On the left is
# room for the name of the heights and seven characters at each tick.
_LEFT: Final = 0.78
_RIGHT: Final = 0.2
_TOP: Final = 0.2
_BOTTOM: Final = 0.52
# Where the names of the axes stand, from the figure's edge.
_EDGE: Final = 0.15


def colour(position: int) -> str:
    """Return the colour of the model at this position."""
    return PALETTE[position % len(PALETTE)]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        values: along the chart's places; None leaves a gap.
        ink: its colour.
        dashed: whether it is broken.
        low: lower end of its interval at each place; no band without it.
        high: upper end.
    """

    values: Sequence[float | None]
    ink: str
    dashed: bool = False
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None


def lines_by_length(lengths: Sequence[str], lines: Sequence[Line], *, quantity: str, percent: bool = False) -> Markup:
    """Draw a quantity over numbers of events, the first line on top; undefined values are left out."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure()
        # Places rather than values: lengths are spaced for reading, and the short ones matter most.
        places = list(range(len(lengths)))
        for line in reversed(lines):
            _draw(axes, places, line, marker="o")
        axes.set_xticks(places, list(lengths))
        axes.set_xlabel("events so far")
        _name_heights(axes, quantity, percent=percent)
        return _svg(figure, f"{quantity} by number of events so far")


def curves(shares: Sequence[float], lines: Sequence[Line], *, along: str, quantity: str) -> Markup:
    """Draw a quantity over shares from 0 to 1, the first line on top."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure()
        axes.axhline(0.0, color=OPTIMUM_COLOUR, linewidth=0.8, alpha=0.4)
        for line in reversed(lines):
            _draw(axes, list(shares), line, marker="")
        axes.set_xlim(shares[0], shares[-1])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel(along)
        axes.set_ylabel(quantity)
        return _svg(figure, f"{quantity} by {along}")


def reliability_by_length(points: Mapping[int, Sequence[ReliabilityPoint]]) -> Markup:
    """Draw one small reliability diagram for each prefix length, with 95 % intervals, all on the same scale."""
    with mpl.rc_context(_STYLE):
        columns = 4
        rows = max(1, math.ceil(len(points) / columns))
        width, height = 10.6, 2.5 * rows
        figure = Figure(figsize=(width, height))
        every = [point for found in points.values() for point in found]
        top = min(1.0, 1.05 * max((max(p.probability, p.high) for p in every), default=1.0)) or 1.0
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(points) :]:
            axes.set_visible(False)
        for axes, (length, found) in zip(grid.flat, points.items(), strict=False):
            axes.grid(visible=True)
            axes.set_axisbelow(True)
            axes.plot([0, top], [0, top], color=OPTIMUM_COLOUR, linewidth=0.8, alpha=0.4, linestyle=(0, (4, 3)))
            x = [p.probability for p in found]
            axes.vlines(x, [p.low for p in found], [p.high for p in found], color=colour(0), linewidth=1.4, alpha=0.45)
            axes.plot(x, [p.observed for p in found], color=colour(0), linewidth=1.3, marker="o", markersize=3.5)
            axes.set_title(f"after {length} event{'' if length == 1 else 's'}", fontsize=9.5, loc="left")
            axes.set_xlim(0, top)
            axes.set_ylim(0, top)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(4))
                axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _place(figure)
        figure.subplots_adjust(wspace=0.1, hspace=0.22)
        figure.supxlabel("predicted probability", y=_EDGE / height, va="center", fontsize=9.5)
        figure.supylabel("share that bought", x=_EDGE / width, ha="center", fontsize=9.5)
        return _svg(figure, "Share of buyers by predicted probability, by number of events so far")


def reliability_diagram(models: Sequence[Sequence[ReliabilityPoint]]) -> Markup:
    """Draw the observed share of buyers over the predicted one; the first model with its 95 % intervals."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure()
        points = [point for model in models for point in model]
        top = min(1.0, 1.08 * max((max(p.probability, p.observed) for p in points), default=1.0)) or 1.0
        axes.plot([0, top], [0, top], color=OPTIMUM_COLOUR, linewidth=0.8, alpha=0.4, linestyle=(0, (4, 3)))
        for position in reversed(range(len(models))):
            model, is_subject = models[position], position == 0
            x, y = [p.probability for p in model], [p.observed for p in model]
            if is_subject:
                axes.vlines(
                    x, [p.low for p in model], [p.high for p in model], color=colour(0), linewidth=1.4, alpha=0.45
                )
            axes.plot(
                x,
                y,
                color=colour(position),
                linewidth=1.8 if is_subject else 1.1,
                marker="o",
                markersize=4.5 if is_subject else 3,
            )
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("predicted probability")
        _name_heights(axes, "share that bought", percent=True)
        return _svg(figure, "Share of buyers by predicted probability")


def learning_curve(epochs: Sequence[Epoch]) -> Markup:
    """Draw the losses of each epoch, training first, and mark the epoch with the best validation loss."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure()
        numbers = [epoch.number for epoch in epochs]
        validation = [epoch.validation_loss for epoch in epochs]
        axes.plot(numbers, [epoch.train_loss for epoch in epochs], color=colour(2), linewidth=1.5)
        axes.plot(numbers, validation, color=colour(0), linewidth=1.8)
        best = min(range(len(epochs)), key=validation.__getitem__)
        axes.plot([numbers[best]], [validation[best]], color=colour(0), marker="o", markersize=6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel("log loss")
        return _svg(figure, "Log loss of training and validation by epoch")


def histogram(edges: Sequence[float], counts: Mapping[str, Sequence[int]]) -> Markup:
    """Draw how probabilities are spread, each group as shares of itself: buyers first, then the others."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure()
        for position, group in reversed(list(zip((0, 2), counts.values(), strict=True))):
            shares = [100.0 * count / max(sum(group), 1) for count in group]
            axes.stairs(shares, edges, color=colour(position), fill=True, alpha=0.28)
            axes.stairs(shares, edges, color=colour(position), linewidth=1.4)
        axes.set_xlim(edges[0], edges[-1])
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("% of the group's prefixes")
        return _svg(figure, "Spread of predicted probabilities by outcome")


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 3.1))
    _place(figure)
    axes = figure.add_subplot()
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    # Else matplotlib measures the text of all ticks to place the names beside them.
    width, height = figure.get_size_inches()
    inner = axes.get_position()
    axes.xaxis.set_label_coords((inner.x0 + inner.x1) / 2, _EDGE / height, transform=figure.transFigure)
    axes.yaxis.set_label_coords(_EDGE / width, (inner.y0 + inner.y1) / 2, transform=figure.transFigure)
    axes.xaxis.label.set_verticalalignment("center")
    axes.yaxis.label.set_verticalalignment("center")
    return figure, axes


def _place(figure: Figure) -> None:
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left=_LEFT / width, right=1 - _RIGHT / width, bottom=_BOTTOM / height, top=1 - _TOP / height)


def _draw(axes: Axes, places: Sequence[float], line: Line, *, marker: str) -> None:
    if line.low is not None and line.high is not None:
        axes.fill_between(places, _known(line.low), _known(line.high), color=line.ink, alpha=0.14, linewidth=0)
    axes.plot(
        places,
        _known(line.values),
        color=line.ink,
        linewidth=1.3 if line.dashed else 1.8,
        linestyle=(0, (4, 2)) if line.dashed else "solid",
        marker=marker,
        markersize=3.5,
    )


def _known(values: Sequence[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _name_heights(axes: Axes, quantity: str, *, percent: bool) -> None:
    if percent:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylabel(quantity)


def _svg(figure: Figure, label: str) -> Markup:
    page = io.StringIO()
    # Ids within one page must differ between its charts and agree between two runs.
    with mpl.rc_context({"svg.hashsalt": label}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(page, format="svg", metadata=metadata, transparent=True)
    text = page.getvalue()
    element = text[text.index("<svg") :].replace(OPTIMUM_COLOUR, "currentColor")
    element = re.sub(
        r'id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|LineCollection|FillBetweenPolyCollection|PolyCollection)_\d+"',
        "",
        element,
    )
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    # All text in it is this module's: axis labels and numbers.
    return Markup(element.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))  # noqa: S704 - see above  # nosec B704
