"""From a session's facts and an event to decisions; the only place that says whether a rule fires.

Facts are what rules ask of a session's past and what its other columns do not tell: the value of its cart, the names of
its events, and its visitor. They are bytes, so that a record stores them as they are:

    bytes  facts, little endian
        8  units in the cart, float64
        8  cart value, float64
        2  v, size of the visitor's id
        v  the visitor's id, UTF-8; empty: none was sent
           four bytes for each name, in the order of first use, up to the end
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import cached_property, lru_cache
from hashlib import blake2b
from math import inf, nextafter
from typing import Final, Literal

import msgspec

from model.events import ADD_TO_CART, REMOVE_FROM_CART, Event, identifier_code
from model.interventions.rules import MOST_RULES, Rule, RuleSet
from model.text_rules import canonical_text

_CART: Final = struct.Struct("<dd")
_SIZE: Final = struct.Struct("<H")
_CODE: Final = struct.Struct("<I")
_CART_VALUE: Final = struct.Struct("<d")
_CART_VALUE_AT: Final = 8
_VISITOR_SIZE_AT: Final = _CART.size
_NAMES_AT: Final = _CART.size + _SIZE.size
NO_FACTS: Final = _CART.pack(0.0, 0.0) + _SIZE.pack(0)
_CART_SIGNS: Final = {ADD_TO_CART: 1.0, REMOVE_FROM_CART: -1.0}
_SHARES: Final = 2**64
_FOREVER_MS: Final = 2**62
_MOST_EVENTS: Final = 2**62
_NO_PROBABILITY: Final = -1.0


class Group(IntEnum):
    """What a session is to a rule's experiment."""

    TREATMENT = 0
    CONTROL = 1

    @property
    def word(self) -> Literal["treatment", "control"]:
        """Its name in the API."""
        return "control" if self else "treatment"


class Decision(msgspec.Struct, frozen=True, array_like=True, gc=False):
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


class Decisions(tuple[Decision, ...]):
    """The decisions of a session, in their order; what every event needs of them is computed once."""

    @cached_property
    def rules(self) -> frozenset[str]:
        """Names of the rules that have fired."""
        return frozenset(one.rule for one in self)

    @cached_property
    def packed(self) -> bytes:
        """A MessagePack array of arrays, of which `decoded_decisions` is the inverse."""
        return _encode(self)


NO_DECISIONS: Final = Decisions()
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[Decision, ...]).decode


@lru_cache(maxsize=4096)
def decoded_decisions(packed: bytes) -> Decisions:
    """Return packed decisions; cached, since a session's are the same at most of its events.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError: the bytes are not ones that this release can read.
    """
    return Decisions(_decode(packed))


class _Check:
    """A rule's conditions in the form in which they are checked at every event.

    A class with slots, since reading an attribute of one takes half the time of a named tuple's.
    """

    __slots__ = (
        "before_from",
        "before_to",
        "ends_ms",
        "fewest",
        "has_cart",
        "high",
        "least_cart",
        "low",
        "most",
        "most_cart",
        "name",
        "once",
        "rule",
        "starts_ms",
        "texts",
        "unwanted",
        "wanted",
    )

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.name = rule.name
        self.once = not rule.repeat
        self.low, self.high = rule.band
        self.fewest = rule.min_events or 1
        self.most = rule.max_events or _MOST_EVENTS
        # Where the probability before the event lies; `_NO_PROBABILITY` of a first event crosses nothing.
        crosses = rule.crosses_up is not None or rule.crosses_down is not None
        self.before_from = (rule.crosses_down or 0.0) if crosses else _NO_PROBABILITY
        self.before_to = inf if rule.crosses_up is None else rule.crosses_up
        self.texts = tuple(rule.texts.items())
        self.starts_ms = 0 if rule.starts is None else round(rule.starts.timestamp() * 1000)
        self.ends_ms = _FOREVER_MS if rule.ends is None else round(rule.ends.timestamp() * 1000)
        self.has_cart = rule.cart_value_at_least is not None or rule.cart_value_at_most is not None
        self.least_cart = rule.cart_value_at_least or 0.0
        self.most_cart = inf if rule.cart_value_at_most is None else rule.cart_value_at_most
        self.wanted = tuple(map(_code_of, rule.with_events))
        self.unwanted = tuple(map(_code_of, rule.without_events))

    def fits(self, facts: bytes, now_ms: int, event: Event | None) -> bool:
        """Return whether the conditions hold, after an event or, with None, idle time.

        Not those on probabilities and number of events, nor whether the rule has fired before.
        """
        if event is not None:
            for name, texts in self.texts:
                if canonical_text(event.properties.get(name)) not in texts:
                    return False
        if self.has_cart:
            (value,) = _CART_VALUE.unpack_from(facts, _CART_VALUE_AT)
            if not self.least_cart <= value <= self.most_cart:
                return False
        for code in self.unwanted:
            if code in facts:
                return False
        for code in self.wanted:
            if code not in facts:
                return False
        return self.starts_ms <= now_ms < self.ends_ms


class _Bands:
    """The checks of rules by probability: for each interval between two bounds, those whose band contains it.

    So a search replaces the comparison with each rule's band, which most rules fail at most events.
    """

    __slots__ = ("bounds", "checks")

    def __init__(self, checks: Sequence[_Check]) -> None:
        self.bounds = sorted({bound for check in checks for bound in (check.low, nextafter(check.high, inf))})
        self.checks = [
            tuple(check for check in checks if check.low <= begin <= check.high) for begin in (-inf, *self.bounds)
        ]


class Decider:
    """Decides by a set of rules.

    Args:
        rules: the set.

    Attributes:
        caps: the cap an hour of each rule that has one, by name.
        idle: the rules that fire after idle time.
        asks_facts: whether a rule asks for the cart, for names of former events, or for the visitor, who chooses its
            group. Where none does, and no visitor's id is sent, records need no facts.
    """

    def __init__(self, rules: RuleSet) -> None:
        self.rules = rules
        self.asks_facts = any(map(_asks_facts, rules.rules))
        self.caps = {rule.name: rule.cap_per_hour for rule in rules.rules if rule.cap_per_hour is not None}
        self.idle = tuple(rule for rule in rules.rules if rule.idle_seconds is not None)
        checks = [_Check(rule) for rule in rules.rules if rule.idle_seconds is None]
        self._of_any = _Bands([check for check in checks if not check.rule.events])
        self._of_event = {
            name: _Bands([check for check in checks if not check.rule.events or name in check.rule.events])
            for name in {name for check in checks for name in check.rule.events}
        }
        self._of_idle = {rule.name: _Check(rule) for rule in self.idle}

    def at_event(
        self,
        session_id: str,
        event: Event,
        *,
        number: int,
        before: float | None,
        probability: float,
        facts: bytes,
        decided: Decisions,
        now_ms: int,
    ) -> tuple[Decision, ...]:
        """Return the decisions at a folded event, in the order of the file.

        Args:
            session_id: the session.
            event: the event.
            number: of the session's events, this one included.
            before: the probability before the event; None: it is the first.
            probability: the one after it.
            facts: the session's, this event included; `NO_FACTS` where no rule asks for them.
            decided: decisions of the session so far.
            now_ms: the server's clock.
        """
        bands = self._of_event.get(event.event_name, self._of_any)
        found: tuple[Decision, ...] = ()
        former = _NO_PROBABILITY if before is None else before
        for check in bands.checks[bisect_right(bands.bounds, probability)]:
            # Here and not in `fits`, since most rules end here and a call takes longer than the comparisons.
            if number < check.fewest or number > check.most or (check.once and check.name in decided.rules):
                continue
            if check.before_from <= former < check.before_to and check.fits(facts, now_ms, event):
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
        check = self._of_idle[rule.name]
        if not (check.low <= probability <= check.high and check.fewest <= number <= check.most):
            return None
        if not check.fits(facts, now_ms, None):
            return None
        # Of a repeated rule: whether this idle time has its decision.
        if any(one.rule == rule.name and (check.once or (one.idle and one.event == number)) for one in decided):
            return None
        decision = _decision(rule, session_id, number, probability, facts, decided, now_ms)
        return msgspec.structs.replace(decision, idle=True)


def advanced_facts(facts: bytes, event: Event, visitor_id: str | None = None) -> bytes:
    """Return a session's facts after one more event, which came with this visitor's id or without one."""
    name = event.event_name
    code = _code_of(name)
    if (sign := _CART_SIGNS.get(name)) is not None:
        facts = _moved_cart(facts, event, sign)
    if code not in facts:
        facts += code
    if visitor_id is not None and visitor_id != visitor_of(facts):
        visitor = visitor_id.encode()
        facts = b"".join((facts[:_VISITOR_SIZE_AT], _SIZE.pack(len(visitor)), visitor, facts[_names_start(facts) :]))
    return facts


def _moved_cart(facts: bytes, event: Event, sign: float) -> bytes:
    """Return the facts with what the event added to the cart, or removed from it."""
    units, value = _CART.unpack_from(facts)
    moved = sign * (1.0 if event.quantity is None else event.quantity)
    units, value = max(0.0, units + moved), max(0.0, value + moved * (event.price or 0.0))
    # As in the model: an empty cart is worth nothing, even if what left it came without a price.
    return _CART.pack(units, value if units else 0.0) + facts[_VISITOR_SIZE_AT:]


def facts_of(history: Iterable[Event]) -> bytes:
    """Return the facts of a session after these events; the visitor is not known, as histories do not have it."""
    facts = NO_FACTS
    for event in history:
        facts = advanced_facts(facts, event)
    return facts


def cart_value(facts: bytes) -> float:
    """Return the value of the cart: what was added, less what was removed, never negative."""
    return float(_CART_VALUE.unpack_from(facts, _CART_VALUE_AT)[0])


def cart_units(facts: bytes) -> float:
    """Return the number of units in the cart."""
    return float(_CART.unpack_from(facts)[0])


def visitor_of(facts: bytes) -> str | None:
    """Return the visitor's id that the session's last event with one had, or None."""
    return facts[_NAMES_AT : _names_start(facts)].decode() or None


def group_of(rule: Rule, unit: str) -> Group:
    """Return the group of a session or visitor: always the same for the same salt, id and share.

    A larger share keeps all that were held out before: the hash is compared with the share.
    """
    if not rule.control:
        return Group.TREATMENT
    digest = _salted(rule.salt or rule.name).copy()
    digest.update(unit.encode("utf-8", "surrogatepass"))
    is_held_out = int.from_bytes(digest.digest(), "little") < rule.control * _SHARES
    return Group.CONTROL if is_held_out else Group.TREATMENT


@lru_cache(maxsize=MOST_RULES)
def _salted(salt: str) -> blake2b:
    """Return a hash with a salt, to be copied."""
    return blake2b(digest_size=8, key=blake2b(salt.encode(), digest_size=32).digest())


def _asks_facts(rule: Rule) -> bool:
    has_cart = rule.cart_value_at_least is not None or rule.cart_value_at_most is not None
    return has_cart or bool(rule.with_events or rule.without_events) or 0.0 < rule.control < 1.0


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


def _names_start(facts: bytes) -> int:
    """Return where the codes of names begin."""
    return _NAMES_AT + facts[_VISITOR_SIZE_AT] + 256 * facts[_VISITOR_SIZE_AT + 1]


@lru_cache(maxsize=4096)
def _code_of(event_name: str) -> bytes:
    """Return four bytes for a name.

    They are looked for anywhere in the facts. Another name, or any other four bytes of the facts, are the same with a
    probability of 2**-32.
    """
    return _CODE.pack(identifier_code(event_name) & 0xFFFFFFFF)
