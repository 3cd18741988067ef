"""Checks of one answer: pure functions that return the fault, or None."""

from collections.abc import Mapping, Sequence
from typing import Any


def fault_of_fold(answer: Mapping[str, Any], is_purchase: bool, positions: Sequence[int], length: int) -> str | None:
    """Return the fault in an answer's position and number of events.

    Args:
        answer: body of the acknowledgement.
        is_purchase: whether the event closes its session.
        positions: positions of the event in the history, from 1.
        length: length of the history. A purchase and later events are not folded, so no event follows in the history.
    """
    if answer["folded"]:
        if is_purchase or answer["outcome"] != "open":
            return "folded a purchase, or into a closed session"
        return None if answer["events"] in positions else f"folded at {positions}"
    if answer["outcome"] == "purchase" and answer["events"] == length:
        return None
    return f"not folded, though the session was open, or went on to {length} events"


def fault_of_probability(
    answer: Mapping[str, Any], length: int, scores: Mapping[str, Sequence[float]], tolerance: float
) -> str | None:
    """Return the fault in an answer's probability.

    Args:
        answer: body of the acknowledgement.
        length: length of the history.
        scores: by model, the offline probability after each event of the history.
        tolerance: largest difference.
    """
    if answer["model"] not in scores:
        return "of no model of this run"
    if answer["outcome"] != "open":
        return None if answer["probability"] is None else "a probability though the outcome is known"
    if answer["events"] == 0:
        return None if answer["probability"] is None else "a probability of nothing"
    if answer["events"] > length:
        return f"of more than the {length} events that there are"
    expected = scores[answer["model"]][answer["events"] - 1]
    if answer["probability"] is not None and abs(answer["probability"] - expected) <= tolerance:
        return None
    return f"offline {expected:.6f}"
