"""From a session's facts and an event to decisions; the only place that says whether a rule fires.

Facts are what rules ask of a session's past and what its other columns do not tell: the value of its cart, the names of
its events, and its visitor. They are bytes, so that a record stores them as they are:

    bytes  facts, little endian
        8  units in the cart, float64
        8  cart value, float64
        2  n, number of names
      4 n  code of each name, in the order of first use
           the visitor's id, UTF-8, up to the end; empty: none was sent
"""

import struct
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import lru_cache
from hashlib import blake2b
from typing import Final, Literal, NamedTuple

import msgspec

from model.events import ADD_TO_CART, REMOVE_FROM_CART, Event, identifier_code
from model.interventions.rules import Rule, RuleSet
from model.text_rules import canonical_text

_HEAD: Final = struct.Struct("<ddH")
_CODE: Final = struct.Struct("<I")
NO_FACTS: Final = _HEAD.pack(0.0, 0.0, 0)
_CART_SIGNS: Final = {ADD_TO_CART: 1.0, REMOVE_FROM_CART: -1.0}
_SHARES: Final = 2**64
_FOREVER_MS: Final = 2**62
_MOST_EVENTS: Final = 2**62


class Group(IntEnum):
    """What a session is to a rule's experiment."""

    TREATMENT = 0
    CONTROL = 1

    @property
    def word(self) -> Literal["treatment", "control"]:
        """Its name in the API."""
        return "control" if self else "treatment"


class Decision(msgspec.Struct, frozen=True, array_like=True):
    """That a rule has fired in a session. Stored: a further field goes to the end and has a default.

    Attributes:
        rule: name of the rule.
        group: whether the session is treated or held out.
        probability: the session's, at that moment.
        event: number of the session's events then, from 1; that of the event at which it fired.
        decided_ms: the server's clock.
        idle: whether it fired after idle time, and not at an event.
        told: whether answers and streams contain it: treatment, or a control group that the rule tells.
    """

    rule: str
    group: Group
    probability: float
    event: int
    decided_ms: int
    idle: bool = False
    told: bool = True


class _Check(NamedTuple):
    """A rule's conditions in the form in which they are checked, the ones that fail most often first."""

    low: float
    high: float
    least: int
    most: int
    rule: Rule
    starts_ms: int
    ends_ms: int
    texts: tuple[tuple[str, frozenset[str]], ...]
    wanted: tuple[bytes, ...]
    unwanted: tuple[bytes, ...]
    has_cart: bool


class Decider:
    """Decides by a set of rules.

    Args:
        rules: the set.

    Attributes:
        caps: the cap an hour of each rule that has one, by name.
        idle: the rules that fire after idle time.
    """

    def __init__(self, rules: RuleSet) -> None:
        self.rules = rules
        self.caps = {rule.name: rule.cap_per_hour for rule in rules.rules if rule.cap_per_hour is not None}
        self.idle = tuple(rule for rule in rules.rules if rule.idle_seconds is not None)
        checks = [_check(rule) for rule in rules.rules if rule.idle_seconds is None]
        self._of_any = tuple(check for check in checks if not check.rule.events)
        names = {name for check in checks for name in check.rule.events}
        self._of_event = {
            name: tuple(check for check in checks if not check.rule.events or name in check.rule.events)
            for name in names
        }
        self._idle_checks = {rule.name: _check(rule) for rule in self.idle}

    def at_event(
        self,
        session_id: str,
        event: Event,
        *,
        number: int,
        before: float | None,
        probability: float,
        facts: bytes,
        decided: Sequence[Decision],
        now_ms: int,
    ) -> tuple[Decision, ...]:
        """Return the decisions at a folded event, in the order of the file.

        Args:
            session_id: the session.
            event: the event.
            number: of the session's events, this one included.
            before: the probability before the event; None: it is the first.
            probability: the one after it.
            facts: the session's, this event included.
            decided: decisions of the session so far.
            now_ms: the server's clock.
        """
        found: tuple[Decision, ...] = ()
        for check in self._of_event.get(event.event_name, self._of_any):
            low, high, least, most, *_ = check
            if low <= probability <= high and least <= number <= most:  # noqa: SIM102 - most rules end here
                if _fits_event(check, event, before) and _fits_session(check, facts, decided, now_ms):
                    found += (_decision(check.rule, session_id, number, probability, facts, decided, now_ms),)
        return found

    def after_idle_time(
        self,
        rule: Rule,
        session_id: str,
        *,
        number: int,
        probability: float,
        facts: bytes,
        decided: Sequence[Decision],
        now_ms: int,
    ) -> Decision | None:
        """Return the decision of an idle rule on a session whose idle time has reached the rule's; None: not fired."""
        check = self._idle_checks[rule.name]
        if not (check.low <= probability <= check.high and check.least <= number <= check.most):
            return None
        if any(one.rule == rule.name and one.idle and one.event == number for one in decided):
            # Of a repeated rule: this idle time has its decision.
            return None
        if not _fits_session(check, facts, decided, now_ms):
            return None
        decision = _decision(rule, session_id, number, probability, facts, decided, now_ms)
        return msgspec.structs.replace(decision, idle=True)


def advanced_facts(facts: bytes, event: Event, visitor_id: str | None = None) -> bytes:
    """Return a session's facts after one more event, which came with this visitor's id or without one."""
    code = _code_of(event.event_name)
    units, value, count = _HEAD.unpack_from(facts)
    end = _HEAD.size + count * _CODE.size
    sign = _CART_SIGNS.get(event.event_name)
    is_known = _has(facts, code, end)
    visitor = facts[end:] if visitor_id is None else visitor_id.encode("utf-8", "surrogatepass")
    if is_known and sign is None and (visitor_id is None or visitor == facts[end:]):
        return facts
    if sign is not None:
        moved = sign * (1.0 if event.quantity is None else event.quantity)
        units, value = max(0.0, units + moved), max(0.0, value + moved * (event.price or 0.0))
        # As in the model: an empty cart is worth nothing, even if what left it came without a price.
        value = value if units else 0.0
    names = facts[_HEAD.size : end] + (b"" if is_known else code)
    return _HEAD.pack(units, value, len(names) // _CODE.size) + names + visitor


def facts_of(history: Iterable[Event]) -> bytes:
    """Return the facts of a session after these events; the visitor is not known, as histories do not have it."""
    facts = NO_FACTS
    for event in history:
        facts = advanced_facts(facts, event)
    return facts


def cart_value(facts: bytes) -> float:
    """Return the value of the cart: what was added, less what was removed, never negative."""
    return float(_HEAD.unpack_from(facts)[1])


def visitor_of(facts: bytes) -> str | None:
    """Return the visitor's id that the session's last event with one had, or None."""
    count: int = _HEAD.unpack_from(facts)[2]
    return facts[_HEAD.size + count * _CODE.size :].decode("utf-8", "surrogatepass") or None


def group_of(rule: Rule, unit: str) -> Group:
    """Return the group of a session or visitor: always the same for the same salt, id and share.

    A larger share keeps all that were held out before: the hash is compared with the share.
    """
    if not rule.control:
        return Group.TREATMENT
    salt = (rule.salt or rule.name).encode()
    digest = blake2b(unit.encode("utf-8", "surrogatepass"), digest_size=8, key=blake2b(salt, digest_size=32).digest())
    is_held_out = int.from_bytes(digest.digest(), "little") < rule.control * _SHARES
    return Group.CONTROL if is_held_out else Group.TREATMENT


def _decision(
    rule: Rule,
    session_id: str,
    number: int,
    probability: float,
    facts: bytes,
    decided: Sequence[Decision],
    now_ms: int,
) -> Decision:
    # A rule that fires again keeps its group, although a visitor's id may have come since.
    before = next((one.group for one in decided if one.rule == rule.name), None)
    group = group_of(rule, visitor_of(facts) or session_id) if before is None else before
    return Decision(rule.name, group, probability, number, now_ms, told=group is Group.TREATMENT or rule.tell_control)


def _fits_event(check: _Check, event: Event, before: float | None) -> bool:
    rule = check.rule
    if rule.crosses_up is not None and (before is None or before >= rule.crosses_up):
        return False
    if rule.crosses_down is not None and (before is None or before < rule.crosses_down):
        return False
    given = event.properties
    return all(canonical_text(given.get(name)) in texts for name, texts in check.texts)


def _fits_session(check: _Check, facts: bytes, decided: Sequence[Decision], now_ms: int) -> bool:
    rule = check.rule
    if not check.starts_ms <= now_ms < check.ends_ms:
        return False
    if decided and not rule.repeat and any(one.rule == rule.name for one in decided):
        return False
    if check.has_cart:
        value = cart_value(facts)
        if rule.cart_value_at_least is not None and value < rule.cart_value_at_least:
            return False
        if rule.cart_value_at_most is not None and value > rule.cart_value_at_most:
            return False
    if not check.wanted and not check.unwanted:
        return True
    end = _HEAD.size + _HEAD.unpack_from(facts)[2] * _CODE.size
    return all(_has(facts, code, end) for code in check.wanted) and not any(
        _has(facts, code, end) for code in check.unwanted
    )


def _check(rule: Rule) -> _Check:
    low, high = rule.band
    return _Check(
        low,
        high,
        rule.min_events or 1,
        rule.max_events or _MOST_EVENTS,
        rule,
        0 if rule.starts is None else round(rule.starts.timestamp() * 1000),
        _FOREVER_MS if rule.ends is None else round(rule.ends.timestamp() * 1000),
        tuple(rule.texts.items()),
        tuple(map(_code_of, rule.with_events)),
        tuple(map(_code_of, rule.without_events)),
        rule.cart_value_at_least is not None or rule.cart_value_at_most is not None,
    )


def _has(facts: bytes, code: bytes, end: int) -> bool:
    place = facts.find(code, _HEAD.size, end)
    while place >= 0 and (place - _HEAD.size) % _CODE.size:
        # Found across two codes.
        place = facts.find(code, place + 1, end)
    return place >= 0


@lru_cache(maxsize=4096)
def _code_of(event_name: str) -> bytes:
    """Return four bytes for a name; two names share them with a probability of 2**-32 a pair."""
    return _CODE.pack(identifier_code(event_name) & 0xFFFFFFFF)
