"""Event names that tell what comes: those that only buyers have, only others, or only a session's last event.

A page that follows the purchase, or a mark that a server writes when a session ends, is an event like others in a log,
and does not come in time in the service.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from training.config import LeakSettings
from training.data.findings import DOUBTFUL, Finding
from training.data.leak_statistics import wilson

# With a page that so large a share of the buyers has, and no other visitor, a handful of sessions is enough.
_MOST_BUYERS = 0.5


@dataclass(frozen=True, slots=True)
class SuspectName:
    """An event name, the reason, and whether the reason is enough to refuse it."""

    name: str
    reason: str
    is_refused: bool

    def warning(self) -> Finding:
        """Return the warning about a name that is not refused."""
        return Finding(f"the event {self.name!r} {self.reason}", DOUBTFUL)


def suspect_names(events: pl.DataFrame, settings: LeakSettings) -> list[SuspectName]:
    """Return the suspicious names, each once.

    Args:
        events: `session`, `event_name`, `outcome`, `is_last` of whole sessions.
        settings: bounds.
    """
    found: dict[str, SuspectName] = {}
    for suspect in (*_by_outcome(events, settings), *_by_position(events, settings)):
        known = found.get(suspect.name)
        if known is None or (suspect.is_refused and not known.is_refused):
            found[suspect.name] = suspect
    return list(found.values())


def _by_outcome(events: pl.DataFrame, settings: LeakSettings) -> Iterator[SuspectName]:
    sessions = events.group_by("session").agg(pl.col("outcome").first())
    total, buyers = sessions.height, int(sessions["outcome"].sum())
    if not 0 < buyers < total:
        return
    pages = events.group_by("event_name").agg(
        sessions=pl.col("session").n_unique(), bought=pl.col("session").filter("outcome").n_unique()
    )
    odds = buyers / (total - buyers)
    bound = settings.buyers_share / max(1 - settings.buyers_share, 1e-9)
    chance = settings.significance / pages.height
    for name, count, bought in pages.sort("event_name").iter_rows():
        low, high = wilson(bought, count)
        all_bought = bought == count and (buyers / total) ** count < chance
        if low >= settings.buyers_share or (all_bought and bought >= _MOST_BUYERS * buyers):
            reason = f"is seen by buyers alone ({bought} of {count} sessions bought): does it follow the purchase?"
            yield SuspectName(name, reason, is_refused=True)
        elif all_bought:
            yield SuspectName(name, f"is seen by buyers alone ({bought} of {count} sessions bought)", is_refused=False)
        none_bought = bought == 0 and (1 - buyers / total) ** count < chance
        if none_bought:
            reason = f"is never seen by buyers (0 of {count} sessions bought, {buyers / total:.1%} of all did)"
            is_refused = high / (1 - high) <= odds / bound
            if is_refused:
                reason += ": is it written when a session ends without a purchase?"
            yield SuspectName(name, reason, is_refused=is_refused)


def _by_position(events: pl.DataFrame, settings: LeakSettings) -> Iterator[SuspectName]:
    # Without buyers: their sessions are cut before the purchase. Without sessions of one event, which is always last.
    others = events.filter(~pl.col("outcome") & (pl.len().over("session") > 1))
    if not others.height:
        return
    pages = others.group_by("event_name").agg(events=pl.len(), last=pl.col("is_last").sum())
    share = others["is_last"].mean()
    chance = settings.significance / pages.height
    for name, count, last in pages.sort("event_name").iter_rows():
        is_significant = isinstance(share, float) and last == count and share**count < chance
        if wilson(last, count)[0] >= settings.buyers_share:
            reason = f"is only ever a session's last event ({last} of {count}): is it written when a session ends?"
            yield SuspectName(name, reason, is_refused=True)
        elif is_significant:
            yield SuspectName(name, f"is only ever a session's last event ({last} of {count})", is_refused=False)
