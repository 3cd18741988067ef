"""What the service asks of a model; `model.predictor.Predictor` is one.

Protocols, so that tests can put a model in its place whose answers are known.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from model.events import Event
from model.summary import DataSummary, InputCounts


class SessionScorer(Protocol):
    """What the scorer asks."""

    @property
    def fingerprint(self) -> str:
        """Name of the model: 16 hex characters."""
        ...

    def reads(self, state: bytes) -> bool:
        """Whether it takes the bytes for a state of its own; other models' states are told by their fingerprint."""
        ...

    def advance(self, events: Sequence[Event], states: Sequence[bytes | None]) -> tuple[list[float], list[bytes]]:
        """Fold one event into each state; None is the initial state."""
        ...

    def refold(self, histories: Sequence[Sequence[Event]]) -> list[tuple[float, bytes]]:
        """Fold whole histories; last probability and state of each."""
        ...

    def traces(self, histories: Sequence[Sequence[Event]]) -> list[tuple[list[float], bytes]]:
        """Like `refold`, with the probability after each event; may be called in a thread beside all others."""
        ...


class ManifestLike(Protocol):
    """What is told of an artifact."""

    def to_dict(self) -> dict[str, Any]:
        """Return it ready for JSON."""
        ...


class Model(SessionScorer, Protocol):
    """What the whole service asks."""

    @property
    def manifest(self) -> ManifestLike:
        """What the artifact says of itself."""
        ...

    @property
    def device(self) -> str:
        """Where it runs."""
        ...

    @property
    def device_reason(self) -> str:
        """Why it runs there."""
        ...

    @property
    def state_size(self) -> int:
        """Bytes of the longest state that there can be."""
        ...

    @property
    def summary(self) -> DataSummary | None:
        """What its training sessions looked like; None where the artifact does not say."""
        ...

    def count_inputs(self, histories: Sequence[Sequence[Event]]) -> InputCounts | None:
        """Count the inputs of sessions by the summary's bins; may be called in a thread beside all others."""
        ...

    def knows(self, event_name: str) -> bool:
        """Whether the vocabulary has a canonical event name."""
        ...

    def warm_up(self) -> None:
        """Make the first request as fast as the thousandth."""
        ...
