"""Coverage of a rule's two intervals under daily looks, on synthetic shops whose treatment effect is known.

    python -m benchmarks.experiment_coverage --out result.json            # about two minutes on one core

A rule fires at the first `add_to_cart` of a session; treatment raises the odds of a purchase after each later event
(`training.synthetic.treatment`). For each shop, a large number of sessions of either group is drawn from the process.
An experiment takes its sessions from them at random, day by day, and is looked at after each day, as the page does it
(`app.interventions.statistics`). The true difference is that of the drawn sessions, of which an experiment is a random
sample; the exact difference of the process stands beside it.

Columns: share of the experiments whose interval held the true difference at the last day alone (one look), and at
every day. A right interval has at least 95 %. "Decided" is the share of the experiments with a verdict other than "not
yet known" at some day, "wrong" of these with a verdict against the true difference, and the median of their days.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from app.interventions.statistics import Finding, GroupCounts, Interval, compare
from training.commands.console import errors_for_people, print_line
from training.synthetic import PRESETS
from training.synthetic.process import ADD, REMOVE, Process
from training.synthetic.sample import Traces
from training.synthetic.treatment import Treatment

DAYS: Final = 28
_CHUNK_SESSIONS: Final = 50_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """An experiment: the shop, the treatment's strength, the share held out, and decided sessions a day."""

    shape: str
    log_odds: float
    held_out: float
    sessions_a_day: int


SCENARIOS: Final = (
    Scenario("default", 0.0, 0.5, 400),
    Scenario("default", 0.0, 0.1, 400),
    Scenario("treated", PRESETS["treated"].treatment, 0.5, 400),
    Scenario("treated", PRESETS["treated"].treatment, 0.1, 400),
    Scenario("low-base-rate", 0.0, 0.5, 400),
    Scenario("low-base-rate", 0.0, 0.1, 1_000),
    Scenario("low-base-rate", 1.0, 0.5, 400),
    Scenario("low-base-rate", 1.0, 0.1, 1_000),
)


@dataclass(frozen=True, slots=True)
class Population:
    """The decided sessions of one group: (N,) revenue of each in the shop's currency; 0: no purchase."""

    revenue: NDArray[np.float64]

    @property
    def conversion(self) -> float:
        """Share of buyers."""
        return float((self.revenue > 0.0).mean())


@dataclass(frozen=True, slots=True)
class Coverage:
    """The result of a scenario; shares of the experiments, differences in percentage points.

    Attributes:
        scenario: its settings.
        exact: difference of the conversions in the process.
        difference: the same among the drawn sessions, of which experiments are samples: the truth here.
        fixed_once: Newcombe's interval, at the last day alone.
        fixed_daily: the same interval, at every day.
        sequence_daily: the confidence sequence of the conversions, at every day.
        revenue_daily: the confidence sequence of the revenue a session, at every day.
        decided: experiments with a verdict.
        wrong: of all experiments, those with a verdict against the truth.
        days: median days until the verdict, of those that have one.
    """

    scenario: Scenario
    exact: float
    difference: float
    fixed_once: float
    fixed_daily: float
    sequence_daily: float
    revenue_daily: float
    decided: float
    wrong: float
    days: float | None


def revenue_of(process: Process, traces: Traces) -> NDArray[np.float64]:
    """Return (S,) the value of each bought cart; 0 without a purchase."""
    price = np.where(traces.item >= 0, process.catalogue.price[traces.item], 0.0)
    cart = np.sum(price * (traces.name == ADD), axis=1) - np.sum(price * (traces.name == REMOVE), axis=1)
    # A cart that was bought has items; rounding must not make its value zero.
    return np.where(traces.purchased, np.maximum(cart, 0.01), 0.0)


def populate(process: Process, treatment: Treatment, sessions: int, seed: int, *, treated: bool) -> Population:
    """Return the decided ones of `sessions` drawn sessions."""
    drawn = []
    for chunk, first in enumerate(range(0, sessions, _CHUNK_SESSIONS)):
        rng = np.random.default_rng([seed, chunk, treated])
        traces = treatment.draw(process, min(_CHUNK_SESSIONS, sessions - first), rng, treated=treated)
        drawn.append(revenue_of(process, traces)[treatment.fired(traces)])
    return Population(np.concatenate(drawn))


def daily_sums(population: Population, sessions: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (days, 4): running sessions, buyers, revenue and squares, with so many new sessions each day."""
    revenue = population.revenue[rng.integers(len(population.revenue), size=int(sessions.sum()))]
    running = np.stack([np.ones_like(revenue), revenue > 0.0, revenue, revenue * revenue]).cumsum(axis=1)
    ends = sessions.cumsum()
    sums: NDArray[np.float64] = np.where(ends > 0, running[:, np.maximum(ends, 1) - 1], 0.0).T
    return sums


def measure(scenario: Scenario, experiments: int, sessions: int, seed: int) -> Coverage:
    """Simulate a scenario's experiments."""
    process, treatment = Process.of(PRESETS[scenario.shape]), Treatment(scenario.log_odds)
    treated, held = (
        populate(process, treatment, sessions, seed, treated=treated and scenario.log_odds != 0.0)
        for treated in (True, False)
    )
    truth = treated.conversion - held.conversion
    revenue_truth = float(treated.revenue.mean() - held.revenue.mean())
    rng = np.random.default_rng([seed, 1_000_000])
    misses = {"fixed once": 0, "fixed": 0, "sequence": 0, "revenue": 0}
    wrong, days = 0, []
    for _ in range(experiments):
        arrived = rng.poisson(scenario.sessions_a_day, DAYS)
        control = rng.binomial(arrived, scenario.held_out)
        sums = [daily_sums(treated, arrived - control, rng), daily_sums(held, control, rng)]
        missed, decided = set[str](), None
        for day in range(DAYS):
            groups = [
                GroupCounts(int(one[0]), int(one[1]), float(one[2]), float(one[3])) for one in (s[day] for s in sums)
            ]
            found = compare(*groups, control_share=scenario.held_out, sessions_a_day=float(scenario.sessions_a_day))
            is_outside = {
                "fixed": _misses(found.fixed, truth),
                "sequence": _misses(found.sequence, truth),
                "revenue": _misses(found.revenue_sequence, revenue_truth),
            }
            missed.update(name for name, is_missed in is_outside.items() if is_missed)
            if day == DAYS - 1 and is_outside["fixed"]:
                missed.add("fixed once")
            if decided is None and found.verdict.finding in {Finding.MORE, Finding.LESS}:
                decided = day + 1
                wrong += truth == 0.0 or (truth > 0.0) != (found.verdict.finding is Finding.MORE)
        for name in missed:
            misses[name] += 1
        if decided is not None:
            days.append(decided)
    held_by = {name: 1.0 - count / experiments for name, count in misses.items()}
    return Coverage(
        scenario=scenario,
        exact=100.0 * treatment.effect(process).difference,
        difference=100.0 * truth,
        fixed_once=held_by["fixed once"],
        fixed_daily=held_by["fixed"],
        sequence_daily=held_by["sequence"],
        revenue_daily=held_by["revenue"],
        decided=len(days) / experiments,
        wrong=wrong / experiments,
        days=median(days) if days else None,
    )


def _misses(interval: Interval | None, truth: float) -> bool:
    return interval is not None and not interval.low <= truth <= interval.high


def shown(results: list[Coverage]) -> Table:
    """Return the results as a table."""
    table = Table(title="share of experiments whose interval holds the true difference", title_justify="left")
    table.add_column("shop")
    for heading in (
        "held out", "a day", "true difference, points", "Newcombe, one look", "Newcombe, daily", "sequence, daily",
        "revenue sequence, daily", "decided", "wrong", "days",
    ):  # fmt: skip
        table.add_column(heading, justify="right")
    for one in results:
        table.add_row(
            one.scenario.shape,
            f"{one.scenario.held_out:.0%}",
            f"{one.scenario.sessions_a_day:,}",
            f"{one.difference:+.2f}",
            *(f"{share:.1%}" for share in (one.fixed_once, one.fixed_daily, one.sequence_daily, one.revenue_daily)),
            f"{one.decided:.1%}",
            f"{one.wrong:.1%}",
            "" if one.days is None else f"{one.days:g}",
        )
    return table


@errors_for_people(ValueError, OSError)
def main(
    out: Annotated[Path, typer.Option(help="JSON file for the result.")],
    experiments: Annotated[int, typer.Option(min=10, help="Experiments of each scenario.")] = 1_000,
    sessions: Annotated[int, typer.Option(min=1_000, help="Sessions to draw of each group of each shop.")] = 400_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the visitors and the assignment.")] = 1,
) -> None:
    """Simulate experiments with a known effect and print the coverage of their intervals."""
    results: list[Coverage] = []
    for scenario in SCENARIOS:
        print_line(f"{scenario.shape}, {scenario.log_odds:g}, {scenario.held_out:.0%} held out", style="bold")
        results.append(measure(scenario, experiments, sessions, seed))
    out.write_text(json.dumps([asdict(one) for one in results], indent=1), encoding="utf-8")
    Console(width=180).print(shown(results))


if __name__ == "__main__":
    typer.run(main)
