"""`willbuy interventions check`: what each rule would have done on past sessions."""

import polars as pl
import pytest
from support.artifacts import write_artifact

from model.events import Event, canonical_event_name
from model.interventions.rules import RulesError, parse_rules
from training.commands.interventions import count_firings, run_check
from training.config import CheckSettings
from training.data.sources.canonical import write_events

BEGAN_MS = 1_795_342_600_000


class Vocabulary:
    canonical_name = staticmethod(canonical_event_name)

    def knows(self, _event_name):
        return True


def firings(rules, sessions):
    """Count over sessions of (seconds, name, price, probability), by id, and whether they bought."""
    events = {
        name: [Event(event, BEGAN_MS + 1000 * after_s, price=price) for after_s, event, price, _ in steps]
        for name, (steps, _) in sessions.items()
    }
    scores = {name: [score for *_, score in steps] for name, (steps, _) in sessions.items()}
    outcomes = {name: bought for name, (_, bought) in sessions.items()}
    found = count_firings(parse_rules({"rules": rules}, Vocabulary(), source="rules.toml"), events, scores, outcomes)
    return {one.rule.name: one for one in found}


CART = [(0, "view_item", 20.0, 0.1), (10, "add_to_cart", 20.0, 0.3), (200, "view_cart", None, 0.5)]


def test_a_rule_is_counted_once_a_session_with_its_place_and_the_later_buyers():
    found = firings(
        [
            {"name": "up", "crosses_up": 0.3, "control": 1.0},
            {"name": "often", "repeat": True, "probability_above": 0.2},
            {"name": "never", "probability_above": 0.9},
        ],
        {"a": (CART, True), "b": (CART, False), "c": ([(0, "search", None, 0.1)], True)},
    )
    up, often, never = found["up"], found["often"], found["never"]
    assert (up.sessions, up.buyers, up.held, up.decisions) == (2, 1, 2, 2)
    assert (up.numbers, up.shares) == ([2, 2], [2 / 3, 2 / 3])
    assert (often.sessions, often.decisions) == (2, 4)
    assert (never.sessions, never.decisions, never.numbers) == (0, 0, [])


def test_idle_time_is_that_between_events_and_after_the_last_one_of_who_did_not_buy():
    rules = [{"name": "idle", "idle_seconds": 90, "cart_value_at_least": 10}]
    short = [(0, "add_to_cart", 20.0, 0.3), (89, "view_cart", None, 0.5)]
    found = firings(rules, {"gap": (CART, True), "left": (short, False), "bought": (short, True)})["idle"]
    assert (found.sessions, found.buyers, found.numbers) == (2, 1, [2, 2])
    assert found.times_ms[0] == BEGAN_MS + 10_000 + 90_000


def test_start_and_end_do_not_count_and_a_cap_is_told_beside():
    rules = [{"name": "r", "ends": "2020-01-01T00:00:00Z", "cap_per_hour": 3, "repeat": True}]
    steps = [(600 * number, "page_view", None, 0.1) for number in range(13)]
    found = firings(rules, {"s": (steps, False)})["r"]
    # At 0, 10 and 20 minutes, then from the 60th minute on three again
    assert (found.decisions, found.within_cap) == (13, 7)


def test_the_command_decides_on_a_log(tmp_path, capsys):
    rows = [(f"s{session}", BEGAN_MS + 1000 * at, name) for session in range(40) for at, name in enumerate(NAMES)]
    # A day later, since sessions that the log's end may have cut off are left out
    rows.append(("last", BEGAN_MS + 86_400_000, "page_view"))
    columns = dict(zip(("session_id", "timestamp_ms", "event_name"), zip(*rows, strict=True), strict=True))
    outcome = [session < "s2" for session in columns["session_id"]]
    write_events(pl.DataFrame({**columns, "outcome": outcome}), tmp_path / "log.parquet", clock="calendar")
    rules = tmp_path / "rules.toml"
    rules.write_text(
        '[[rules]]\nname = "third"\nmin_events = 3\ncap_per_hour = 10\n'
        '[[rules]]\nname = "search"\nevents = ["search"]\n'
    )
    artifact = write_artifact(tmp_path / "model.pt")

    third, search = run_check(rules, tmp_path / "log.parquet", CheckSettings(artifact=artifact))

    assert (third.sessions, third.numbers[:1], third.within_cap) == (40, [3], 10)
    assert search.sessions == 0
    assert "40 past sessions" in capsys.readouterr().out


NAMES = ("page_view", "view_item", "view_item", "view_cart")


def test_a_fault_of_the_file_is_told_with_file_rule_and_field(tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rules]]\nname = "third"\nevents = ["serch"]\n')
    with pytest.raises(RulesError, match=r"rules\.toml: rule 'third': events: unknown event name 'serch'"):
        run_check(rules, tmp_path, CheckSettings(artifact=write_artifact(tmp_path / "model.pt")))
