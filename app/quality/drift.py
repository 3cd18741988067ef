"""How far the inputs of live sessions are from those of training: the population stability index, feature by feature.

    PSI = sum over bins of (live share - training share) * ln(live share / training share)

(Siddiqi, 2006, "Credit Risk Scorecards"; it is Jeffreys' divergence of the two histograms.) Usual reading: below 0.1 no
shift worth a word, above 0.25 a large one. A share of zero counts as one in ten thousand, else one session could make
the index infinite. Without any shift the index of k bins is about (k - 1) / n, n being independent observations; events
of a session are not, so it is said of `FEWEST_SESSIONS` sessions and more only.
"""

from collections.abc import Mapping, Sequence
from math import log
from typing import Final

from app.schemas.quality import DriftOut, FeatureDriftOut
from model.summary import DataSummary

FEWEST_SESSIONS: Final = 100
_MOST_FEATURES: Final = 20
_SMALLEST_SHARE: Final = 1e-4


def drift_of(counts: Mapping[str, int], summary: DataSummary) -> DriftOut:
    """Return how the inputs that were counted differ from the training sessions'."""
    sessions, events = counts.get("sessions", 0), counts.get("events", 0)
    enough = sessions >= FEWEST_SESSIONS and events > 0
    indices = []
    if enough:
        for number, (name, trained) in enumerate(zip(summary.features, summary.shares, strict=True)):
            live = [counts.get(f"{number}:{place}", 0) for place in range(len(trained))]
            indices.append(FeatureDriftOut(name=name, psi=population_stability_index(live, trained)))
        indices.sort(key=lambda feature: (-feature.psi, feature.name))
    return DriftOut(
        sessions=sessions,
        unseen_name_share=counts.get("unseen", 0) / events if enough else None,
        trained_unseen_name_share=summary.unseen_name_share,
        features=indices[:_MOST_FEATURES],
        max_psi=indices[0].psi if indices else None,
    )


def population_stability_index(live: Sequence[int], trained: Sequence[float]) -> float:
    """Return the index of live counts against training shares, bin by bin."""
    total = sum(live)
    index = 0.0
    for count, share in zip(live, trained, strict=True):
        now, then = max(count / total, _SMALLEST_SHARE), max(share, _SMALLEST_SHARE)
        index += (now - then) * log(now / then)
    return index
