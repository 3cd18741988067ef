"""Findings: what is wrong, or may be, with data or a model, in plain words; a report shows the worst first."""

from collections.abc import Iterable
from typing import Final, Self

# How bad a finding is. What a report's numbers cannot be believed with is worse than what makes them uncertain.
INVALID: Final = 90
DOUBTFUL: Final = 60
UNCHECKED: Final = 40
NOTED: Final = 20


class Finding(str):
    """A finding's text, with how bad it is: 0 to 100."""

    severity: int

    def __new__(cls, text: str, severity: int = NOTED) -> Self:
        """Return the text as a finding."""
        made = super().__new__(cls, text)
        made.severity = severity
        return made


def worst_first(texts: Iterable[str]) -> list[str]:
    """Return each text once, the worst first; texts that are no findings count as `NOTED`."""
    return sorted(dict.fromkeys(texts), key=lambda text: -getattr(text, "severity", NOTED))
