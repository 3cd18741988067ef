"""Charts of the report as inline SVG: no script, no other file, and the page's own text colour in light and dark.

Every function returns one `<svg>` element that is safe to place into a page as it is. Legends are the page's, so no
name that a caller chose is ever laid out by matplotlib.
"""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.checkpoint import Epoch
from training.metrics import ReliabilityPoint

PALETTE: Final = ("#2b6cd9", "#dd7a27", "#8b93a1", "#1f9e83", "#b257cc", "#c4a114")
"""Colours of the models, in their order; told apart also by most who see fewer colours."""

OPTIMUM_COLOUR: Final = "#000001"
"""Stands for the page's text colour in every chart, also in that of the best possible answer."""

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


def colour(position: int) -> str:
    """Return the colour of the model at this position."""
    return PALETTE[position % len(PALETTE)]


def lines_by_prefix_length(
    lengths: Sequence[int],
    models: Sequence[Sequence[float | None]],
    optimum: Sequence[float | None] | None,
    *,
    metric: str,
) -> Markup:
    """Draw a metric over the prefix length, one line a model; what is undefined is left out."""
    with mpl.rc_context(_STYLE):
        figure, axes = _figure()
        # Places rather than values: lengths are spaced for reading, and the short ones matter most.
        places = range(len(lengths))
        if optimum is not None:
            _line(axes, places, optimum, OPTIMUM_COLOUR, dashed=True)
        for position in reversed(range(len(models))):
            _line(axes, places, models[position], colour(position), dashed=False)
        axes.set_xticks(list(places), [str(length) for length in lengths])
        axes.set_xlabel("events so far")
        axes.set_ylabel(metric)
        return _svg(figure, f"{metric} by number of events so far")


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
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("share that bought")
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
        axes.set_xlabel("predicted probability")
        axes.set_ylabel("% of the group's prefixes")
        return _svg(figure, "Spread of predicted probabilities by outcome")


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(visible=True)
    axes.set_axisbelow(True)
    return figure, axes


def _line(axes: Axes, places: range, values: Sequence[float | None], ink: str, *, dashed: bool) -> None:
    known = [float("nan") if value is None else value for value in values]
    style = (0, (4, 2)) if dashed else "solid"
    axes.plot(places, known, color=ink, linewidth=1.3 if dashed else 1.8, linestyle=style, marker="o", markersize=3.5)


def _svg(figure: Figure, label: str) -> Markup:
    page = io.StringIO()
    # Ids within one page must differ between its charts and agree between two runs.
    with mpl.rc_context({"svg.hashsalt": label}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(page, format="svg", metadata=metadata, transparent=True)
    text = page.getvalue()
    element = text[text.index("<svg") :].replace(OPTIMUM_COLOUR, "currentColor")
    element = re.sub(
        r'id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|LineCollection)_\d+"', "", element
    )
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", element, count=1)
    element = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", element, count=1)
    # All text in it is this module's: axis labels and numbers.
    return Markup(element.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))  # noqa: S704 - see above
