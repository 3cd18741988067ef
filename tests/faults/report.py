"""The result of a run, as a table and as JSON."""

import json
import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from faults.ledger import Ledger
from faults.verdict import VIOLATIONS, Verdict


@dataclass(frozen=True, slots=True)
class Report:
    """One run.

    Attributes:
        title: name of the run.
        facts: parameters: seed, server, state type and so on.
        counts: numbers of requests and answers.
        faults: each fault with its seconds, in order.
        verdict: the oracle's verdict.
    """

    title: str
    facts: dict[str, Any]
    counts: dict[str, Any]
    faults: list[tuple[str, float]]
    verdict: Verdict

    @property
    def passed(self) -> bool:
        """Whether the oracle found no violation."""
        return self.verdict.passed

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {
            "title": self.title,
            "passed": self.passed,
            "facts": self.facts | {"python": platform.python_version()},
            "counts": self.counts,
            "faults": [{"fault": name, "seconds": round(seconds, 2)} for name, seconds in self.faults],
            "violations": {name: self.verdict.counts[name] for name in VIOLATIONS},
            "examples": dict(self.verdict.examples),
        }

    def summary(self) -> str:
        """Return the violations with examples, for the message of a failing test."""
        lines = [f"{self.title}: {self.counts}"]
        for name, count in self.verdict.counts.items():
            lines += [f"{count} {VIOLATIONS[name]}:", *(f"    {each}" for each in self.verdict.examples[name])]
        return "\n".join(lines)


def counts_of(ledger: Ledger) -> dict[str, Any]:
    """Return the numbers of requests and answers."""
    attempts = list(ledger.attempts())
    statuses = Counter(str(attempt.status or "no answer") for attempt in attempts)
    codes = Counter(attempt.body["code"] for attempt in attempts if "code" in attempt.body)
    took_ms = sorted((each.ended_s - each.started_s) * 1000 for each in attempts if each.acknowledged) or [0.0]
    return {
        "sessions": len(ledger.sessions),
        "events": sum(1 for _ in ledger),
        "requests": len(attempts),
        "acknowledged_events": sum(1 for sent in ledger if sent.answers),
        "acknowledgements_of_duplicates": sum(max(0, len(sent.answers) - 1) for sent in ledger),
        "models_seen": len({answer["model"] for sent in ledger for answer in sent.answers}),
        "statuses": dict(sorted(statuses.items())),
        "problem_codes": dict(sorted(codes.items())),
        "latency_ms": {
            name: round(took_ms[min(len(took_ms) - 1, int(share * len(took_ms)))], 1)
            for name, share in (("p50", 0.5), ("p99", 0.99), ("largest", 1.0))
        },
    }


def show(report: Report, console: Console) -> None:
    """Print a run."""
    verdict = "nothing found" if report.passed else f"{report.verdict.counts.total():,} violations"
    title = f"{report.title}: {verdict}"
    table = Table(title=title, title_style="bold green" if report.passed else "bold red", show_header=False)
    for name, value in (report.facts | report.counts).items():
        table.add_row(name.replace("_", " "), _in_words(value))
    table.add_section()
    table.add_row("faults", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.faults))
    table.add_section()
    for name, meaning in VIOLATIONS.items():
        count = report.verdict.counts[name]
        table.add_row(meaning, str(count), style="red" if count else None)
    console.print(table)
    for name, examples in report.verdict.examples.items():
        for example in examples:
            console.print(f"{name}: {example}", markup=False, highlight=False)


def write(reports: list[Report], path: Path) -> None:
    """Write runs as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([report.to_dict() for report in reports], indent=2) + "\n")


def _in_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {each}" for name, each in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
