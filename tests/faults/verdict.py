"""The violations that a run can have, and their counts."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final

_EXAMPLES: Final = 5

# Every violation with its title in the report. All counts must be 0.
VIOLATIONS: Final = {
    "lost": "acknowledged events that are not stored",
    "folded_twice": "events folded more than once",
    "never_sent": "stored events that nobody sent, or not so",
    "reordered": "events folded before one that was acknowledged before they were sent",
    "wrong_answers": "answers that the offline model does not give",
    "unequal_duplicates": "events that were answered in two ways",
    "wrong_records": "records that are not the fold of their history",
    "wrong_board": "sessions that the live board has not, or not as their record says",
    "decisions_lost": "decisions of rules that are missing where they should stand",
    "decisions_doubled": "decisions of rules that stand twice, or that the events do not give",
    "groups_changed": "decisions whose group or probability is another one than it was",
    "wrong_interventions": "answers with other interventions than the stored decisions",
    "hung": "requests without an answer past the deadline",
    "dropped_by_drain": "requests that a stopping replica had and did not answer",
    "unclean_exits": "replicas that did not end with status 0 when asked to stop",
    "refused": "answers of an unexpected status",
    "undelivered": "events never acknowledged in spite of all retries",
}


@dataclass(slots=True)
class Verdict:
    """The count of each violation, and its first examples."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def passed(self) -> bool:
        """Whether there is no violation."""
        return not self.counts

    def found(self, violation: str, example: str) -> None:
        """Count one."""
        self.counts[violation] += 1
        if len(self.examples[violation]) < _EXAMPLES:
            self.examples[violation].append(example)
