"""A model with known answers: the next state is a hash of state and event, and the probability is derived from it."""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from math import log, log1p
from typing import Any

from model.events import Event, PropertyValue, canonical_event_name
from model.explain import Contribution, Explanation


class FakeManifest:
    def to_dict(self) -> dict[str, Any]:
        return {"fingerprint": "fake", "items": ["a", "b"]}


class FakeModel:
    """`salt` selects a model; `poison` is an item id that raises an error."""

    device = "cpu"
    device_reason = "there is no other"
    engine = "torchscript"
    engine_reason = "a fake has no compiled step"
    manifest = FakeManifest()
    summary = None
    usual_prices = (5.0, 100.0)

    def __init__(self, salt: str = "a", *, state_size: int = 16, poison: str = "poison") -> None:
        self.fingerprint = sha256(salt.encode()).hexdigest()[:16]
        self.state_size = state_size
        self.poison = poison
        self.cart_value: float | None = None
        self.batches: list[int] = []
        self.refolded = 0

    def knows(self, event_name: str) -> bool:
        return event_name != "unheard_of"

    def canonical_name(self, event_name: str) -> str:
        return canonical_event_name(event_name)

    def unknown_properties(self, properties: Mapping[str, PropertyValue]) -> list[str]:
        return [name for name, value in properties.items() if value == "unheard_of"]

    def undeclared_properties(self, properties: Mapping[str, PropertyValue]) -> list[str]:
        return [name for name in properties if name == "undeclared"]

    def reads(self, state: bytes) -> bool:
        return len(state) == self.state_size

    def count_inputs(self, histories: Sequence[Sequence[Event]]) -> None:
        pass

    def warm_up(self) -> None:
        pass

    def advance(self, events: Sequence[Event], states: Sequence[bytes | None]) -> tuple[list[float], list[bytes]]:
        self.batches.append(len(events))
        following = [self._step(event, state) for event, state in zip(events, states, strict=True)]
        return [_probability(state) for state in following], following

    def fold(
        self, histories: Sequence[Sequence[Event]], states: Sequence[bytes | None]
    ) -> list[tuple[list[float], bytes]]:
        folded = []
        for history, state in zip(histories, states, strict=True):
            self.refolded += state is None
            trace = []
            for event in history:
                state = self._step(event, state)  # noqa: PLW2901 - a fold
                trace.append(_probability(state))
            assert state is not None
            folded.append((trace, state))
        return folded

    def refold(self, histories: Sequence[Sequence[Event]]) -> list[tuple[float, bytes]]:
        self.refolded += len(histories)
        return [(_probability(state), state) for state in map(self._fold, histories)]

    def traces(self, histories: Sequence[Sequence[Event]]) -> list[tuple[list[float], bytes]]:
        prefixes = [[history[: length + 1] for length in range(len(history))] for history in histories]
        return [([self.expected(prefix) for prefix in each], self._fold(each[-1])) for each in prefixes]

    def explain(self, history: Sequence[Event]) -> Explanation:
        before = self.expected(history[:-1]) if len(history) > 1 else 0.5
        start, end = (log(p) - log1p(-p) for p in (before, self.expected(history)))
        event = Contribution("event", end - start, self.expected(history) - before)
        return Explanation(start, end, Contribution("repeat", 0.0, 0.0), (event,))

    def cart_values(self, states: Sequence[bytes]) -> list[float] | None:
        """Return a known value of each cart where the test has said so."""
        return None if self.cart_value is None else [self.cart_value] * len(states)

    def expected(self, events: Sequence[Event]) -> float:
        """Return the probability after these events."""
        return _probability(self._fold(events))

    def _fold(self, events: Sequence[Event]) -> bytes:
        state = None
        for event in events:
            state = self._step(event, state)
        assert state is not None
        return state

    def _step(self, event: Event, state: bytes | None) -> bytes:
        if event.item_id == self.poison:
            raise RuntimeError("poisoned")
        assert state is None or len(state) == self.state_size
        facts = f"{self.fingerprint} {event.event_name} {event.timestamp_ms} {event.item_id} {event.price}"
        return sha256((state or b"") + facts.encode()).digest()[: self.state_size]


def _probability(state: bytes) -> float:
    return int.from_bytes(state[:6], "little") / 2**48
