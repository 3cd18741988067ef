"""The predictions to evaluate, and the populations that they are evaluated in.

Shape legend: N prefixes of S sessions.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.evaluation.metrics import PREFIX_LENGTHS

Kind = Literal["length", "pooled", "slice"]

POOLED: Final = "all prefixes"
PER_SESSION: Final = "per session"
LAST: Final = "last event"


@dataclass(frozen=True, slots=True)
class Prefixes:
    """N prefixes, each of which is one prediction, with outcomes and slices.

    Attributes:
        outcome: (N,) 1 where the prefix's session ended in a purchase, 0 elsewhere.
        prefix_length: (N,) its number of events.
        session: (N,) from 0 to S - 1, equal for prefixes of one session.
        slices: by heading and name, (N,) whether a prefix belongs to it.
    """

    outcome: NDArray[np.float64]
    prefix_length: NDArray[np.int64]
    session: NDArray[np.int64]
    slices: Mapping[str, Mapping[str, NDArray[np.bool_]]] = field(default_factory=dict)

    @property
    def sessions(self) -> int:
        """S."""
        return int(self.session.max()) + 1

    @property
    def session_outcome(self) -> NDArray[np.float64]:
        """(S,) outcome of each session."""
        found = np.zeros(self.sessions)
        found[self.session] = self.outcome
        return found


def prefixes_of(
    outcome: ArrayLike,
    prefix_length: ArrayLike,
    session_index: ArrayLike,
    slices: Mapping[str, Mapping[str, ArrayLike]] | None = None,
) -> Prefixes:
    """Return the prefixes, their sessions numbered from 0.

    Raises:
        ValueError: there is no prefix, or arrays do not fit together; the message names which.
    """
    bought = np.asarray(outcome, dtype=np.float64)
    if not len(bought):
        raise ValueError("outcome: at least one prefix is needed")
    given = {"prefix_length": np.asarray(prefix_length), "session_index": np.asarray(session_index)}
    for heading, parts in (slices or {}).items():
        given |= {f"slice {heading}, {name}": np.asarray(mask) for name, mask in parts.items()}
    for name, array in given.items():
        if array.shape != bought.shape:
            raise ValueError(f"{name}: shape {bought.shape} is needed, not {array.shape}")
    return Prefixes(
        bought,
        given["prefix_length"].astype(np.int64),
        np.unique(given["session_index"], return_inverse=True)[1].astype(np.int64),
        {
            heading: {name: np.asarray(mask, dtype=np.bool_) for name, mask in parts.items()}
            for heading, parts in (slices or {}).items()
        },
    )


@dataclass(frozen=True, slots=True)
class Population:
    """A set of prefixes: the subject of one row of a table.

    Attributes:
        name: as shown.
        kind: `length` for the prefixes of one length, `pooled` for all, `slice` for a part of them.
        heading: of the table that it belongs to.
        prefix_length: of the prefixes, for kind `length`.
        rows: which of the N prefixes.
        weight: of each of them within its session.
    """

    name: str
    kind: Kind
    heading: str
    prefix_length: int | None
    rows: NDArray[np.int64]
    weight: NDArray[np.float64]


def populations(prefixes: Prefixes) -> Iterator[Population]:
    """Yield prefixes by length, all prefixes, all with equal weight a session, each session's last one, and slices.

    The last prefix is known in hindsight only, so its scores describe no possible decision.
    """
    for length in PREFIX_LENGTHS:
        yield _population(str(length), "length", "", prefixes.prefix_length == length, length)
    whole = np.ones(len(prefixes.outcome), dtype=np.bool_)
    yield _population(POOLED, "pooled", "", whole)
    events = np.bincount(prefixes.session)[prefixes.session]
    yield Population(PER_SESSION, "pooled", "", None, np.flatnonzero(whole), 1.0 / events)
    longest = np.zeros(prefixes.sessions, dtype=np.int64)
    np.maximum.at(longest, prefixes.session, prefixes.prefix_length)
    yield _population(LAST, "pooled", "", prefixes.prefix_length == longest[prefixes.session])
    for heading, parts in prefixes.slices.items():
        for name, mask in parts.items():
            yield _population(name, "slice", heading, mask)


def _population(
    name: str, kind: Kind, heading: str, mask: NDArray[np.bool_], prefix_length: int | None = None
) -> Population:
    rows = np.flatnonzero(mask)
    return Population(name, kind, heading, prefix_length, rows, np.ones(len(rows)))
