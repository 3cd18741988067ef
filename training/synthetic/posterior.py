"""The exact posterior: P(purchase | first n events) of a synthetic shop, by Bayes' rule.

Write o_n for the observations of event n in the log (name, gap, item) and g_n for "the session continued after n".
The filter over the hidden intent is the forward algorithm (Rabiner 1989, doi:10.1109/5.18626, section III.A), with
the observation that the session continues as one more factor:

    alpha_1(z) ~ start(z | properties) p(o_1 | z)
    alpha_n(z) ~ p(o_n | z, context) sum_y alpha_{n-1}(y) (1 - buys - leaves)(y, x_{n-1}) transition(y, z)

and the probability of a purchase is a backward recursion from the largest number of events (N = max_events):

    V_N(z, x) = buys(z, x)
    V_n(z, x) = buys(z, x) + (1 - buys - leaves)(z, x) sum_w transition(z, w) sum_e emission(w, x, e) V_{n+1}(w, x')

so that P(purchase | prefix n) = sum_z alpha_n(z) V_n(z, x_n), alpha normalised. Gaps are whole milliseconds, and
their factor is the probability of that whole number, a difference of two normal distribution functions, not a density.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from training.synthetic.process import (
    CAMPAIGN_SHARE,
    DEVICE_SHARE,
    MAX_GAP_MS,
    VIEW_ITEM,
    VISITS_SHARE,
    Process,
    Table,
)
from training.synthetic.sample import DAY_MS, Index, Traces, ViewedItems

Factor = Literal["properties", "name", "gap", "item", "going on"]
FACTORS: Final[tuple[Factor, ...]] = ("properties", "name", "gap", "item", "going on")

_TINY: Final = 1e-300  # a factor below it would make every intent impossible through underflow alone


@dataclass(frozen=True, slots=True)
class Phases:
    """Parts of a session in which purchase and exit have other probabilities, as after a treatment.

    Attributes:
        of_event: (S, N) the phase of each event.
        value: (phases, max_events, K, X) the probability of a purchase after an event of each phase.
        goes_on: (phases, K, X) the probability that another event follows one of each phase.
    """

    of_event: Index
    value: NDArray[np.float64]
    goes_on: NDArray[np.float64]


def posterior(
    process: Process, traces: Traces, *, ignore: Collection[Factor] = (), phases: Phases | None = None
) -> Table:
    """Return (S, N) probabilities of a purchase after each event; NaN after a session's end.

    Args:
        process: the process that the sessions were drawn from.
        traces: the sessions.
        ignore: observations that the filter leaves out, to measure the value of each. With any, the result is no
            longer the posterior.
        phases: of the sessions; None: all of a session follows the process.
    """
    if phases is None:
        goes_on = 1.0 - process.buys - process.leaves
        phases = Phases(np.zeros(traces.name.shape, np.int64), purchase_values(process)[None], goes_on[None])
    launched = process.catalogue.launched(traces.start_ms / (process.shape.days * DAY_MS))
    viewed = ViewedItems(*traces.name.shape)
    probability = np.full(traces.name.shape, np.nan)
    belief = process.start[traces.device, traces.campaign, traces.visits]
    if "properties" in ignore:
        average = np.einsum("d,c,v,dcvk->k", DEVICE_SHARE, CAMPAIGN_SHARE, VISITS_SHARE, process.start)
        belief = np.broadcast_to(average, belief.shape).copy()
    context = np.full(len(belief), process.first_context)

    for n in range(traces.name.shape[1]):
        rows = np.flatnonzero(traces.length > n)
        before, name, item = context[rows], traces.name[rows, n], traces.item[rows, n]
        if n > 0:
            stays = phases.goes_on[phases.of_event[rows, n - 1], :, before]
            stayed = belief[rows] if "going on" in ignore else belief[rows] * stays
            belief[rows] = stayed @ process.transition
        log_factor = np.zeros((len(rows), belief.shape[1]))
        if "name" not in ignore:
            log_factor += _log(process.emission[:, before, name].T)
        if "gap" not in ignore and n > 0:
            log_factor += _log(gap_probability(process, traces.gap_ms[rows, n], before))
        shows = name == VIEW_ITEM
        if "item" not in ignore:
            chance = _item_probability(process, rows[shows], item[shows], launched[rows[shows]], viewed)
            log_factor[shows] += _log(chance)
        viewed.add(rows[shows], item[shows])

        log_belief = _log(belief[rows]) + log_factor
        weight = np.exp(log_belief - log_belief.max(axis=1, keepdims=True))
        belief[rows] = weight / weight.sum(axis=1, keepdims=True)
        context[rows] = process.next_context[before, name]
        value = phases.value[phases.of_event[rows, n], n, :, context[rows]]
        probability[rows, n] = np.sum(belief[rows] * value, axis=1)
    return probability


def purchase_values(process: Process) -> NDArray[np.float64]:
    """Return (max_events, K, X): V_n(z, x) of the module's docstring, n counted from 0."""
    goes_on = 1.0 - process.buys - process.leaves
    value = np.empty((process.shape.max_events, *process.buys.shape))
    value[-1] = process.buys
    for n in range(process.shape.max_events - 2, -1, -1):
        # (K, X): of being in intent w with the next name still to be drawn in context x
        ahead = np.einsum("wxe,wxe->wx", process.emission, value[n + 1][:, process.next_context])
        value[n] = process.buys + goes_on * (process.transition @ ahead)
    return value


def gap_probability(process: Process, gap_ms: Index, context: Index) -> Table:
    """Return (rows, K): the probability of exactly this gap after this context, for each intent.

    The upper bound takes all that would be longer.
    """
    mean = process.gap_mean[:, context].T
    # A gap of 1 ms reaches down to zero, whose logarithm is minus infinity: the whole lower tail, as it should be.
    with np.errstate(divide="ignore"):
        low = (np.log(gap_ms - 1.0)[:, None] - mean) / process.gap_deviation
    high = (np.log(gap_ms * 1.0)[:, None] - mean) / process.gap_deviation
    high = np.where(gap_ms[:, None] >= MAX_GAP_MS, np.inf, high)
    # In the upper tail both are close to one: take the difference on the other side, where digits are left.
    mirrored = low > 0.0
    low, high = np.where(mirrored, -high, low), np.where(mirrored, -low, high)
    return _normal_cdf(high) - _normal_cdf(low)


def _item_probability(process: Process, rows: Index, item: Index, launched: Index, viewed: ViewedItems) -> Table:
    in_tier = process.catalogue.probability_in_tier(item, launched)
    fresh = process.tier[:, process.catalogue.tier[item]].T * in_tier[:, None]
    count = viewed.count[rows]
    chance_again = np.where(viewed.holds(rows, item), 1.0 / np.maximum(count, 1), 0.0)[:, None]
    revisit = np.where((count > 0)[:, None], process.revisit, 0.0)
    mixture: Table = revisit * chance_again + (1.0 - revisit) * fresh
    return mixture


def _normal_cdf(value: Table) -> Table:
    cdf: Table = torch.special.ndtr(torch.from_numpy(value)).numpy()
    return cdf


def _log(probability: Table) -> Table:
    logarithm: Table = np.log(np.maximum(probability, _TINY))
    return logarithm
