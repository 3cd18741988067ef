"""Judges the decisions of rules: each once, none lost, no group changed, wherever they stand.

The histories give the events in the order of their commits, each with the score that was served. Deciding again over
them must give the decisions that stand there, and the stream of decisions and the answers must have the same ones.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from app.store.history_codec import Entry
from app.store.interventions import HandedOver
from app.store.record_codec import Outcome, Record
from faults.ledger import Ledger, Sent
from faults.verdict import Verdict
from model.events import canonical_event_name
from model.interventions.decide import Decider, Decision, Decisions, Group, facts_of
from model.interventions.rules import read_rules

CAP: Final = 20
IDLE_S: Final = 2
# Each condition that the state before and the event decide; and what depends on other sessions, or on time.
RULES: Final = f"""
[[rules]]
name = "second"
min_events = 2
control = 0.5

[[rules]]
name = "cart"
cart_value_at_least = 1
without_events = ["begin_checkout"]
control = 0.3

[[rules]]
name = "hesitant"
probability_between = [0.05, 0.6]

[[rules]]
name = "views"
events = ["view_item"]
repeat = true
control = 0.5

[[rules]]
name = "capped"
cap_per_hour = {CAP}

[[rules]]
name = "idle"
idle_seconds = {IDLE_S}
control = 0.5
"""
_OF_OTHERS: Final = frozenset({"capped", "idle"})

# Session, rule, number of the event, whether after idle time, group.
_Key = tuple[str, str, int, bool, str]


class _Vocabulary:
    canonical_name = staticmethod(canonical_event_name)

    def knows(self, _event_name: str) -> bool:
        return True


def write_rules(path: Path) -> Path:
    """Write the rules and return their path."""
    path.write_text(RULES)
    return path


def judge_decisions(
    verdict: Verdict,
    rules: Path,
    ledger: Ledger,
    sessions: Mapping[str, tuple[Record, Sequence[Entry]]],
    handed: Sequence[HandedOver],
) -> int:
    """Judge the decisions of all sessions, and return how many there are."""
    decider = Decider(read_rules(rules, _Vocabulary()))
    now_ms = time.time_ns() // 1_000_000
    stored: Counter[_Key] = Counter()
    for name, (record, entries) in sessions.items():
        _judge_session(verdict, decider, name, record, entries, now_ms)
        for sent in ledger.sessions[name].values():
            _judge_answers(verdict, sent, entries)
        stored.update(_key(name, one) for entry in entries for one in entry.decisions)
    in_stream: Counter[_Key] = Counter(
        (one.session_id, one.rule, one.event, one.idle, one.group) for one in handed if one.session_id in sessions
    )
    for key, count in (stored - in_stream).items():
        verdict.found("decisions_lost", f"{key} is not in the stream, {count} times")
    for key, count in (in_stream - stored).items():
        verdict.found("decisions_doubled", f"{key} is {count} times more in the stream than in the history")
    capped = sum(count for key, count in stored.items() if key[1] == "capped")
    if capped > CAP:
        verdict.found("decisions_doubled", f"{capped} decisions of a rule with a cap of {CAP}")
    return stored.total()


def are_settled(sessions: Mapping[str, tuple[Record, Sequence[Entry]]]) -> bool:
    """Return whether the idle rule has fired in every open session."""
    return all(
        record.outcome is not Outcome.OPEN or any(one.idle for entry in entries for one in entry.decisions)
        for record, entries in sessions.values()
    )


def _judge_session(
    verdict: Verdict, decider: Decider, name: str, record: Record, entries: Sequence[Entry], now_ms: int
) -> None:
    events = [entry.event for entry in entries]
    decided: list[Decision] = []
    for number, entry in enumerate(entries, start=1):
        found = {one.rule: one for one in entry.decisions if one.rule not in _OF_OTHERS}
        wanted = decider.at_event(
            name,
            entry.event,
            number=number,
            before=None,
            probability=entry.probability or 0.0,
            facts=facts_of(events[:number]),
            decided=Decisions(decided),
            now_ms=now_ms,
        )
        expected = {one.rule: one for one in wanted if one.rule not in _OF_OTHERS}
        decided += expected.values()
        for rule in expected.keys() - found.keys():
            verdict.found("decisions_lost", f"{name}, event {number}: {rule}")
        for rule in found.keys() - expected.keys():
            verdict.found("decisions_doubled", f"{name}, event {number}: {rule}")
        for rule in found.keys() & expected.keys():
            if found[rule].group is not expected[rule].group or found[rule].probability != entry.probability:
                verdict.found("groups_changed", f"{name}, event {number}: {found[rule]}, not {expected[rule]}")
    _judge_whole(verdict, name, record, [one for entry in entries for one in entry.decisions])


def _judge_whole(verdict: Verdict, name: str, record: Record, everything: Sequence[Decision]) -> None:
    """Judge the decisions of a session by themselves, wherever they stand."""
    for rule, count in Counter(one.rule for one in everything if one.rule != "views").items():
        if count > 1:
            verdict.found("decisions_doubled", f"{name}: {rule} {count} times")
    groups: dict[str, set[Group]] = {}
    for one in (*everything, *record.decisions):
        groups.setdefault(one.rule, set()).add(one.group)
    for rule in (rule for rule, some in groups.items() if len(some) > 1):
        verdict.found("groups_changed", f"{name}: {rule}")
    if missing := set(record.decisions) - set(everything):
        verdict.found("decisions_lost", f"{name}: {missing} are not in the history")
    if record.outcome is Outcome.OPEN and not any(one.idle for one in everything):
        verdict.found("decisions_lost", f"{name}: idle for long, and no rule fired")


def _judge_answers(verdict: Verdict, sent: Sent, entries: Sequence[Entry]) -> None:
    """Compare what callers were told with what is stored; of events that Redis has lost nothing is known."""
    for answer in sent.answers:
        told = [(one["name"], one["group"], one["probability"]) for one in answer["interventions"]]
        number = answer["events"]
        if not answer["folded"]:
            expected = []
        elif number <= len(entries) and entries[number - 1].event == sent.posting.event:
            decisions = [one for one in entries[number - 1].decisions if one.told and not one.idle]
            expected = [(one.rule, one.group.word, one.probability) for one in decisions]
        else:
            continue
        if told != expected:
            verdict.found("wrong_interventions", f"{sent.posting.event_id}: {told}, not {expected}")


def _key(name: str, one: Decision) -> _Key:
    return name, one.rule, one.event, one.idle, one.group.word
