"""`willbuy interventions check FILE SESSIONS`: how often each rule would have fired on past sessions, and on whom."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from msgspec.structs import replace
from rich.table import Table

from model.artifact import ArtifactError
from model.events import Event
from model.interventions.decide import (
    NO_DECISIONS,
    NO_FACTS,
    Decider,
    Decision,
    Decisions,
    Group,
    advanced_facts,
)
from model.interventions.rules import Rule, RulesError, RuleSet, read_rules
from model.predictor import load_predictor
from training.commands.console import OUT, print_line
from training.commands.prepare import PREPARE_ERRORS, prepared_sessions, run_prepare
from training.commands.replay import read_events
from training.config import CheckSettings, LogSettings, SelectionSettings
from training.data.provenance import cuts_of
from training.evaluation.selection import SelectionError, select

CHECK_ERRORS: Final = (*PREPARE_ERRORS, ArtifactError, RulesError, SelectionError, OSError)
_HOUR_MS: Final = 3_600_000


@dataclass(slots=True)
class Firing:
    """What a rule would have done.

    Attributes:
        rule: the rule.
        sessions: sessions in which it would have fired.
        buyers: of these, those that bought later.
        held: of these sessions, those in the control group.
        decisions: number of decisions; larger than `sessions` only for a rule that repeats.
        numbers: number of the event of each first decision.
        shares: that number by the number of events of the session.
        times_ms: time of each decision.
    """

    rule: Rule
    sessions: int = 0
    buyers: int = 0
    held: int = 0
    decisions: int = 0
    numbers: list[int] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    times_ms: list[int] = field(default_factory=list)

    @property
    def within_cap(self) -> int:
        """Decisions that the cap would have allowed."""
        if self.rule.cap_per_hour is None:
            return self.decisions
        allowed = 0
        last: deque[int] = deque()
        for time_ms in sorted(self.times_ms):
            while last and last[0] <= time_ms - _HOUR_MS:
                last.popleft()
            if len(last) < self.rule.cap_per_hour:
                last.append(time_ms)
                allowed += 1
        return allowed


def run_check(rules: Path, data: Path, settings: CheckSettings) -> list[Firing]:
    """Decide over past sessions, and print a row for each rule.

    Args:
        rules: the file of rules.
        data: prepared sessions, or a log.
        settings: of the check.

    Raises:
        CHECK_ERRORS: an error that the user can fix; the message says how.
    """
    if settings.artifact is None:
        raise ArtifactError("--artifact: is needed, as rules ask for probabilities")
    predictor = load_predictor(settings.artifact, state_dtype="float32", base_rate=settings.base_rate)
    found = read_rules(rules, predictor)
    log = LogSettings(settings.log.format, settings.log.mapping, **cuts_of(predictor.manifest))
    with prepared_sessions(data, lambda folder: run_prepare(data, folder, log)) as dataset:
        wanted = SelectionSettings(
            baselines=False, all_sessions=settings.all_sessions, most_sessions=settings.most_sessions
        )
        selection = select(dataset, {settings.artifact.stem: predictor.manifest}, wanted)
        events = read_events(dataset, sorted(selection.judged))
        outcomes = dict(dataset.sessions().select("session_id", "outcome").iter_rows())
    scores = dict(zip(events, predictor.score_sessions(list(events.values())), strict=True))
    firings = count_firings(found, events, scores, outcomes)
    for warning in selection.warnings:
        print_line(f"warning: {warning}", style="yellow")
    _print(firings, len(events), sum(bool(outcomes[name]) for name in events))
    return firings


def count_firings(
    rules: RuleSet,
    sessions: Mapping[str, Sequence[Event]],
    scores: Mapping[str, Sequence[float]],
    outcomes: Mapping[str, bool],
) -> list[Firing]:
    """Return what each rule would have done, without its cap, its start and its end.

    Args:
        rules: the rules.
        sessions: events of each session, in order, without the purchase.
        scores: the probability after each of them.
        outcomes: whether the session bought.
    """
    decider = Decider(RuleSet(tuple(replace(rule, starts=None, ends=None) for rule in rules.rules), rules.source))
    firings = {rule.name: Firing(rule) for rule in rules.rules}
    for name, events in sessions.items():
        decisions = list(_decisions(decider, name, events, scores[name], bought=outcomes[name]))
        first: dict[str, Decision] = {}
        for decision in decisions:
            firing = firings[decision.rule]
            firing.decisions += 1
            firing.times_ms.append(decision.decided_ms)
            first.setdefault(decision.rule, decision)
        for decision in first.values():
            firing = firings[decision.rule]
            firing.sessions += 1
            firing.buyers += outcomes[name]
            firing.held += decision.group is Group.CONTROL
            firing.numbers.append(decision.event)
            firing.shares.append(decision.event / len(events))
    return list(firings.values())


def _decisions(
    decider: Decider, session_id: str, events: Sequence[Event], scores: Sequence[float], *, bought: bool
) -> Iterable[Decision]:
    """Yield the decisions in one session, as the service would have made them."""
    facts, before = NO_FACTS, None
    decided = NO_DECISIONS
    latest_ms = events[0].timestamp_ms if events else 0
    for number, (event, probability) in enumerate(zip(events, scores, strict=True), start=1):
        facts = advanced_facts(facts, event)
        latest_ms = max(latest_ms, event.timestamp_ms)
        made = decider.at_event(
            session_id,
            event,
            number=number,
            before=before,
            probability=probability,
            facts=facts,
            decided=decided,
            now_ms=latest_ms,
        )
        decided = Decisions(decided + made)
        before = probability
        # A buyer's last event is followed by the purchase, whose time is not kept. Without one, idle time follows.
        next_ms = events[number].timestamp_ms if number < len(events) else (latest_ms if bought else None)
        for rule in decider.idle:
            due_ms = latest_ms + round((rule.idle_seconds or 0) * 1000)
            if next_ms is not None and next_ms < due_ms:
                continue
            idle = decider.after_idle_time(
                rule,
                session_id,
                number=number,
                probability=probability,
                facts=facts,
                decided=decided,
                now_ms=due_ms,
            )
            if idle is not None:
                decided = Decisions((*decided, idle))
    yield from decided


def _print(firings: Sequence[Firing], sessions: int, buyers: int) -> None:
    table = Table(title=f"{sessions:,} past sessions, {_share(buyers, sessions)} of which bought")
    table.add_column("rule", overflow="fold")
    for heading in ("fired in", "at event (median)", "of the visit", "bought later", "held out", "within the cap"):
        table.add_column(heading, justify="right")
    for one in firings:
        table.add_row(
            one.rule.name,
            f"{one.sessions:,} ({_share(one.sessions, sessions)})",
            f"{median(one.numbers):g}" if one.numbers else "-",
            f"{median(one.shares):.0%}" if one.shares else "-",
            f"{one.buyers:,} ({_share(one.buyers, one.sessions)})",
            f"{one.held:,}",
            "-" if one.rule.cap_per_hour is None else f"{one.within_cap:,} of {one.decisions:,}",
        )
    OUT.print(table)
    print_line("Whoever bought later bought without an action: only a control group shows what a rule changes.")
    if any(one.rule.starts is not None or one.rule.ends is not None for one in firings):
        print_line("Start and end of rules are left out here.")


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
