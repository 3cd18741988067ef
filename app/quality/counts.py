"""From closed sessions to integer counts: additive in any order, on any replica, in a bounded number of fields.

Fields of the answers' counts, of one model in one time bucket (group is a number of `GROUPS`):

    s<group>             sessions with an answer in the group; `s` alone: sessions with any
    b<group>             the buyers among them; `b` alone likewise
    l<group>             sum of the log losses, in billionths of a nat
    n<group>:<bin>:<o>   answers in a score bin with outcome o, 1 for a purchase
    p<group>:<bin>       sum of those answers' probabilities, in billionths

Of all models together there are only `s` and `b`, and the revenue by currency, which is empty where it is not known:

    v:<currency>         purchases with a value
    r:<currency>         sum of their values, in hundredths

Of an hour there are these too, and

    e                    events
    f                    sessions whose first answer is known
    p                    sum of the probabilities of these first answers, in billionths

Fields of the inputs' counts: `sessions`, `events`, `unseen` (names that the vocabulary lacks), and `<feature>:<bin>`,
both numbered as in the artifact's data summary.

Score bins are equally wide on the logit, 0.1 each from -10 to 10. Purchases are rare, so bins of equal width on the
probability would put most answers into one bin. Answers of one bin are ties in the AUC. Their mean, the log loss and
the calibration error of the bins are exact.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import log
from typing import Final, NamedTuple

from app.schemas.board import RevenueOut
from app.store.outcomes import ClosedSession
from model.summary import InputCounts

# First and last prefix length of each group; None: no end.
GROUPS: Final = ((1, 1), (2, 2), (3, 4), (5, 7), (8, 12), (13, 20), (21, None))
BINS: Final = 200
BILLION: Final = 10**9
HUNDRED: Final = 100
_LOGIT_BOUND: Final = 10.0
# The model computes in float32, where nothing lies between 1 - 6e-8 and 1.
_SMALLEST: Final = 1e-7


class Cell(NamedTuple):
    """A score bin of a group."""

    group: int
    bin: int


def group_of(prefix_length: int) -> int:
    """Return the group of an answer, by its number of events."""
    return next(number for number, (_, last) in enumerate(GROUPS) if last is None or prefix_length <= last)


def bin_of(probability: float) -> int:
    """Return the score bin, 0 to 199, of a probability."""
    clipped = min(max(probability, _SMALLEST), 1.0 - _SMALLEST)
    position = (log(clipped) - log(1.0 - clipped) + _LOGIT_BOUND) / (2 * _LOGIT_BOUND)
    return min(max(int(position * BINS), 0), BINS - 1)


def first_model(session: ClosedSession) -> str | None:
    """Return the model that answered the session's first event; None where it is not known.

    The session counts for this model alone. Sessions that another model began reach a new model only while they are
    still open, and among those that have ended by then are nearly all buyers.
    """
    return session.entries[0].model if session.entries else None


def answers_of(session: ClosedSession, model: str) -> list[tuple[int, float]]:
    """Return the known answers of a model, each as prefix length and probability."""
    return [
        (prefix_length, entry.probability)
        for prefix_length, entry in enumerate(session.entries, start=1)
        if entry.probability is not None and entry.model == model
    ]


def count_answers(answers: Sequence[tuple[int, float]], *, bought: bool) -> Counter[str]:
    """Return the counts of one session's answers by one model.

    Args:
        answers: prefix length and probability of each; at least one.
        bought: whether the session bought.
    """
    counts: Counter[str] = Counter({"s": 1, "b": int(bought)})
    for group in {group_of(prefix_length) for prefix_length, _ in answers}:
        counts[f"s{group}"] += 1
        counts[f"b{group}"] += bought
    for prefix_length, probability in answers:
        group, score = group_of(prefix_length), bin_of(probability)
        likelihood = probability if bought else 1.0 - probability
        counts[f"l{group}"] += round(-log(max(likelihood, _SMALLEST)) * BILLION)
        counts[f"n{group}:{score}:{int(bought)}"] += 1
        counts[f"p{group}:{score}"] += round(probability * BILLION)
    return counts


def count_outcome(session: ClosedSession) -> Counter[str]:
    """Return the counts of one session's outcome."""
    counts = Counter({"s": 1, "b": int(session.bought)})
    if session.bought and session.value is not None:
        currency = session.currency or ""
        counts[f"v:{currency}"] = 1
        counts[f"r:{currency}"] = round(session.value * HUNDRED)
    return counts


def count_hour(session: ClosedSession) -> Counter[str]:
    """Return what one session adds to its hour.

    The prediction is that after the first event: one a session, so that the sum of a calibrated model's is the number
    of buyers. Later answers weigh long sessions more, and those buy more often.
    """
    counts = count_outcome(session)
    counts["e"] = len(session.entries)
    first = session.entries[0].probability if session.entries else None
    if first is not None:
        counts["f"], counts["p"] = 1, round(first * BILLION)
    return counts


def revenue_of(counts: Mapping[str, int]) -> list[RevenueOut]:
    """Return the revenue of counted outcomes by currency, that of most purchases first."""
    found = [
        RevenueOut(currency=name[2:] or None, value=counts.get(f"r:{name[2:]}", 0) / HUNDRED, purchases=purchases)
        for name, purchases in counts.items()
        if name.startswith("v:")
    ]
    return sorted(found, key=lambda one: (-one.purchases, one.currency or ""))


def count_inputs(inputs: InputCounts, *, sessions: int) -> Counter[str]:
    """Return the counts of the inputs of `sessions` sessions."""
    counts = Counter({"sessions": sessions, "events": inputs.events, "unseen": inputs.unseen_names})
    for feature, bins in enumerate(inputs.bins):
        for number, events in enumerate(bins):
            if events:
                counts[f"{feature}:{number}"] = events
    return counts


def cells_of(counts: Mapping[str, int]) -> dict[Cell, tuple[int, int, int]]:
    """Return by score bin: answers without and with a purchase, and the sum of their probabilities in billionths."""
    cells: dict[Cell, list[int]] = {}
    for name, number in counts.items():
        group, _, rest = name[1:].partition(":")
        if not rest:
            continue
        score, _, outcome = rest.partition(":")
        place = 2 if name[0] == "p" else int(outcome)
        cells.setdefault(Cell(int(group), int(score)), [0, 0, 0])[place] += number
    return {cell: (none, purchase, summed) for cell, (none, purchase, summed) in cells.items()}
