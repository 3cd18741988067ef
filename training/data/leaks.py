"""The leak check: inputs that contain information from after their event are found on training sessions and refused.

A log may write a column after the fact: a copy of the outcome, the time spent on a page, the length of the session. The
check measures how well each single input predicts a quantity that only the future determines:

* whether the session ends in a purchase, at the first event and over all events (AUC);
* the time until the next event, over all events that have one (correlation of ranks);
* for sessions without a purchase, at each of the first three events: whether the event is the last (AUC), and how many
  events and how much time follow (correlation of ranks).

Positions are examined separately, because the past, which is known, predicts part of the future across positions. Each
value of an input, or each of 64 quantile bins of a number, is encoded as the target's mean on one half of the sessions
and scored on the other half. So a value that occurs once has no effect, and any form of dependence counts. Two more
rules need no target: property names that mean the outcome, and event names that (nearly) only buyers have.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from model.auc import auc
from model.events import FIELDS
from model.properties import PropertySpec
from training.config import LeakSettings

OUTCOME_NAMES: Final = frozenset(
    {
        "bought", "buys", "will_buy", "purchase", "purchased", "is_purchase", "converted", "conversion",
        "is_conversion", "ordered", "order_id", "order_value", "order_completed", "transaction", "transaction_id",
        "revenue", "outcome", "label", "target",
    }
)  # fmt: skip
_FIELDS: Final = ("event_name", *(field.name for field in FIELDS if field.is_input))
_PROPERTY_PREFIX: Final = "property."
_FIRST_POSITIONS: Final = (1, 2, 3)
_MOST_BINS: Final = 64
_EVENTS_A_BIN: Final = 20
_Z_95: Final = 1.959963984540054


class LeakError(ValueError):
    """An input contains information from the future; the message names it and a remedy."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A suspicious input: the name for `--allow-suspect`, a description, and the reason."""

    name: str
    what: str
    reason: str


def check_leaks(
    shards: Sequence[Path], properties: Sequence[PropertySpec], training_ids: set[str], settings: LeakSettings
) -> list[str]:
    """Return a warning for each suspect that is allowed.

    Args:
        shards: prepared shards.
        properties: those that the model is to use.
        training_ids: the only sessions examined.
        settings: bounds, and the suspects that are allowed.

    Raises:
        LeakError: there is a suspect that is not allowed.
    """
    found = suspects(shards, properties, training_ids, settings)
    refused = [suspect for suspect in found if suspect.name not in settings.allow_suspect]
    if refused:
        listed = "\n".join(f"  {suspect.what} {suspect.reason}" for suspect in refused)
        allow = " ".join(f"--allow-suspect {suspect.name}" for suspect in refused)
        raise LeakError(
            f"inputs that seem to know the future:\n{listed}\nSuch a column is mostly written after the fact, and the "
            "service will not have it in time. Leave a property out: --properties names those to use. Prepare a page "
            f"that follows the purchase as one: --event NAME=purchase. What is really known with the event: {allow}"
        )
    return [f"{suspect.what} {suspect.reason}; used all the same, as --allow-suspect says" for suspect in found]


def suspects(
    shards: Sequence[Path], properties: Sequence[PropertySpec], training_ids: set[str], settings: LeakSettings
) -> list[Suspect]:
    """Return the suspicious inputs, each once with the first reason found; arguments as in `check_leaks`."""
    columns = [*_FIELDS, *(_PROPERTY_PREFIX + spec.name for spec in properties)]
    found = {
        column: Suspect(_name(column), _what(column), "says the outcome by its name")
        for column in columns
        if column.startswith(_PROPERTY_PREFIX) and _folded(_name(column)) in OUTCOME_NAMES
    }
    events = _events(shards, columns, _sample(training_ids, settings.most_sessions))
    for target in _targets(events, settings):
        for column in columns:
            if column not in found:
                strength = target.predicted_by(events[column].gather(target.rows))
                if strength is not None and strength >= target.bound:
                    reason = f"alone tells {target.subject} ({target.measure} {strength:.3f})"
                    found[column] = Suspect(_name(column), _what(column), reason)
    return [*found.values(), *_pages_of_buyers(events, settings)]


@dataclass(frozen=True, slots=True)
class _Target:
    """A quantity that the future determines: `value` [N] for the events at `rows` [N] of sessions `session` [N]."""

    subject: str
    rows: NDArray[np.int64]
    value: NDArray[np.float64]
    session: NDArray[np.int64]
    is_binary: bool
    bound: float

    @property
    def measure(self) -> str:
        return "AUC" if self.is_binary else "correlation of ranks"

    def predicted_by(self, values: pl.Series) -> float | None:
        """Return how well the values [N] predict the target; None where either is constant."""
        words = _words(values)
        target = self.value if self.is_binary else pl.Series(self.value).rank("average").to_numpy()
        half = self.session % 2
        predicted = np.empty(len(target))
        for own in (0, 1):
            other = half != own
            # Smoothed by one session of the overall mean, which a value unseen in the other half gets.
            mean = target[other].mean()
            sums = np.bincount(words[other], target[other], minlength=words.max() + 1)
            counts = np.bincount(words[other], minlength=words.max() + 1)
            predicted[~other] = ((sums + mean) / (counts + 1))[words[~other]]
        if np.ptp(predicted) == 0 or np.ptp(target) == 0:
            return None
        return float(auc(target, predicted) if self.is_binary else np.corrcoef(target, predicted)[0, 1])


def _targets(events: pl.DataFrame, settings: LeakSettings) -> Iterator[_Target]:
    """Yield the targets for which there are enough sessions."""
    session, position = events["session"].to_numpy(), events["position"].to_numpy()

    def about(subject: str, where: NDArray[np.bool_], answer: str, *, is_binary: bool) -> Iterator[_Target]:
        rows = np.flatnonzero(where)
        own = session[rows]
        answers = events[answer].gather(rows).to_numpy().astype(np.float64)
        kinds = (answers > 0, answers <= 0) if is_binary else (np.ones(len(rows), dtype=bool),)
        least = min(len(np.unique(own[kind & (own % 2 == half)])) for kind in kinds for half in (0, 1))
        if 2 * least >= settings.least_sessions:
            bound = settings.outcome_auc if is_binary else settings.future_correlation
            yield _Target(subject, rows, answers, own, is_binary, bound)

    yield from about("the outcome at the first event", position == 1, "outcome", is_binary=True)
    yield from about("the outcome", position > 0, "outcome", is_binary=True)
    has_next = events["next_gap_ms"].is_not_null().to_numpy()
    yield from about("the time until the next event", has_next, "next_gap_ms", is_binary=False)
    # Without buyers: their sessions are cut before the purchase, so their end here is not their end in the log.
    whole = ~events["outcome"].to_numpy()
    for number in _FIRST_POSITIONS:
        at, here = f"at event {number}", whole & (position == number)
        yield from about(f"whether the session ends {at}", here, "is_last", is_binary=True)
        yield from about(f"how many events are still to come {at}", here, "events_left", is_binary=False)
        yield from about(f"how much time is still to come {at}", here, "time_left_ms", is_binary=False)


def _pages_of_buyers(events: pl.DataFrame, settings: LeakSettings) -> list[Suspect]:
    """Return the event names that (nearly) only buyers have: such as a page after an unlogged purchase."""
    if events["outcome"].all():
        return []
    pages = events.group_by("event_name").agg(
        sessions=pl.col("session").n_unique(), bought=pl.col("session").filter("outcome").n_unique()
    )
    found = []
    for name, sessions, bought in pages.sort("event_name").iter_rows():
        # Wilson's interval (1927), which is valid at a share of one.
        share, spread = bought / sessions, _Z_95**2 / sessions
        root = _Z_95 * ((share * (1 - share) + spread / 4) / sessions) ** 0.5
        if sessions >= settings.least_sessions and (share + spread / 2 - root) / (1 + spread) >= settings.buyers_share:
            reason = f"is seen by buyers alone ({bought} of {sessions} sessions bought): does it follow the purchase?"
            found.append(Suspect(name, f"the event {name!r}", reason))
    return found


def _events(shards: Sequence[Path], columns: Sequence[str], ids: set[str]) -> pl.DataFrame:
    """Return the sessions' events with `session` (a number), `position`, and the targets about what follows each."""
    wanted = pl.DataFrame({"session_id": sorted(ids)}, schema={"session_id": pl.String})
    frames = [
        pl.read_parquet(shard, columns=["session_id", "timestamp_ms", "outcome", *columns]).join(
            wanted, on="session_id", how="semi", maintain_order="left"
        )
        for shard in shards
    ]
    time, over = pl.col("timestamp_ms"), "session_id"
    return pl.concat(frames).with_columns(
        session=pl.col("session_id").rank("dense").cast(pl.Int64),
        position=pl.int_range(1, pl.len() + 1).over(over),
        is_last=pl.int_range(1, pl.len() + 1).over(over) == pl.len().over(over),
        events_left=(pl.len() - pl.int_range(1, pl.len() + 1)).over(over),
        next_gap_ms=(time.shift(-1) - time).over(over),
        time_left_ms=(time.max() - time).over(over),
    )


def _sample(ids: set[str], at_most: int) -> set[str]:
    step = -(-len(ids) // at_most)
    return set(sorted(ids)[:: max(step, 1)])


def _words(values: pl.Series) -> NDArray[np.int64]:
    """Return an integer code for each value [N]: 0 for null, else one a distinct text or a bin of numbers."""
    if values.dtype.is_numeric():
        numbers = values.cast(pl.Float64).fill_nan(None)
        given = numbers.drop_nulls()
        bins = min(_MOST_BINS, max(2, given.len() // _EVENTS_A_BIN))
        if given.n_unique() > bins:
            edges = np.quantile(given.to_numpy(), np.linspace(0, 1, bins + 1)[1:-1])
            found = np.searchsorted(edges, numbers.fill_null(0.0).to_numpy(), side="right") + 1
            return np.where(numbers.is_null().to_numpy(), 0, found)
        values = numbers
    return values.rank("dense").fill_null(0).cast(pl.Int64).to_numpy()


def _name(column: str) -> str:
    return column.removeprefix(_PROPERTY_PREFIX)


def _what(column: str) -> str:
    kind = "property" if column.startswith(_PROPERTY_PREFIX) else "field"
    return f"the {kind} {_name(column)!r}"


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
