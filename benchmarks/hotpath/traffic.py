"""What visitors do: events of the synthetic shop, many sessions at a time, with Zipf-like lengths.

Each event is drawn for itself, with the item, category and price that it had in the shop. Properties (device, campaign,
earlier visits) are facts of the visitor: a session draws them once and sends them with all its events.

The same traffic comes from wrk (`wrk.lua`, which gets what is said here as a Lua file) and, where a program of ours has
to know which session it posts to, as bodies from here.
"""

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import chain, islice
from typing import Any, Final
from uuid import uuid4

from model.events import Event
from training.synthetic import PRESETS, sessions

_SHOWN_EVENTS: Final = 4096
_LAST_EVENTS: Final = 64
_VISITORS: Final = 1024
_PURCHASE: Final = "purchase"
# A truncated Zipf distribution of session lengths: most are short, a few are very long, ten events on average.
_ZIPF_EXPONENT: Final = 1.6
_LENGTHS: Final = 8192
_NUMBER_DIGITS: Final = 10


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one run of wrk posts; see the head of `wrk.lua`.

    Attributes:
        slots: sessions that go on at the same time.
        buyers: share of sessions that end with a purchase.
        batch: events a request; 0: one, as an object to the single route.
        visited: 0, or: every event goes to one of so many sessions of `prefix`, which never end.
        prefix: what ids begin with; None makes one up that nobody has used.
        pause_ms: mean of the exponential pause of a connection before each request; 0: none.
        shortest, longest: events of a session.
    """

    slots: int = 4096
    buyers: float = 0.03
    batch: int = 0
    visited: int = 0
    prefix: str | None = None
    pause_ms: float = 0.0
    shortest: int = 1
    longest: int = 300

    def lua(self, path: str, headers: dict[str, str]) -> str:
        """Return the Lua file that wrk's script reads, for requests to a path."""
        lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        settings: dict[str, Any] = asdict(self) | {
            "prefix": self.prefix or new_prefix(),
            "run": new_prefix(),
            "head": "\r\n".join([*lines, "Content-Length: "]),
            "bodies": _bodies(purchases=False),
            "last": _bodies(purchases=True),
            "visitors": _visitors(),
            "lengths": zipf_lengths(self.shortest, self.longest),
        }
        return "return {\n" + "".join(f"  {name} = {_lua(value)},\n" for name, value in settings.items()) + "}\n"


def new_prefix() -> str:
    """Return eight characters that no earlier run's ids begin with."""
    return uuid4().hex[:8]


def session_id(prefix: str, number: int) -> str:
    """Return the id of a session, counted from 1, as `Traffic.visited` has it."""
    return f"{prefix}s{number:0{_NUMBER_DIGITS}d}"


def single_body(session: str, number: int) -> bytes:
    """Return the body of an event of a session of `session_id`; among those of its prefix it has that number."""
    bodies, visitors = _bodies(purchases=False), _visitors()
    visitor = visitors[int(session[-_NUMBER_DIGITS:]) % len(visitors)]
    timestamp_ms = int(time.time()) * 1000
    ids = f'{{"event_id":"{session[:8]}b{number:012d}","session_id":"{session}","timestamp":{timestamp_ms}'
    # A prime, so that neighbours differ.
    return (ids + bodies[number * 7919 % len(bodies)] + visitor).encode()


def batch_body(session_ids: Sequence[str], first_number: int) -> bytes:
    """Return the body of a batch with an event of each session; their numbers count on from the first."""
    events = (single_body(session, first_number + place) for place, session in enumerate(session_ids))
    return b"[" + b",".join(events) + b"]"


@cache
def zipf_lengths(shortest: int, longest: int) -> tuple[int, ...]:
    """Return session lengths to draw from, each as often as the distribution has it."""
    weights = {length: length**-_ZIPF_EXPONENT for length in range(shortest, longest + 1)}
    lengths: list[int] = []
    scale, reached = _LENGTHS / sum(weights.values()), 0.0
    for length, weight in weights.items():
        reached += weight * scale
        lengths += [length] * (round(reached) - len(lengths))
    return tuple(lengths)


@cache
def _bodies(*, purchases: bool) -> tuple[str, ...]:
    """Return what stands between the time and the properties in the bodies of a synthetic shop's events."""
    shown = chain.from_iterable(sessions(PRESETS["default"], seed=1))
    chosen = (event for event in shown if (event.event_name == _PURCHASE) == purchases)
    return tuple(map(_body, islice(chosen, _LAST_EVENTS if purchases else _SHOWN_EVENTS)))


@cache
def _visitors() -> tuple[str, ...]:
    """Return what ends the bodies of a session's events: the properties of as many of the shop's visitors."""
    shown = islice(filter(None, sessions(PRESETS["default"], seed=1)), _VISITORS)
    return tuple(f',"properties": {json.dumps(dict(session[0].properties))}}}' for session in shown)


def _body(event: Event) -> str:
    fields = {
        "event_name": event.event_name,
        "item_id": event.item_id,
        "item_category": event.item_category,
        "price": event.price,
        "quantity": event.quantity,
    }
    return "," + json.dumps({name: value for name, value in fields.items() if value is not None})[1:-1]


def _lua(value: object) -> str:
    if isinstance(value, str):
        # JSON's escapes of what stands in a head or a body are Lua's, too.
        return json.dumps(value)
    if isinstance(value, Iterable):
        return "{" + ", ".join(map(_lua, value)) + "}"
    return repr(value)
