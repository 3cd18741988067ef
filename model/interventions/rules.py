"""The file of rules: TOML, one `[[rules]]` table a rule, read into a `RuleSet` that never changes.

    [[rules]]
    name = "voucher"
    probability_between = [0.15, 0.45]
    events = ["view_cart"]
    cart_value_at_least = 40
    control = 0.2

Every fault is a message that names file, rule and field. Names of events are read as the loaded model reads those of
requests; a name that neither the model nor Google Analytics 4 knows is refused, as such a rule would never fire.
"""

import tomllib
from collections.abc import Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from math import inf, nextafter
from pathlib import Path
from typing import Annotated, Any, Final, Protocol, get_type_hints

import msgspec

from model.events import GA4_EVENT_NAMES, PURCHASE, PropertyValue
from model.text_rules import canonical_text, has_forbidden_character

MOST_RULES: Final = 64
LONGEST_IDLE_S: Final = 86_400
LARGEST_CAP: Final = 100_000
_MOST_NAMES: Final = 64
_LARGEST_VALUE: Final = 1e12
_LONGEST_VALUE: Final = 256

_Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Value = Annotated[float, msgspec.Meta(ge=0, le=_LARGEST_VALUE)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=100_000)]
_EventNames = Annotated[
    list[Annotated[str, msgspec.Meta(min_length=1, max_length=128)]], msgspec.Meta(min_length=1, max_length=_MOST_NAMES)
]
_Scalar = str | float | bool
_Properties = Annotated[
    dict[
        Annotated[str, msgspec.Meta(min_length=1, max_length=64)],
        _Scalar | Annotated[list[_Scalar], msgspec.Meta(min_length=1)],
    ],
    msgspec.Meta(min_length=1),
]
_Time = Annotated[datetime, msgspec.Meta(tz=True)]


class RulesError(ValueError):
    """A file of rules cannot be used.

    Attributes:
        faults: one line each, with file, rule and field.
    """

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


class Vocabulary(Protocol):
    """What the loaded model knows of event names; see `model.interface.Model`."""

    def canonical_name(self, event_name: str) -> str: ...
    def knows(self, event_name: str) -> bool: ...


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule: the fields of its table, all but the name optional. All conditions have to hold.

    Attributes:
        name: in answers, streams and figures.
        events: names of which the event has one.
        with_events: names of which the session has had each, this event included.
        without_events: names of which the session has had none so far, this event included.
        properties: values that the event's properties have; of a list, one.
        probability_above: the probability is larger.
        probability_below: the probability is smaller.
        probability_between: the probability is at least the first and at most the second number.
        crosses_up: the probability before the event was smaller, and the one after is at least this.
        crosses_down: the probability before the event was at least this, and the one after is smaller.
        min_events: the session has at least so many events, this one included.
        max_events: the session has at most so many.
        cart_value_at_least: the cart is worth at least this, in the shop's currency.
        cart_value_at_most: the cart is worth at most this.
        idle_seconds: the rule fires so long after a session's last event, instead of at an event.
        control: share of sessions, or of visitors, that are held out.
        cap_per_hour: most decisions within any hour, both groups and all replicas together.
        starts: the rule does not fire before.
        ends: the rule does not fire from then on.
        repeat: whether it fires every time its conditions hold, instead of once a session.
        salt: chooses who is held out; by default the name. Two rules of one salt hold out the same visitors.
        tell_control: whether answers and streams contain decisions of the control group.
    """

    name: _Name
    events: _EventNames = []
    with_events: _EventNames = []
    without_events: _EventNames = []
    properties: _Properties = {}
    probability_above: _Share | None = None
    probability_below: _Share | None = None
    probability_between: Annotated[list[_Share], msgspec.Meta(min_length=2, max_length=2)] | None = None
    crosses_up: _Share | None = None
    crosses_down: _Share | None = None
    min_events: _Count | None = None
    max_events: _Count | None = None
    cart_value_at_least: _Value | None = None
    cart_value_at_most: _Value | None = None
    idle_seconds: Annotated[float, msgspec.Meta(ge=1, le=LONGEST_IDLE_S)] | None = None
    control: _Share = 0.0
    cap_per_hour: Annotated[int, msgspec.Meta(ge=1, le=LARGEST_CAP)] | None = None
    starts: _Time | None = None
    ends: _Time | None = None
    repeat: bool = False
    salt: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] | None = None
    tell_control: bool = False

    @property
    def band(self) -> tuple[float, float]:
        """Smallest and largest probability at which the rule can fire; empty if the first is larger."""
        low, high = 0.0, 1.0
        if self.probability_above is not None:
            low = max(low, nextafter(self.probability_above, inf))
        if self.probability_below is not None:
            high = min(high, nextafter(self.probability_below, -inf))
        if self.probability_between is not None:
            low, high = max(low, self.probability_between[0]), min(high, self.probability_between[1])
        if self.crosses_up is not None:
            low = max(low, self.crosses_up)
        if self.crosses_down is not None:
            high = min(high, nextafter(self.crosses_down, -inf))
        return low, high

    @property
    def texts(self) -> dict[str, frozenset[str]]:
        """The canonical texts that each property may have."""
        return {
            name: frozenset(text for one in _listed(value) if (text := canonical_text(one)) is not None)
            for name, value in self.properties.items()
        }


_TYPES: Final = {
    name: hint for name, hint in get_type_hints(Rule, include_extras=True).items() if not name.startswith("_")
}
# The service reads the webhooks (`app.interventions.webhooks`).
_TABLES: Final = frozenset({"rules", "webhooks"})
# How msgspec calls types, and how people who write TOML do.
_IN_TOML: Final = {
    " | null": "", "`bool | float | str | array`": "a text, a number, true or false, or a list", "`array`": "a list",
    "`str`": "a text", "`float`": "a number", "`int`": "a whole number", "`bool`": "true or false",
    "`object`": "a table", "`date`": "a date", "`datetime`": "a time",
}  # fmt: skip
_TRUTHS: Final = frozenset({"repeat", "tell_control"})
# At an event these are known, and without one they are not.
_OF_AN_EVENT: Final = ("events", "properties", "crosses_up", "crosses_down")
# Fields that together leave no value, and how the message calls what is empty.
_BANDS: Final = (
    ("min_events", "max_events"),
    ("cart_value_at_least", "cart_value_at_most"),
)
_PROBABILITY: Final = ("probability_above", "probability_below", "probability_between", "crosses_up", "crosses_down")


class RuleSet(msgspec.Struct, frozen=True):
    """The rules of a file, in its order; of no rule if the file has none.

    Attributes:
        rules: all of them.
        source: the file, for messages.
    """

    rules: tuple[Rule, ...] = ()
    source: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The rules' names, in the file's order."""
        return tuple(rule.name for rule in self.rules)


def read_rules(path: Path, vocabulary: Vocabulary, *, session_idle_s: float = LONGEST_IDLE_S) -> RuleSet:
    """Return the rules of a TOML file.

    Args:
        path: the file.
        vocabulary: the loaded model's, which reads the names of events.
        session_idle_s: idle time that ends a session; an idle rule has to come before.

    Raises:
        RulesError: the file cannot be read, or a rule cannot be used; all faults that were found.
    """
    return parse_rules(read_table(path), vocabulary, source=str(path), session_idle_s=session_idle_s)


def read_table(path: Path) -> dict[str, Any]:
    """Return a TOML file as it is written; raise `RulesError` if it cannot be read."""
    try:
        # Some editors write a byte order mark.
        return tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as exc:
        raise RulesError([f"{path}: {exc.strerror}"]) from exc
    except UnicodeDecodeError as exc:
        raise RulesError([f"{path}: expected UTF-8"]) from exc
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise RulesError([f"{path}: expected TOML: {exc}"]) from exc


def parse_rules(
    table: Mapping[str, Any], vocabulary: Vocabulary, *, source: str, session_idle_s: float = LONGEST_IDLE_S
) -> RuleSet:
    """Return the rules of a parsed file; see `read_rules`."""
    faults = [
        f"{source}: {key}: unknown field; expected [[rules]] and [[webhooks]] tables"
        for key in table
        if key not in _TABLES
    ]
    entries = table.get("rules", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RulesError([*faults, f"{source}: rules: expected [[rules]] tables"])
    if len(entries) > MOST_RULES:
        raise RulesError([*faults, f"{source}: rules: {len(entries)} rules; expected at most {MOST_RULES}"])
    rules: list[Rule] = []
    names: set[str] = set()
    for number, entry in enumerate(entries, start=1):
        name = entry.get("name")
        where = f"{source}: rule {name!r}" if isinstance(name, str) and name else f"{source}: rule number {number}"
        if isinstance(name, str) and name in names:
            faults.append(f"{where}: name: another rule has it")
        elif isinstance(name, str):
            names.add(name)
        rule, found = _rule(entry, vocabulary, session_idle_s)
        faults += [f"{where}: {fault}" for fault in found]
        if rule is not None:
            rules.append(rule)
    if faults:
        raise RulesError(faults)
    return RuleSet(tuple(rules), source)


def _rule(entry: Mapping[str, Any], vocabulary: Vocabulary, session_idle_s: float) -> tuple[Rule | None, list[str]]:
    """Return the rule of a table, None if it has faults; and these, each beginning with its field."""
    faults: list[str] = []
    values: dict[str, Any] = {}
    if "name" not in entry:
        faults.append("name: is missing")
    for field, given in entry.items():
        if field not in _TYPES:
            faults.append(f"{field}: unknown field{_did_you_mean(field, _TYPES)}")
            continue
        try:
            values[field] = _value(field, given)
        except msgspec.ValidationError as exc:
            faults.append(f"{field}: {_worded(field, str(exc))}")
    for field in ("events", "with_events", "without_events"):
        if field in values:
            values[field], unknown = _canonical_names(field, values[field], vocabulary)
            faults += unknown
    if "name" not in values:
        return None, faults
    rule = Rule(**values)
    # Later checks compare fields, and may only see those that are valid.
    faults += _contradictions(rule, session_idle_s)
    return (None if faults else rule), faults


def _value(field: str, given: Any) -> Any:  # noqa: ANN401 - TOML
    if field not in _TRUTHS and any(isinstance(one, bool) for one in (given if isinstance(given, list) else [given])):
        # msgspec takes a truth value for a number.
        raise msgspec.ValidationError("expected a number or a text, not true or false")
    # The bounds of numbers leave out those that are not finite.
    return msgspec.convert(given, _TYPES[field])


def _worded(field: str, message: str) -> str:
    """Return msgspec's message as the fault of a field."""
    message = message.partition(" - at ")[0]
    if field in ("starts", "ends"):
        return "expected a time with an offset, as 2026-12-01T00:00:00Z (RFC 3339)"
    if field == "control" and "Expected `float" in message:
        return "expected a share from 0 to 1"
    if field == "name" and "regex" in message:
        return "expected 1 to 64 of A-Z, a-z, 0-9, dot, underscore, hyphen"
    return in_words_of_toml(message)


def in_words_of_toml(message: str) -> str:
    """Return a message of msgspec with TOML's names of types."""
    for python, toml in _IN_TOML.items():
        message = message.replace(python, toml)
    return message[:1].lower() + message[1:]


def _canonical_names(field: str, names: Sequence[str], vocabulary: Vocabulary) -> tuple[list[str], list[str]]:
    canonical: list[str] = []
    faults: list[str] = []
    for name in names:
        own = vocabulary.canonical_name(name)
        if own == PURCHASE and field != "without_events":
            faults.append(f"{field}: {name!r} closes the session, and no rule fires on a closed one")
        elif own != PURCHASE and not vocabulary.knows(own) and own not in GA4_EVENT_NAMES:
            known = _did_you_mean(name, GA4_EVENT_NAMES)
            faults.append(f"{field}: unknown event name {name!r}, which the model's log did not have{known}")
        canonical.append(own)
    return canonical, faults


def _contradictions(rule: Rule, session_idle_s: float) -> list[str]:
    """Return why a rule of valid fields could never fire, or not as it says."""
    faults = []
    low, high = rule.band
    if low > high:
        given = [name for name in _PROBABILITY if getattr(rule, name) is not None]
        faults.append(f"{', '.join(given)}: the band is empty: no probability fulfils it")
    for least, most in _BANDS:
        smallest, largest = getattr(rule, least), getattr(rule, most)
        if smallest is not None and largest is not None and smallest > largest:
            faults.append(f"{least}, {most}: the band is empty: {smallest:g} is larger than {largest:g}")
    if rule.starts is not None and rule.ends is not None and rule.ends <= rule.starts:
        faults.append(f"ends: expected a time after starts, {rule.starts.isoformat()}")
    if rule.crosses_up == 0.0:
        faults.append("crosses_up: expected more than 0, below which no probability is")
    faults += _contradictions_of_names(rule)
    if rule.idle_seconds is not None:
        faults += [
            f"{name}: is known only at an event, and a rule with idle_seconds has none"
            for name in _OF_AN_EVENT
            if getattr(rule, name)
        ]
        if rule.idle_seconds >= session_idle_s:
            faults.append(f"idle_seconds: expected less than the {session_idle_s:g} s after which a session ends")
    return faults


def _contradictions_of_names(rule: Rule) -> list[str]:
    """Return why no session has the rule's names of events, or no event its properties."""
    faults = []
    both = set(rule.with_events) & set(rule.without_events)
    if both:
        faults.append(f"without_events: {min(both)!r} is in with_events too")
    if set(rule.events) and set(rule.events) <= set(rule.without_events):
        faults.append("without_events: has every name of events, and this event counts")
    for name, texts in rule.texts.items():
        if not texts:
            faults.append("properties: a value is empty")
        elif any(map(has_forbidden_character, (name, *texts))) or max(map(len, texts)) > _LONGEST_VALUE:
            faults.append(
                f"properties: {name!r}: no event has a name or value with control characters, or a value longer than "
                f"{_LONGEST_VALUE} characters"
            )
    if rule.max_events is not None and len(set(rule.with_events)) > rule.max_events:
        faults.append(f"max_events: with_events has more names than {rule.max_events}")
    return faults


def _did_you_mean(word: str, known: Any) -> str:  # noqa: ANN401 - any collection of texts
    close = get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _listed(value: PropertyValue | list[PropertyValue]) -> list[PropertyValue]:
    return value if isinstance(value, list) else [value]
