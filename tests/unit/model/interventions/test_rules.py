from datetime import UTC, datetime

import pytest

from model.events import canonical_event_name
from model.interventions.rules import RulesError, read_rules


class Vocabulary:
    """A model that knows the shop's own name `size_guide` beside those of Google Analytics 4."""

    def canonical_name(self, event_name):
        return canonical_event_name(event_name)

    def knows(self, event_name):
        return event_name in {"page_view", "view_item", "size_guide"}


def read(tmp_path, text, **limits):
    path = tmp_path / "rules.toml"
    path.write_text(text, "utf-8")
    return read_rules(path, Vocabulary(), **limits)


def faults(tmp_path, text, **limits):
    with pytest.raises(RulesError) as caught:
        read(tmp_path, text, **limits)
    return [fault.removeprefix(f"{tmp_path / 'rules.toml'}: ") for fault in caught.value.faults]


def rule(fields):
    return f'[[rules]]\nname = "voucher"\n{fields}\n'


def test_every_field_is_read(tmp_path):
    (found,) = read(
        tmp_path,
        rule(
            """
            events = ["View Cart", "size_guide"]
            with_events = ["add_to_cart"]
            without_events = ["begin_checkout", "purchase"]
            properties = { device = "mobile", visits = [1, 2], member = true }
            probability_above = 0.1
            probability_below = 0.9
            crosses_up = 0.3
            min_events = 3
            max_events = 30
            cart_value_at_least = 40
            cart_value_at_most = 400.5
            control = 0.2
            cap_per_hour = 100
            starts = 2026-12-01T00:00:00+01:00
            ends = "2026-12-24T00:00:00Z"
            repeat = true
            salt = "winter"
            tell_control = true
            """
        ),
    ).rules
    assert found.events == ["view_cart", "size_guide"]
    assert found.starts == datetime(2026, 11, 30, 23, tzinfo=UTC)
    assert found.ends == datetime(2026, 12, 24, tzinfo=UTC)
    assert found.texts == {"device": {"mobile"}, "visits": {"1", "2"}, "member": {"true"}}
    low, high = found.band
    assert (low, high < 0.9) == (0.3, True)


def test_a_file_without_rules_is_a_set_without_rules(tmp_path):
    assert read(tmp_path, "").rules == ()


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ("probabilty_above = 0.3", "probabilty_above: unknown field; did you mean 'probability_above'?"),
        ('events = ["view_itm"]', "events: unknown event name 'view_itm', which the model's log did not have; "),
        ('without_events = ["?"]', "without_events: unknown event name '?'"),
        ('events = ["order_completed"]', "events: 'order_completed' closes the session"),
        ("events = []", "events: expected a list of length >= 1"),
        ('events = "view_item"', "events: expected a list, got a text"),
        ("control = 1.2", "control: expected a share from 0 to 1"),
        ("control = -0.1", "control: expected a share from 0 to 1"),
        ("control = nan", "control: expected a share from 0 to 1"),
        ("probability_above = 20", "probability_above: expected a number <= 1.0"),
        ("probability_above = true", "probability_above: expected a number or a text, not"),
        ("probability_above = 1", "probability_above: the band is empty"),
        ("probability_below = 0.0", "probability_below: the band is empty"),
        ("probability_between = [0.5, 0.4]", "probability_between: the band is empty"),
        ("probability_between = [0.5]", "probability_between: expected a list of length >= 2"),
        ("probability_above = 0.5\nprobability_below = 0.5", "probability_above, probability_below: the band is empty"),
        ("crosses_up = 0.5\ncrosses_down = 0.5", "crosses_up, crosses_down: the band is empty"),
        ("min_events = 5\nmax_events = 4", "min_events, max_events: the band is empty: 5 is larger than 4"),
        ("min_events = 0", "min_events: expected a whole number >= 1"),
        ("cart_value_at_least = 2\ncart_value_at_most = 1", "cart_value_at_least, cart_value_at_most: the band is"),
        ("cart_value_at_least = inf", "cart_value_at_least: expected"),
        ("cart_value_at_least = nan", "cart_value_at_least: expected a number >= 0.0"),
        ("probability_between = [0.1, nan]", "probability_between: expected a number >= 0.0"),
        ("cap_per_hour = 0", "cap_per_hour: expected a whole number >= 1"),
        ("starts = 2026-12-02T00:00:00Z\nends = 2026-12-01T00:00:00Z", "ends: expected a time after starts"),
        ("starts = 2026-12-01T00:00:00Z\nends = 2026-12-01T00:00:00Z", "ends: expected a time after starts"),
        ("starts = 2026-12-02T00:00:00", "starts: expected a time with an offset"),
        ('ends = "tomorrow"', "ends: expected a time with an offset"),
        ('with_events = ["search"]\nwithout_events = ["search"]', "without_events: 'search' is in with_events too"),
        ('events = ["search"]\nwithout_events = ["search"]', "without_events: has every name of events"),
        ('properties = { device = "" }', "properties: a value is empty"),
        ('properties = { device = "a\\u0000b" }', "properties: 'device': no event has a name or value with control"),
        ('properties = { "a\\u0085" = "b" }', "properties: 'a\\x85': no event has"),
        (f'properties = {{ device = ["a", "{"b" * 257}"] }}', "properties: 'device': no event has"),
        ('properties = { "" = "b" }', "properties: expected a text of length >= 1"),
        ("properties = { device = { a = 1 } }", "properties: expected a text, a number, true or false, or a list, got"),
        ("crosses_up = 0.0", "crosses_up: expected more than 0"),
        ('with_events = ["search", "view_cart"]\nmax_events = 1', "max_events: with_events has more names than 1"),
        ('probability_between = "0.1-0.4"', "probability_between: expected a list, got a text"),
        ('control = "20 %"', "control: expected a share from 0 to 1"),
        ("idle_seconds = 90\ncrosses_up = 0.3", "crosses_up: is known only at an event"),
        ("idle_seconds = 90\ncrosses_down = 0.3", "crosses_down: is known only at an event"),
        ('idle_seconds = 90\nevents = ["view_item"]', "events: is known only at an event"),
        ("idle_seconds = 90\nproperties = { a = 1 }", "properties: is known only at an event"),
        ("idle_seconds = 1800", "idle_seconds: expected less than the 1800 s after which a session ends"),
        ("idle_seconds = 0.2", "idle_seconds: expected a number >= 1.0"),
        ('repeat = "always"', "repeat: expected true or false, got a text"),
        ('salt = ""', "salt: expected a text of length >= 1"),
    ],
)
def test_a_fault_names_file_rule_and_field(tmp_path, fields, fault):
    (found,) = faults(tmp_path, rule(fields), session_idle_s=1800)
    assert found.startswith(f"rule 'voucher': {fault}")


@pytest.mark.parametrize(
    "fields",
    [
        "probability_between = [0.5, 0.5]",
        "min_events = 3\nmax_events = 3",
        "cart_value_at_least = 2\ncart_value_at_most = 2",
        "starts = 2026-12-01T00:00:00Z\nends = 2026-12-01T00:00:01Z",
        'events = ["search", "view_cart"]\nwithout_events = ["search"]',
        'with_events = ["search", "view_cart"]\nmax_events = 2',
        f'properties = {{ device = "{"b" * 256}" }}',
        "idle_seconds = 1799",
        "control = 0.0",
        "control = 1.0",
    ],
)
def test_what_a_session_can_just_fulfil_is_no_fault(tmp_path, fields):
    assert read(tmp_path, rule(fields), session_idle_s=1800).names == ("voucher",)


def test_a_file_may_have_sixty_four_rules(tmp_path):
    text = "".join(f"[[rules]]\nname = 'r{number}'\n" for number in range(64))
    assert len(read(tmp_path, text).rules) == 64


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[[rules]]\ncontrol = 0.1", "rule number 1: name: is missing"),
        ('[[rules]]\nname = "no blanks"', "rule 'no blanks': name: expected 1 to 64 of"),
        ("[[rules]]\nname = 7", "rule number 1: name: expected a text, got a whole number"),
        (rule("") + rule(""), "rule 'voucher': name: another rule has it"),
        ("rules = 3", "rules: expected [[rules]] tables"),
        ("[rules]\nname = 'x'", "rules: expected [[rules]] tables"),
        ("[[rule]]\nname = 'x'", "rule: unknown field; expected [[rules]] and [[webhooks]] tables"),
        ("rules = [", "expected TOML: "),
        ("".join(f"[[rules]]\nname = 'r{number}'\n" for number in range(65)), "rules: 65 rules; expected at most 64"),
    ],
)
def test_a_fault_of_the_file(tmp_path, text, fault):
    (found,) = faults(tmp_path, text)
    assert found.startswith(fault)


def test_all_faults_are_told_at_once(tmp_path):
    assert len(faults(tmp_path, rule("control = 3\nmin_events = 0") + "[[rules]]\nname = 'b'\nends = 1\n")) == 3


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(RulesError, match="No such file"):
        read_rules(tmp_path / "missing.toml", Vocabulary())
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(RulesError, match="expected UTF-8"):
        read_rules(tmp_path / "latin.toml", Vocabulary())


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    (tmp_path / "rules.toml").write_text(rule(""), "utf-8-sig")
    assert read_rules(tmp_path / "rules.toml", Vocabulary()).names == ("voucher",)
