"""Inputs that know what nobody can know when the event comes: found on the training sessions, and refused.

A column of a log may be written after the fact: a copy of the outcome, the time spent on a page, the length of the
session. Each input is asked how well it alone tells what only the future knows:

* whether the session ends in a purchase, at the first event and over all events (AUC);
* the time until the next event, over all events that have one (correlation of ranks);
* of sessions that bought nothing, at each of the first three events: whether it is the last (AUC), and how many events
  and how much time are still to come (correlation of ranks).

Position by position, because what has passed so far is known and tells nothing there. An input's values, or 64 quantile
bins of its numbers, are turned into the mean of what is to be told, learned on one half of the sessions and judged on
the other: so a name that occurs once tells nothing, and any shape of dependence counts. Two rules need no figure: names
that say the outcome, and pages that (nearly) none but buyers see.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from model.columns import PropertySpec
from model.events import FIELDS

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
    """An input tells what is not known yet; the message names it and says what to do."""


@dataclass(frozen=True, slots=True)
class LeakSettings:
    """What an input may tell by itself before it is refused.

    Attributes:
        outcome_auc: from this AUC up, an input tells the outcome, or the end of the session, too well.
        future_correlation: from this correlation of ranks up, it tells what is still to come too well.
        buyers_share: a page is one of buyers alone when the lower end of the 95 % interval of their share reaches this.
        least_sessions: sessions of either outcome, or with the page, below which a figure is chance.
        most_sessions: training sessions looked at, evenly drawn where there are more.
        allow_suspect: names of properties, fields and pages that are kept all the same, as they really are known.
    """

    outcome_auc: float = 0.95
    future_correlation: float = 0.95
    buyers_share: float = 0.98
    least_sessions: int = 50
    most_sessions: int = 50_000
    allow_suspect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("outcome_auc", "future_correlation", "buyers_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a number above 0 and at most 1, not {getattr(self, name)}")
        for name in ("least_sessions", "most_sessions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a whole number from 1 up, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Suspect:
    """An input that knows too much: the name to allow it by, what it is, and why it is one."""

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
        training_ids: sessions to look at; the others stay unseen.
        settings: the bounds, and what is allowed.

    Raises:
        LeakError: there is a suspect that is not allowed.
    """
    found = suspects(shards, properties, training_ids, settings)
    refused = [suspect for suspect in found if suspect.name not in settings.allow_suspect]
    if refused:
        told = "\n".join(f"  {suspect.what} {suspect.reason}" for suspect in refused)
        allow = " ".join(f"--allow-suspect {suspect.name}" for suspect in refused)
        raise LeakError(
            f"inputs that seem to know the future:\n{told}\nSuch a column is mostly written after the fact, and the "
            "service will not have it in time. Leave a property out: --properties names those to use. Prepare a page "
            f"that follows the purchase as one: --event NAME=purchase. What is really known with the event: {allow}"
        )
    return [f"{suspect.what} {suspect.reason}; used all the same, as --allow-suspect says" for suspect in found]


def suspects(
    shards: Sequence[Path], properties: Sequence[PropertySpec], training_ids: set[str], settings: LeakSettings
) -> list[Suspect]:
    """Return the inputs that know too much, each once, for the first reason found; see `check_leaks`."""
    columns = [*_FIELDS, *(_PROPERTY_PREFIX + spec.name for spec in properties)]
    found = {
        column: Suspect(_name(column), _what(column), "says the outcome by its name")
        for column in columns
        if column.startswith(_PROPERTY_PREFIX) and _folded(_name(column)) in OUTCOME_NAMES
    }
    events = _events(shards, columns, _sample(training_ids, settings.most_sessions))
    for question in _questions(events, settings):
        for column in columns:
            if column not in found:
                strength = question.told_by(events[column].gather(question.rows))
                if strength is not None and strength >= question.bound:
                    reason = f"alone tells {question.subject} ({question.measure} {strength:.3f})"
                    found[column] = Suspect(_name(column), _what(column), reason)
    return [*found.values(), *_pages_of_buyers(events, settings)]


@dataclass(frozen=True, slots=True)
class _Question:
    """Something that only the future knows: of the events at `rows` [N], `answer` [N], in sessions `session` [N]."""

    subject: str
    rows: NDArray[np.int64]
    answer: NDArray[np.float64]
    session: NDArray[np.int64]
    is_binary: bool
    bound: float

    @property
    def measure(self) -> str:
        return "AUC" if self.is_binary else "correlation of ranks"

    def told_by(self, values: pl.Series) -> float | None:
        """Return how well the values [N] tell the answer; None where either is constant."""
        words = _words(values)
        answer = self.answer if self.is_binary else pl.Series(self.answer).rank("average").to_numpy()
        half = self.session % 2
        told = np.empty(len(answer))
        for own in (0, 1):
            other = half != own
            # One session's worth of the overall mean: a value seen nowhere else tells that mean.
            mean = answer[other].mean()
            sums = np.bincount(words[other], answer[other], minlength=words.max() + 1)
            counts = np.bincount(words[other], minlength=words.max() + 1)
            told[~other] = ((sums + mean) / (counts + 1))[words[~other]]
        if np.ptp(told) == 0 or np.ptp(answer) == 0:
            return None
        return float(roc_auc_score(answer, told) if self.is_binary else np.corrcoef(answer, told)[0, 1])


def _questions(events: pl.DataFrame, settings: LeakSettings) -> Iterator[_Question]:
    """Yield the questions that enough sessions can answer."""
    session, position = events["session"].to_numpy(), events["position"].to_numpy()

    def about(subject: str, where: NDArray[np.bool_], answer: str, *, is_binary: bool) -> Iterator[_Question]:
        rows = np.flatnonzero(where)
        own = session[rows]
        answers = events[answer].gather(rows).to_numpy().astype(np.float64)
        kinds = (answers > 0, answers <= 0) if is_binary else (np.ones(len(rows), dtype=bool),)
        least = min(len(np.unique(own[kind & (own % 2 == half)])) for kind in kinds for half in (0, 1))
        if 2 * least >= settings.least_sessions:
            bound = settings.outcome_auc if is_binary else settings.future_correlation
            yield _Question(subject, rows, answers, own, is_binary, bound)

    yield from about("the outcome at the first event", position == 1, "outcome", is_binary=True)
    yield from about("the outcome", position > 0, "outcome", is_binary=True)
    has_next = events["next_gap_ms"].is_not_null().to_numpy()
    yield from about("the time until the next event", has_next, "next_gap_ms", is_binary=False)
    # A buyer's session ends later in the log than here, where it is cut, so a column about its end would not show.
    whole = ~events["outcome"].to_numpy()
    for number in _FIRST_POSITIONS:
        at, here = f"at event {number}", whole & (position == number)
        yield from about(f"whether the session ends {at}", here, "is_last", is_binary=True)
        yield from about(f"how many events are still to come {at}", here, "events_left", is_binary=False)
        yield from about(f"how much time is still to come {at}", here, "time_left_ms", is_binary=False)


def _pages_of_buyers(events: pl.DataFrame, settings: LeakSettings) -> list[Suspect]:
    """Return the event names that (nearly) none but buyers see: what a log without purchases shows after one."""
    if events["outcome"].all():
        return []
    pages = events.group_by("event_name").agg(
        sessions=pl.col("session").n_unique(), bought=pl.col("session").filter("outcome").n_unique()
    )
    found = []
    for name, sessions, bought in pages.sort("event_name").iter_rows():
        # Wilson (1927): an interval that holds at a share of one.
        share, spread = bought / sessions, _Z_95**2 / sessions
        root = _Z_95 * ((share * (1 - share) + spread / 4) / sessions) ** 0.5
        if sessions >= settings.least_sessions and (share + spread / 2 - root) / (1 + spread) >= settings.buyers_share:
            reason = f"is seen by buyers alone ({bought} of {sessions} sessions bought): does it follow the purchase?"
            found.append(Suspect(name, f"the event {name!r}", reason))
    return found


def _events(shards: Sequence[Path], columns: Sequence[str], ids: set[str]) -> pl.DataFrame:
    """Return the sessions' events with `session` (a number), `position`, and what is still to come after each."""
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
    """Return a number from 0 up for each value [N], 0 for none: of a text, itself; of a number, its bin."""
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
