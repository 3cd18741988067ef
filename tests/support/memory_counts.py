"""The counts of an `OutcomeStore` in a dictionary; takes every argument as Redis does."""

from collections import Counter
from collections.abc import Mapping, Sequence

from app.errors import StoreUnavailableError
from app.store.outcomes import Counts, CountsOf
from support.memory_store import NoOutcomes


class MemoryCounts(NoOutcomes):
    """Counts by key.

    Attributes:
        reads: how often each was read.
        lifetimes_s: the lifetime that each was last added with.
        is_away: whether every call fails.
    """

    def __init__(self) -> None:
        self.reads: Counter[CountsOf] = Counter()
        self.lifetimes_s: dict[CountsOf, int] = {}
        self.is_away = False
        self._kept: dict[CountsOf, tuple[Counter[str], Counter[str]]] = {}
        self._tokens: set[str] = set()

    @property
    def keys(self) -> set[CountsOf]:
        """The keys that have counts, without those of the history."""
        return {key for key in self._kept if key[0] != "hours"}

    async def count(self, token: str, counts: Mapping[CountsOf, Counts], *, lifetime_s: int) -> None:
        self._fail_if_away()
        if token in self._tokens:
            return
        self._tokens.add(token)
        for key, added in counts.items():
            answers, inputs = self._kept.setdefault(key, (Counter(), Counter()))
            answers.update(added.answers)
            inputs.update(added.inputs)
            self.lifetimes_s[key] = lifetime_s

    async def counts(self, keys: Sequence[CountsOf]) -> list[Counts]:
        self._fail_if_away()
        self.reads.update(keys)
        return [Counts(*map(dict, self._kept.get(key, ({}, {})))) for key in keys]

    def _fail_if_away(self) -> None:
        if self.is_away:
            raise StoreUnavailableError("away")
