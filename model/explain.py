"""Which inputs moved a session's probability at its last event: occlusion of groups of inputs, through the artifact.

The network gets the last event's features with those of some groups replaced by what they were at the event before:
with all groups replaced, the event before happens once more; with none, this event happens. A group's contribution is
how much the answer changes when the group is added, as a mean over fixed orders of adding the groups (Shapley values by
sampled permutations, Castro et al., 2009; each order also runs backwards). In every order the changes telescope. So
`repeat` and the contributions sum to the whole change, up to float64 rounding, in log-odds and in probability alike.

Before a session's first event there are no features. Then an event of which nothing is known stands for "before".

Shape legend: T events, F features, I categorical indices, R rows, one for each subset of groups that an order visits.
"""

from collections.abc import Callable, Sequence
from itertools import permutations
from math import exp, factorial
from random import Random
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from model.columns import CODE_FIELDS
from model.events import ADD_TO_CART, REMOVE_FROM_CART

_ORDERS: Final = 32
_CART_TYPES: Final = frozenset({ADD_TO_CART, REMOVE_FROM_CART})
# By the beginning of a feature's name, the first that fits.
_GROUPS: Final = (
    (("hour_", "weekday_"), "calendar"),
    (("log_gap", "log_elapsed"), "time"),
    (("log_events", "is_first"), "events"),
    (("log_cart", "cart_"), "cart"),
    (("has_price", "log_price", "price_", "log_quantity"), "price"),
    (("has_category", "log_category", "log_distinct_categories"), "category"),
    (("has_item", "item_", "same_item", "log_item", "log_distinct_items"), "item"),
)
_INDEX_GROUPS: Final = dict(zip(CODE_FIELDS, ("event", "item", "category"), strict=True))


class Contribution(NamedTuple):
    """What one group of inputs changed, in log-odds and in probability.

    The group is `event`, `time`, `events`, `item`, `category`, `price`, `cart`, `calendar`, or `property.` and a name.
    """

    group: str
    log_odds: float
    probability: float


class Explanation(NamedTuple):
    """The change that the last event of a session brought.

    Attributes:
        before: log-odds before the event; before the first one, of an event of which nothing is known.
        after: log-odds after it.
        repeat: what would have changed if the event before had happened once more; 0 at the first event.
        contributions: what the groups changed beyond that, the largest change of the probability first.
    """

    before: float
    after: float
    repeat: Contribution
    contributions: tuple[Contribution, ...]


def group_of(name: str) -> str:
    """Return the group of a feature, or of an index column of the encoder."""
    if name in _INDEX_GROUPS:
        return _INDEX_GROUPS[name]
    if name.startswith("property."):
        return name
    stem, bracket, member = name.partition("[")
    if bracket:
        member = member.removesuffix("]")
        if stem in ("value", "given"):
            return f"property.{member}"
        return "cart" if member in _CART_TYPES else "event"
    return next((group for stems, group in _GROUPS if name.startswith(stems)), "event")


def explain(
    module: Any,  # noqa: ANN401 - the script of a `SessionModel`
    columns: tuple[Tensor, Tensor, Tensor],
    *,
    features: Sequence[str],
    indices: Sequence[str],
) -> Explanation:
    """Return what moved the answer at the last of T events of one session.

    Args:
        module: on the CPU.
        columns: `timestamp_ms` [T], `codes` [T, 3 + C] and `numbers` [T, 2 + N], of at least one event.
        features: names of the features.
        indices: names of the index columns.
    """
    times, codes, numbers = columns
    with torch.inference_mode():
        if len(times) == 1:
            nothing = (torch.zeros_like(codes), torch.full_like(numbers, torch.nan))
            encoded = [_encoded(module, times, *one) for one in (nothing, (codes, numbers))]
            all_features, all_indices = (torch.cat(part) for part in zip(*encoded, strict=True))
            seen = 0
        else:
            all_features, all_indices = _encoded(module, times, codes, numbers)
            seen = len(times) - 1
        inputs = module.inputs(all_features, all_indices)
        hidden = module.initial_state(1)[0]
        output = hidden
        for position in range(seen):
            output, hidden = module.lstm.step(inputs[position : position + 1], hidden)
        is_first = len(times) == 1
        before = None if is_first else float(_log_odds(module, output, inputs[seen - 1 : seen])[0])

        def answers(rows_features: Tensor, rows_indices: Tensor) -> list[float]:
            rows = module.inputs(rows_features, rows_indices)
            of_rows, _ = module.lstm.step(rows, hidden.repeat(len(rows), 1))
            return [float(one) for one in _log_odds(module, of_rows, rows)]

        return _shared(all_features[-2:], all_indices[-2:], [*map(group_of, features)], [*map(group_of, indices)],
                       answers, before)  # fmt: skip


def _encoded(module: Any, times: Tensor, codes: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - as in `explain`
    """Return features [T, F] and indices [T, I] of one session."""
    features, indices = module.encoder.sequence(times.unsqueeze(0), codes.unsqueeze(0), numbers.unsqueeze(0))
    return features[0], indices[0]


def _log_odds(module: Any, output: Tensor, inputs: Tensor) -> Tensor:  # noqa: ANN401 - as in `explain`
    """Return calibrated log-odds, float64 [R]: `SessionModel.calibrated` without the sigmoid."""
    log_odds: Tensor = module.raw_logit(output, inputs).double() / module.temperature.double() + module.bias.double()
    return log_odds


def _shared(
    features: Tensor,
    indices: Tensor,
    of_features: Sequence[str],
    of_indices: Sequence[str],
    answers: Callable[[Tensor, Tensor], list[float]],
    before: float | None,
) -> Explanation:
    """Share the change from the first row of features [2, F] and indices [2, I] to the second among the groups."""
    feature_moved, index_moved = (features[0] != features[1]).tolist(), (indices[0] != indices[1]).tolist()
    moved = dict.fromkeys(group for group, has in zip(of_features, feature_moved, strict=True) if has)
    moved |= dict.fromkeys(group for group, has in zip(of_indices, index_moved, strict=True) if has)
    groups = list(moved)
    orders = _orders(len(groups))
    subsets = list(dict.fromkeys(subset for order in orders for subset in _prefixes(order)))
    chosen = torch.tensor([[bool(subset >> at & 1) for at in range(len(groups))] for subset in subsets])
    place = {group: at for at, group in enumerate(groups)}

    def mixed(rows: Tensor, names: Sequence[str]) -> Tensor:
        # A column whose group has not moved is the same in both rows.
        columns = [place.get(name, -1) for name in names]
        is_new = torch.cat([chosen, torch.zeros(len(subsets), 1, dtype=torch.bool)], 1)[:, columns]
        return torch.where(is_new, rows[1], rows[0])

    log_odds = dict(zip(subsets, answers(mixed(features, of_features), mixed(indices, of_indices)), strict=True))
    none, everything = log_odds[0], log_odds[(1 << len(groups)) - 1]
    start = none if before is None else before
    sums = [[0.0, 0.0] for _ in groups]
    for order in orders:
        subset = 0
        for at in order:
            low, high = log_odds[subset], log_odds[subset := subset | 1 << at]
            sums[at][0] += high - low
            sums[at][1] += probability_of(high) - probability_of(low)
    contributions = [
        Contribution(group, of_odds / len(orders), of_probability / len(orders))
        for group, (of_odds, of_probability) in zip(groups, sums, strict=True)
    ]
    return Explanation(
        before=start,
        after=everything,
        repeat=Contribution("repeat", none - start, probability_of(none) - probability_of(start)),
        contributions=tuple(sorted(contributions, key=lambda one: (-abs(one.probability), one.group))),
    )


def probability_of(log_odds: float) -> float:
    """Return the probability of log-odds."""
    return 1.0 / (1.0 + exp(-log_odds)) if log_odds >= 0 else 1.0 - 1.0 / (1.0 + exp(log_odds))


def _orders(groups: int) -> list[tuple[int, ...]]:
    """Return the orders in which groups are added: all, or some and the same backwards, the same ones always."""
    if factorial(groups) <= _ORDERS:
        return list(permutations(range(groups)))
    chance = Random(groups)  # noqa: S311 - no secret  # nosec B311
    some = [tuple(chance.sample(range(groups), groups)) for _ in range(_ORDERS // 2)]
    return [*some, *(order[::-1] for order in some)]


def _prefixes(order: Sequence[int]) -> list[int]:
    """Return the subsets, as bits, that adding groups in an order visits."""
    subsets = [0]
    for at in order:
        subsets.append(subsets[-1] | 1 << at)
    return subsets
