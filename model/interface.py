"""The interface of a model as the service calls it; `model.predictor.Predictor` implements it.

Protocols, so that tests can use a model with known answers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from model.events import Event, PropertyValue
from model.explain import Explanation
from model.summary import DataSummary, InputCounts


class SessionScorer(Protocol):
    """The part that the scorer calls."""

    @property
    def fingerprint(self) -> str:
        """Identifies the model: 16 hexadecimal digits."""
        ...

    def reads(self, state: bytes) -> bool:
        """Whether `advance` can decode the bytes. Another model's state may pass: compare fingerprints first."""
        ...

    def advance(self, events: Sequence[Event], states: Sequence[bytes | None]) -> tuple[list[float], list[bytes]]:
        """Fold one event into each state; None is the initial state."""
        ...

    def fold(
        self, histories: Sequence[Sequence[Event]], states: Sequence[bytes | None]
    ) -> list[tuple[list[float], bytes]]:
        """Fold several events into each state; return the probability after each event, and the last state."""
        ...

    def refold(self, histories: Sequence[Sequence[Event]]) -> list[tuple[float, bytes]]:
        """Fold whole histories; return the last probability and the state of each."""
        ...

    def traces(self, histories: Sequence[Sequence[Event]]) -> list[tuple[list[float], bytes]]:
        """Like `refold`, with the probability after each event; thread-safe."""
        ...

    def explain(self, history: Sequence[Event]) -> Explanation:
        """Return what moved the probability at the last event of a whole history; thread-safe."""
        ...


class ManifestLike(Protocol):
    """The description of an artifact."""

    def to_dict(self) -> dict[str, Any]:
        """Return the description as JSON-ready values."""
        ...


class Model(SessionScorer, Protocol):
    """All that the service calls."""

    @property
    def manifest(self) -> ManifestLike:
        """The artifact's manifest."""
        ...

    @property
    def device(self) -> str:
        """The device on which the model runs."""
        ...

    @property
    def device_reason(self) -> str:
        """Why this device was chosen."""
        ...

    @property
    def engine(self) -> str:
        """What runs the step: `compiled`, `torchscript` or `cuda_graph`."""
        ...

    @property
    def engine_reason(self) -> str:
        """Why."""
        ...

    @property
    def state_size(self) -> int:
        """Length in bytes of the longest possible state."""
        ...

    @property
    def summary(self) -> DataSummary | None:
        """Distribution of the training sessions' inputs; None if the artifact has none."""
        ...

    def count_inputs(self, histories: Sequence[Sequence[Event]]) -> InputCounts | None:
        """Count the inputs of sessions in the summary's bins; thread-safe."""
        ...

    def knows(self, event_name: str) -> bool:
        """Whether the vocabulary contains a canonical event name."""
        ...

    def canonical_name(self, event_name: str) -> str:
        """Return what the training log called the event: its renamed names first, then aliases."""
        ...

    def unknown_properties(self, properties: Mapping[str, PropertyValue]) -> Sequence[str]:
        """Return the declared properties whose value the model cannot tell from any other unknown one."""
        ...

    def undeclared_properties(self, properties: Mapping[str, PropertyValue]) -> Sequence[str]:
        """Return the properties that the model does not know at all, and so does not use."""
        ...

    @property
    def usual_prices(self) -> tuple[float, float]:
        """Bounds of nearly all prices of the training log; 0 and infinity where the artifact does not know them."""
        ...

    def cart_values(self, states: Sequence[bytes]) -> list[float] | None:
        """Return the cart's value in each of this model's states; None where the artifact does not keep it."""
        ...

    def warm_up(self) -> None:
        """Run every batch size once, so that the first requests are as fast as later ones."""
        ...
