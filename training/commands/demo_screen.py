"""The screen of `willbuy demo`."""

from dataclasses import dataclass, field
from typing import Final

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from model.events import Event

_ROWS: Final = 14
_SPARKS: Final = "▁▂▃▄▅▆▇█"
_SPARK_EVENTS: Final = 16
_LIKELY: Final = 0.5
_POSSIBLE: Final = 0.2


@dataclass(slots=True)
class Shopper:
    """A session on screen."""

    session_id: str
    last_event: Event
    probabilities: list[float] = field(default_factory=list)
    outcome: str = ""
    seen_s: float = 0.0


@dataclass(slots=True)
class Shop:
    """The state that the screen shows."""

    shoppers: dict[str, Shopper] = field(default_factory=dict)
    events: int = 0
    latency_ms: float = 0.0
    ended: int = 0
    bought: int = 0
    score_of_buyers: float = 0.0
    score_of_others: float = 0.0
    problem: str = ""


def screen(shop: Shop) -> Panel:
    """Return the current sessions, likeliest buyers first, and totals so far."""
    table = Table(expand=True, box=None, pad_edge=False)
    for heading, justify in (("session", "left"), ("events", "right"), ("last event", "left")):
        table.add_column(heading, justify=justify, no_wrap=True)  # type: ignore[arg-type]  # rich's literals
    table.add_column("probability of a purchase", no_wrap=True, min_width=34)
    table.add_column("", no_wrap=True)
    ranked = sorted(
        (shopper for shopper in shop.shoppers.values() if shopper.probabilities),
        key=lambda shopper: -shopper.probabilities[-1],
    )
    for shopper in ranked[:_ROWS]:
        table.add_row(
            shopper.session_id,
            str(len(shopper.probabilities)),
            shopper.last_event.event_name,
            _probability(shopper.probabilities),
            Text(shopper.outcome, style="bold green" if shopper.outcome == "bought" else "dim"),
        )
    others = shop.ended - shop.bought
    summary = f"{shop.events:,} events, {shop.latency_ms:.1f} ms each"
    summary += f"  ·  {shop.ended:,} sessions ended, {shop.bought:,} bought"
    if shop.bought and others:
        summary += (
            f"  ·  mean last score: buyers {shop.score_of_buyers / shop.bought:.2f}, "
            f"others {shop.score_of_others / others:.2f}"
        )
    problem = (
        [Text(f"The service does not answer; trying again. {shop.problem}", style="yellow")] if shop.problem else []
    )
    return Panel(Group(table, Text(summary, style="dim"), *problem), title="willbuy: who is about to buy?")


def _probability(history: list[float]) -> Text:
    last = history[-1]
    style = "bold green" if last >= _LIKELY else "yellow" if last >= _POSSIBLE else "dim"
    sparks = "".join(_SPARKS[min(len(_SPARKS) - 1, int(value * len(_SPARKS)))] for value in history[-_SPARK_EVENTS:])
    return Text.assemble((f"{last:6.1%} ", style), (f"{'█' * round(last * 12):<12} ", style), (sparks, "cyan"))
