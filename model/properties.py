"""Declared properties: facts that a shop sends with its events beside the fields that every event has."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class PropertySpec:
    """A fact that a shop declares when training and sends in an event's `properties`.

    Attributes:
        name: key in `Event.properties`.
        kind: `number` (numbers and booleans) or `category` (anything with few values).
        scope: `session` keeps the last value sent for the events that lack it; `event` does not.
    """

    name: str
    kind: Literal["number", "category"]
    scope: Literal["event", "session"] = "event"

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("property name: expected at least one character")
        if self.kind not in ("number", "category"):
            raise ValueError(f"property {self.name}: kind must be number or category, not {self.kind!r}")
        if self.scope not in ("event", "session"):
            raise ValueError(f"property {self.name}: scope must be event or session, not {self.scope!r}")
