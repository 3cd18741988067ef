import math

import pytest

from model.events import Event, canonical_event_name
from model.interventions.decide import (
    NO_DECISIONS,
    NO_FACTS,
    Decider,
    Decision,
    Decisions,
    Group,
    advanced_facts,
    cart_value,
    facts_of,
    group_of,
    visitor_of,
)
from model.interventions.rules import Rule, parse_rules

NOW_MS = 1_795_342_600_000


class Vocabulary:
    canonical_name = staticmethod(canonical_event_name)

    def knows(self, _event_name):
        return True


def decider(**fields):
    return Decider(parse_rules({"rules": [{"name": "r", **fields}]}, Vocabulary(), source="rules.toml"))


def fires(which, event_name="page_view", *, history=(), now_ms=NOW_MS, **given):
    event = Event(event_name, NOW_MS, properties=given.pop("properties", {}))
    facts = facts_of([*history, event])
    values = {"number": len(history) + 1, "before": None, "probability": 0.5, "decided": NO_DECISIONS} | given
    return which.at_event("s", event, facts=facts, now_ms=now_ms, **values)


def added(price, quantity=None, name="add_to_cart"):
    return Event(name, NOW_MS, price=price, quantity=quantity)


@pytest.mark.parametrize(
    ("fields", "given", "expected"),
    [
        ({"probability_above": 0.5}, {"probability": 0.5}, False),
        ({"probability_above": 0.5}, {"probability": math.nextafter(0.5, 1)}, True),
        ({"probability_below": 0.5}, {"probability": 0.5}, False),
        ({"probability_below": 0.5}, {"probability": math.nextafter(0.5, 0)}, True),
        ({"probability_between": [0.4, 0.5]}, {"probability": 0.5}, True),
        ({"probability_between": [0.4, 0.5]}, {"probability": 0.4}, True),
        ({"probability_between": [0.4, 0.5]}, {"probability": 0.51}, False),
        ({"crosses_up": 0.5}, {"before": 0.49, "probability": 0.5}, True),
        ({"crosses_up": 0.5}, {"before": 0.5, "probability": 0.9}, False),
        ({"crosses_up": 0.5}, {"before": None, "probability": 0.9}, False),
        ({"crosses_down": 0.5}, {"before": 0.5, "probability": 0.49}, True),
        ({"crosses_down": 0.5}, {"before": 0.49, "probability": 0.4}, False),
        ({"crosses_down": 0.5}, {"before": 0.6, "probability": 0.5}, False),
        ({"min_events": 2}, {"number": 1}, False),
        ({"min_events": 2}, {"number": 2}, True),
        ({"max_events": 2}, {"number": 2}, True),
        ({"max_events": 2}, {"number": 3}, False),
        ({"properties": {"device": "mobile"}}, {"properties": {"device": " mobile"}}, True),
        ({"properties": {"device": "mobile"}}, {"properties": {"device": "desktop"}}, False),
        ({"properties": {"device": "mobile"}}, {}, False),
        ({"properties": {"visits": [1, 2]}}, {"properties": {"visits": 2.0}}, True),
        ({"properties": {"member": True}}, {"properties": {"member": "True"}}, True),
        ({"events": ["search"]}, {"event_name": "search"}, True),
        ({"events": ["search"]}, {"event_name": "page_view"}, False),
        ({"with_events": ["search"]}, {"history": [Event("search", 0)]}, True),
        ({"with_events": ["search"]}, {"event_name": "search"}, True),
        ({"with_events": ["search", "login"]}, {"history": [Event("search", 0)]}, False),
        ({"without_events": ["search"]}, {"history": [Event("search", 0)]}, False),
        ({"without_events": ["search"]}, {"event_name": "search"}, False),
        ({"without_events": ["search"]}, {"history": [Event("login", 0)]}, True),
        ({"cart_value_at_least": 60}, {"history": [added(20), added(20, 2)]}, True),
        ({"cart_value_at_least": 60.01}, {"history": [added(20), added(20, 2)]}, False),
        ({"cart_value_at_most": 0}, {"history": [added(20), added(20, name="remove_from_cart")]}, True),
        ({"cart_value_at_most": 0}, {"history": [added(20)]}, False),
        ({"starts": "2026-11-22T00:00:00Z"}, {"now_ms": 1_795_305_599_999}, False),
        ({"starts": "2026-11-22T00:00:00Z"}, {"now_ms": 1_795_305_600_000}, True),
        ({"ends": "2026-11-22T00:00:00Z"}, {"now_ms": 1_795_305_599_999}, True),
        ({"ends": "2026-11-22T00:00:00Z"}, {"now_ms": 1_795_305_600_000}, False),
        ({"idle_seconds": 90}, {}, False),
    ],
)
def test_conditions(fields, given, expected):
    given = dict(given)
    found = fires(decider(**fields), given.pop("event_name", "page_view"), **given)
    assert bool(found) is expected


def test_a_decision_is_made_once_a_session_unless_the_rule_repeats():
    before = Decisions([Decision("r", Group.CONTROL, 0.4, 1, NOW_MS)])
    assert fires(decider(), decided=before) == ()
    (again,) = fires(decider(repeat=True), decided=before, number=7)
    # It keeps the group that it had
    assert again == Decision("r", Group.CONTROL, 0.5, 7, NOW_MS, told=False)


def test_control_is_told_only_where_the_rule_says_so():
    (held_out,) = fires(decider(control=1.0))
    assert (held_out.group, held_out.told) == (Group.CONTROL, False)
    (held_out,) = fires(decider(control=1.0, tell_control=True))
    assert held_out.told


def test_a_group_is_stable_and_has_its_share():
    rule = Rule(name="r", control=0.2)
    groups = [group_of(rule, f"session {number}") for number in range(20_000)]
    assert abs(sum(groups) / 20_000 - 0.2) < 0.01
    assert groups == [group_of(rule, f"session {number}") for number in range(20_000)]
    # A larger share keeps who was held out; another salt chooses anew
    larger = [group_of(Rule(name="r", control=0.4), f"session {number}") for number in range(20_000)]
    assert all(new for old, new in zip(groups, larger, strict=True) if old)
    other = [group_of(Rule(name="q", control=0.2), f"session {number}") for number in range(20_000)]
    assert abs(sum(one and two for one, two in zip(groups, other, strict=True)) / 20_000 - 0.04) < 0.01
    assert other == [group_of(Rule(name="r", salt="q", control=0.2), f"session {number}") for number in range(20_000)]
    # Stored experiments depend on these very values
    assert [group_of(Rule(name="voucher", control=0.5), f"s-{number}").value for number in range(12)] == GOLDEN


GOLDEN = [1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 1, 0]


def test_the_rules_of_an_idle_session():
    which = decider(idle_seconds=90, cart_value_at_least=10, without_events=["begin_checkout"])
    (rule,) = which.idle
    given = {"number": 2, "probability": 0.3, "facts": facts_of([added(20)]), "now_ms": NOW_MS}
    fired = which.after_idle_time(rule, "s", decided=(), **given)
    assert fired == Decision("r", Group.TREATMENT, 0.3, 2, NOW_MS, idle=True)
    assert which.after_idle_time(rule, "s", decided=(fired,), **given) is None
    assert which.after_idle_time(rule, "s", decided=(), **given | {"facts": NO_FACTS}) is None


@pytest.mark.parametrize(("number", "expected"), [(1, False), (2, True), (4, True), (5, False)])
def test_an_idle_rule_counts_the_events_of_its_session(number, expected):
    which = decider(idle_seconds=90, min_events=2, max_events=4)
    (rule,) = which.idle
    found = which.after_idle_time(rule, "s", number=number, probability=0.3, facts=NO_FACTS, decided=(), now_ms=NOW_MS)
    assert (found is not None) is expected


def test_a_rule_that_fired_at_an_event_before_it_was_made_an_idle_rule_fires_after_the_same_event():
    which = decider(idle_seconds=90, repeat=True)
    (rule,) = which.idle
    at_event = Decision("r", Group.TREATMENT, 0.3, 2, NOW_MS)
    found = which.after_idle_time(
        rule, "s", number=2, probability=0.3, facts=NO_FACTS, decided=(at_event,), now_ms=NOW_MS
    )
    assert found == Decision("r", Group.TREATMENT, 0.3, 2, NOW_MS, idle=True)


def test_a_repeated_idle_rule_fires_once_in_an_idle_time():
    which = decider(idle_seconds=90, repeat=True)
    (rule,) = which.idle
    given = {"probability": 0.3, "facts": NO_FACTS, "now_ms": NOW_MS}
    fired = which.after_idle_time(rule, "s", number=2, decided=(), **given)
    assert which.after_idle_time(rule, "s", number=2, decided=(fired,), **given) is None
    assert which.after_idle_time(rule, "s", number=3, decided=(fired,), **given) is not None


def test_an_empty_cart_is_worth_nothing():
    facts = facts_of([added(20), Event("remove_from_cart", NOW_MS)])
    assert cart_value(facts) == 0
    assert cart_value(facts_of([added(20), added(30, 5, "remove_from_cart"), added(7)])) == 7
    # Nor is a cart with something in it worth less than that
    assert cart_value(facts_of([added(5, 2), added(20, 1, "remove_from_cart")])) == 0
    assert cart_value(facts_of([added(5, 2), added(20, 1, "remove_from_cart"), added(3)])) == 3


@pytest.mark.parametrize("size", [1, 64, 127, 128])
def test_a_visitors_id_of_any_length_leaves_the_other_facts(size):
    visitor = "\N{SHOPPING TROLLEY}" * size
    facts = advanced_facts(facts_of([Event("login", 0), added(20)]), Event("search", 0), visitor)
    for _ in range(2):
        assert (visitor_of(facts), cart_value(facts)) == (visitor, 20)
        assert len(facts) == len(NO_FACTS) + 4 * size + 3 * 4
        facts = advanced_facts(facts, Event("search", 0), visitor)
    assert visitor_of(advanced_facts(facts, Event("search", 0), "other")) == "other"
    assert len(advanced_facts(facts, Event("view_cart", 0))) == len(facts) + 4


def test_names_are_found_by_their_whole_code():
    names = [f"name {number}" for number in range(60)]
    facts = NO_FACTS
    for name in names:
        facts = advanced_facts(advanced_facts(facts, Event(name, 0)), Event(name, 0))
    assert len(facts) == len(NO_FACTS) + 4 * len(names)
    for name in names:
        assert fires(decider(with_events=[name]), name)
        others = [Event(other, 0) for other in names if other != name]
        assert not fires(decider(with_events=[name]), names[0] if name != names[0] else names[1], history=others)


def test_a_session_without_a_visitor_has_none():
    assert visitor_of(facts_of([Event("search", 0)])) is None
