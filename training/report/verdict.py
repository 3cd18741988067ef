"""The verdict of a report in sentences: how good the model is, and which thresholds to use; the warnings follow it."""

from collections.abc import Iterator
from typing import Final

from training.baselines.suite import BASE_RATE, LIGHTGBM
from training.report.content import Report, interval, metric, number, percent

# An offer reaches a visitor only while the session lasts, so the share of buyers found by this event matters as well.
_EARLY_EVENTS: Final = 5


def verdict(report: Report) -> list[str]:
    """Return the sentences, the most important first; each stands for itself."""
    sentences = [*_quality(report), *_alarm(report), *_contacts(report)]
    return sentences if report.warnings else [*sentences, "No reason to doubt these figures was found."]


def _quality(report: Report) -> Iterator[str]:
    subject = report.subject
    auc = report.pooled.scores[subject]["auc"]
    if auc.value is not None:
        yield f"How good: AUC {number(auc.value, 3)}{_within(interval(auc, 3))} over all prefixes; 0.5 is guessing."
    for other in (BASE_RATE, LIGHTGBM):
        if other not in report.differences or other == subject:
            continue
        found = report.differences[other]
        said = {
            "better": f"{subject} predicts better than {_named(other)}",
            "worse": f"{subject} predicts worse than {_named(other)}",
            "same": f"{subject} and {_named(other)} cannot be told apart",
        }[metric("log_loss").verdict(found)]
        difference = f"{number(found.value, 4, sign=True)} nats{_within(interval(found, 4, sign=True))}"
        yield f"{said}: difference of the log losses {difference}."
    if LIGHTGBM not in report.names:
        yield "LightGBM was not fitted, so there is no comparison with it."


def _alarm(report: Report) -> Iterator[str]:
    found = report.earliness.get("precision", {}).get(report.subject)
    if found is None:
        return
    wanted = percent(found.target, 0)
    if found.threshold is None:
        yield f"No threshold makes {wanted} of the alarmed sessions buy."
        return
    recall = dict(zip(found.lengths, found.recall, strict=True))
    early = "" if _EARLY_EVENTS not in recall else f", {percent(recall[_EARLY_EVENTS].value)} by event {_EARLY_EVENTS}"
    yield (
        f"Threshold {number(found.threshold, 3)}: {wanted} of the alarmed sessions buy. It alarms "
        f"{percent(found.alarm_share.value)} of the sessions and finds {percent(recall[None].value)} of the "
        f"buyers{early}."
    )


def _contacts(report: Report) -> Iterator[str]:
    curve, offer = report.profit.get(report.subject), report.assumptions.offer
    if curve is None:
        return
    more = percent(offer.uplift, 0)
    assumed = f"an assumed margin of {offer.margin:g}, {offer.cost:g} a contact and {more} more purchases"
    if curve.best_threshold is None:
        yield f"With {assumed}, it pays most to contact nobody."
        return
    yield (
        f"With {assumed}, it pays most to contact the {percent(curve.best_share, 0)} of the "
        f"sessions that reach {number(curve.best_threshold, 3)}: {number(curve.best.value, 1)} for 1,000 sessions."
    )


def _named(other: str) -> str:
    return "the base rate" if other == BASE_RATE else other


def _within(shown: str) -> str:
    return f" ({shown})" if shown else ""
