"""The leak check: inputs that contain information from after their event are found on training sessions and refused.

A log may write a column after the fact: a copy of the outcome, the time spent on a page, the length of the session. The
check measures how well each single input predicts a quantity that only the future determines:

* whether the session ends in a purchase, at the first event and over all events (AUC);
* the time until the next event, over all events that have one (correlation of ranks);
* for sessions without a purchase, at each of the first three events: whether the event is the last (AUC), and how many
  events and how much time follow (correlation of ranks).

Positions are examined separately, because the past, which is known, predicts part of the future across positions. Pairs
of the strongest inputs are examined at the first and at the last event, as two columns may tell together what neither
tells alone. Any number of sessions is enough for which the finding cannot be chance. Two more rules need no target:
property names that mean the outcome, and event names that only buyers, only others, or only last events have.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from model.events import FIELDS
from model.properties import PropertySpec
from training.config import LeakSettings
from training.data.findings import DOUBTFUL, INVALID, UNCHECKED, Finding
from training.data.leak_names import suspect_names
from training.data.leak_statistics import Codes, Target, codes_of, joint_codes, z_bound

OUTCOME_NAMES: Final = frozenset(
    {
        "bought", "buys", "will_buy", "purchase", "purchased", "is_purchase", "converted", "conversion",
        "is_conversion", "ordered", "order_id", "order_value", "order_completed", "transaction", "transaction_id",
        "revenue", "outcome", "label", "target",
    }
)  # fmt: skip
RANKED_LENGTHS: Final = (1, 2, 3, 5, 10)
_FIELDS: Final = ("event_name", *(known.name for known in FIELDS if known.is_input))
_PROPERTY_PREFIX: Final = "property."
_FIRST_POSITIONS: Final = (1, 2, 3)
# Inputs whose pairs are examined, and how much more a pair must tell than the better of the two.
_PAIRED_INPUTS: Final = 12
_PAIR_GAIN: Final = 0.1
_OUTCOME: Final = "the outcome"


class LeakError(ValueError):
    """An input contains information from the future; the message names it and a remedy."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A suspicious input: the name for `--allow-suspect`, a description, and the reason."""

    name: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class RankedInput:
    """How well one input alone ranks buyers above others, out of sample.

    Attributes:
        name: of the field or property.
        auc: over all events; None where the input or the outcome is constant.
        by_length: AUC of the values after 1, 2, 3, 5 and 10 events.
    """

    name: str
    auc: float | None
    by_length: Mapping[int, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LeakFindings:
    """What the check found and did not refuse.

    Attributes:
        warnings: in plain words, with their severity.
        ranking: the inputs, the strongest first.
    """

    warnings: list[str] = field(default_factory=list)
    ranking: list[RankedInput] = field(default_factory=list)


def check_leaks(
    shards: Sequence[Path], properties: Sequence[PropertySpec], training_ids: pl.Series, settings: LeakSettings
) -> LeakFindings:
    """Return what is suspicious and allowed, or no reason to refuse the input, and a ranking of the inputs.

    Args:
        shards: prepared shards.
        properties: those that the model is to use.
        training_ids: the only sessions examined.
        settings: bounds, and the suspects that are allowed.

    Raises:
        LeakError: there is a suspect that is not allowed.
    """
    check = _Check(shards, properties, training_ids, settings)
    found = check.suspects()
    refused = [suspect for suspect in found if suspect.name not in settings.allow_suspect]
    if refused:
        listed = "\n".join(f"  {suspect.what} {suspect.reason}" for suspect in refused)
        allow = " ".join(f"--allow-suspect {shlex.quote(suspect.name)}" for suspect in refused)
        raise LeakError(
            f"inputs that seem to know the future:\n{listed}\nSuch a column is mostly written after the fact, and the "
            "service will not have it in time. Leave a property out: --properties names those to use. Prepare a page "
            "that follows the purchase as one: --event NAME=purchase. Leave out what is written when a session ends: "
            f"--drop NAME. What is really known with the event: {allow}"
        )
    allowed = [
        Finding(f"{suspect.what} {suspect.reason}; used all the same, as --allow-suspect says", INVALID)
        for suspect in found
    ]
    return LeakFindings([*allowed, *check.warnings(found)], check.ranking)


def suspects(
    shards: Sequence[Path], properties: Sequence[PropertySpec], training_ids: pl.Series, settings: LeakSettings
) -> list[Suspect]:
    """Return the suspicious inputs, each once with the first reason found; arguments as in `check_leaks`."""
    return _Check(shards, properties, training_ids, settings).suspects()


class _Check:
    """The statistics of a run's training sessions, computed once.

    Attributes:
        ranking: the inputs, the strongest first.
    """

    def __init__(
        self,
        shards: Sequence[Path],
        properties: Sequence[PropertySpec],
        training_ids: pl.Series,
        settings: LeakSettings,
    ) -> None:
        self._settings = settings
        self._columns = [*_FIELDS, *(_PROPERTY_PREFIX + spec.name for spec in properties)]
        self._events = _events(shards, self._columns, _sample(training_ids, settings.most_sessions))
        self._codes = {column: codes_of(self._events[column]) for column in self._columns}
        self._targets = list(_targets(self._events, settings))
        self._z_bound = z_bound(settings.significance, len(self._columns) * max(len(self._targets), 1))
        self._names = suspect_names(self._events, settings)
        self.ranking = self._ranked()

    def suspects(self) -> list[Suspect]:
        """Return the inputs to refuse, each once with the first reason found."""
        found = {
            column: Suspect(_name(column), _what(column), "says the outcome by its name")
            for column in self._columns
            if column.startswith(_PROPERTY_PREFIX) and _folded(_name(column)) in OUTCOME_NAMES
        }
        for target in self._targets:
            for column in self._columns:
                if column not in found:
                    strength = target.predicted_by(codes_of(self._events[column].gather(target.rows)))
                    if self._reaches(target, strength, target.bound):
                        reason = f"alone tells {target.subject} ({target.measure} {strength:.3f})"
                        found[column] = Suspect(_name(column), _what(column), reason)
        pages = [Suspect(page.name, f"the event {page.name!r}", page.reason) for page in self._names if page.is_refused]
        return [*found.values(), *self._pairs(self._settings.outcome_auc, {*found}), *pages]

    def warnings(self, refused: Sequence[Suspect]) -> list[str]:
        """Return what is no reason to refuse an input: strong ones, names, and what could not be checked."""
        known = {suspect.name for suspect in refused}
        strong = [one for one in self.ranking if one.name not in known and self._is_strong(one)]
        pairs = self._pairs(self._settings.warn_auc, {column for column in self._columns if _name(column) in known})
        return [
            *(Finding(f"{_described(one)}: is it known at the time of the event?", DOUBTFUL) for one in strong),
            *(Finding(f"{one.what} {one.reason}", DOUBTFUL) for one in pairs if one.name not in known),
            *(page.warning() for page in self._names if not page.is_refused),
            *self._unchecked(),
        ]

    def _reaches(self, target: Target, strength: float | None, bound: float) -> bool:
        return strength is not None and strength >= bound and target.z(strength) >= self._z_bound

    def _ranked(self) -> list[RankedInput]:
        overall = _outcome_target(self._events, np.ones(self._events.height, dtype=bool), _OUTCOME, 1.0)
        position = self._events["position"].to_numpy()
        lengths = {length: _outcome_target(self._events, position == length, "", 1.0) for length in RANKED_LENGTHS}
        found = [
            RankedInput(
                _name(column),
                overall.predicted_by(codes[overall.rows]),
                {
                    length: target.predicted_by(codes[target.rows])
                    for length, target in lengths.items()
                    if len(target.rows)
                },
            )
            for column, codes in self._codes.items()
            if len(overall.rows)
        ]
        return sorted(found, key=lambda one: (-(one.auc or 0.0), one.name))

    def _is_strong(self, ranked: RankedInput) -> bool:
        position = self._events["position"].to_numpy()
        for length, strength in [(None, ranked.auc), *ranked.by_length.items()]:
            where = position > 0 if length is None else position == length
            target = _outcome_target(self._events, where, _OUTCOME, self._settings.warn_auc)
            if self._reaches(target, strength, self._settings.warn_auc):
                return True
        return False

    def _pairs(self, bound: float, without: set[str]) -> list[Suspect]:
        """Return the pairs that tell the outcome and whose parts do not; columns `without` need no partner."""
        by_name = {_name(column): column for column in self._columns}
        columns = [by_name[one.name] for one in self.ranking if by_name[one.name] not in without][:_PAIRED_INPUTS]
        found: dict[str, Suspect] = {}
        places = {"the first event": pl.col("position") == 1, "the last event": pl.col("is_last")}
        for subject, place in places.items():
            where = self._events.select(place).to_series().to_numpy()
            target = _outcome_target(self._events, where, _OUTCOME, bound)
            if target.best_z < self._pair_z_bound(len(columns)):
                continue
            codes: dict[str, Codes] = {column: self._codes[column][target.rows] for column in columns}
            alone = {column: target.predicted_by(values) or 0.5 for column, values in codes.items()}
            for one, other in combinations(columns, 2):
                strength = target.predicted_by(joint_codes(codes[one], codes[other]))
                if strength is None or strength < max(bound, max(alone[one], alone[other]) + _PAIR_GAIN):
                    continue
                if target.z(strength) >= self._pair_z_bound(len(columns)):
                    name = f"{_name(one)}+{_name(other)}"
                    reason = f"together tell the outcome at {subject} (AUC {strength:.3f}), and neither does alone"
                    found.setdefault(name, Suspect(name, f"{_what(one)} and {_what(other)}", reason))
        return list(found.values())

    def _pair_z_bound(self, columns: int) -> float:
        return z_bound(self._settings.significance, columns * columns)

    def _unchecked(self) -> Iterator[Finding]:
        unchecked = [target for target in self._targets if target.best_z < self._z_bound]
        asked = {target.subject for target in self._targets}
        if not asked:
            yield Finding("the leak check has no sessions of both outcomes, so that no input was checked", UNCHECKED)
        for target in unchecked:
            if target.subject == _OUTCOME:
                buyers, others = target.sessions
                yield Finding(
                    f"the leak check cannot tell a copy of the outcome from chance: {buyers} buyers and {others} other "
                    "training sessions are too few",
                    UNCHECKED,
                )
        others_unchecked = [target.subject for target in unchecked if not target.subject.startswith(_OUTCOME)]
        if others_unchecked:
            yield Finding(f"the leak check had too few sessions for {', '.join(others_unchecked)}", UNCHECKED)


def _targets(events: pl.DataFrame, settings: LeakSettings) -> Iterator[Target]:
    """Yield the targets for which there are sessions."""
    session, position = events["session"].to_numpy(), events["position"].to_numpy()

    def about(subject: str, where: NDArray[np.bool_], answer: str, *, is_binary: bool) -> Iterator[Target]:
        rows = np.flatnonzero(where)
        answers = events[answer].gather(rows).to_numpy().astype(np.float64)
        bound = settings.outcome_auc if is_binary else settings.future_correlation
        target = Target(subject, rows, answers, session[rows], is_binary, bound)
        first, second = target.sessions
        if first and (second or not is_binary):
            yield target

    yield from about(f"{_OUTCOME} at the first event", position == 1, "outcome", is_binary=True)
    yield from about(_OUTCOME, position > 0, "outcome", is_binary=True)
    has_next = events["next_gap_ms"].is_not_null().to_numpy()
    yield from about("the time until the next event", has_next, "next_gap_ms", is_binary=False)
    # Without buyers: their sessions are cut before the purchase, so their end here is not their end in the log.
    whole = ~events["outcome"].to_numpy()
    for number in _FIRST_POSITIONS:
        at, here = f"at event {number}", whole & (position == number)
        yield from about(f"whether the session ends {at}", here, "is_last", is_binary=True)
        yield from about(f"how many events are still to come {at}", here, "events_left", is_binary=False)
        yield from about(f"how much time is still to come {at}", here, "time_left_ms", is_binary=False)


def _outcome_target(events: pl.DataFrame, where: NDArray[np.bool_], subject: str, bound: float) -> Target:
    rows = np.flatnonzero(where)
    value = events["outcome"].gather(rows).to_numpy().astype(np.float64)
    return Target(subject, rows, value, events["session"].gather(rows).to_numpy(), True, bound)


def _events(shards: Sequence[Path], columns: Sequence[str], ids: pl.Series) -> pl.DataFrame:
    """Return the sessions' events with `session` (a number), `position`, and the targets about what follows each."""
    wanted = ids.alias("session_id").cast(pl.String).to_frame()
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


def _sample(ids: pl.Series, at_most: int) -> pl.Series:
    step = -(-len(ids) // at_most)
    return ids.sort().gather_every(max(step, 1))


def _described(ranked: RankedInput) -> str:
    by_length = ", ".join(
        f"{strength:.3f} after {length}" for length, strength in ranked.by_length.items() if strength is not None
    )
    overall = "" if ranked.auc is None else f"{ranked.auc:.3f} over all events, "
    return f"{ranked.name!r} alone ranks buyers with an AUC of {overall}{by_length}"


def _name(column: str) -> str:
    return column.removeprefix(_PROPERTY_PREFIX)


def _what(column: str) -> str:
    kind = "property" if column.startswith(_PROPERTY_PREFIX) else "field"
    return f"the {kind} {_name(column)!r}"


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
