"""The ladder of models: the gain by memory, by gates and by running aggregates.

The rungs are models that differ only in the recurrent cell and in whether they see the running aggregates:
`willbuy train --cell feed-forward|rnn|gru|lstm` with `--aggregates` or `--no-aggregates`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.config import EVALUATE_RESAMPLES
from training.evaluation.metrics import log_losses
from training.evaluation.prefixes import Prefixes, populations
from training.evaluation.resampling import UNDEFINED, ClusterMean, Estimate, estimate, once, resample

CELLS: Final = ("feed-forward", "rnn", "gru", "lstm")
_MEMORY, _GATES, _AGGREGATES = "memory", "gates", "aggregates"


@dataclass(frozen=True, slots=True)
class Rung:
    """One model of the ladder: its recurrent cell, and whether it sees the running aggregates."""

    cell: str
    aggregates: bool


@dataclass(frozen=True, slots=True)
class Step:
    """The gain by one component: log loss of the model with it minus that of the model without it, in nats.

    Attributes:
        buys: `memory` (a recurrent cell against none), `gates` (a gated cell against a plain one) or `aggregates`.
        having: name of the model with the component.
        lacking: name of the model without it.
        differences: by name of the population; below 0 where the component helps.
    """

    buys: str
    having: str
    lacking: str
    differences: dict[str, Estimate]


def steps_of(
    prefixes: Prefixes,
    predictions: Mapping[str, NDArray[np.float64]],
    rungs: Mapping[str, Rung],
    *,
    resamples: int = EVALUATE_RESAMPLES,
    seed: int = 0,
) -> list[Step]:
    """Return every step between two of these models that differ in one thing, by prefix length and pooled.

    Args:
        prefixes: N prefixes.
        predictions: (N,) probabilities by model.
        rungs: the rung of each model; models that are no rung are left out, and so is the later of two equal rungs.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    first: dict[Rung, str] = {}
    for name, rung in rungs.items():
        first.setdefault(rung, name)
    pairs = list(_pairs(first))
    where = [population for population in populations(prefixes) if population.kind != "slice"]
    losses = {name: log_losses(prefixes.outcome, predictions[name]) for name in first.values()}
    cells = [(pair, population) for pair in pairs for population in where if len(population.rows)]
    statistics = [
        ClusterMean(
            (losses[having] - losses[lacking])[at.rows], prefixes.session[at.rows], prefixes.sessions, at.weight
        )
        for (_, having, lacking), at in cells
    ]
    drawn = resample(statistics, prefixes.sessions, resamples=resamples, seed=seed)
    steps = {pair: Step(*pair, dict.fromkeys((at.name for at in where), UNDEFINED)) for pair in pairs}
    for (pair, population), statistic, values in zip(cells, statistics, drawn, strict=True):
        value = float(once(statistic, prefixes.sessions)["mean"])
        steps[pair].differences[population.name] = estimate(value, values["mean"])
    return list(steps.values())


def _pairs(first: Mapping[Rung, str]) -> Iterator[tuple[str, str, str]]:
    for aggregates in (False, True):
        for buys, lacking, cells in ((_MEMORY, "feed-forward", CELLS[1:]), (_GATES, "rnn", CELLS[2:])):
            for cell in cells:
                pair = Rung(cell, aggregates), Rung(lacking, aggregates)
                if pair[0] in first and pair[1] in first:
                    yield buys, first[pair[0]], first[pair[1]]
    for cell in CELLS:
        pair = Rung(cell, aggregates=True), Rung(cell, aggregates=False)
        if pair[0] in first and pair[1] in first:
            yield _AGGREGATES, first[pair[0]], first[pair[1]]
