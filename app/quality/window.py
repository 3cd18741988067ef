"""A sliding window over counts: time is cut into buckets, and the last 24 are added up."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from app.store.outcomes import Counts, CountsOf, OutcomeStore

# The window slides by a 24th of its length.
BUCKETS: Final = 24
# A bucket is settled this long after its end: sessions are published within seconds of their end. A session that is
# published later, after an outage of Redis, only shows at replicas that start later.
_SETTLED_AFTER_MS: Final = 300_000


class Window:
    """Counts of the last `window_s` seconds.

    Args:
        store: where the counts are.
        window_s: length of the window.
    """

    def __init__(self, store: OutcomeStore, *, window_s: int) -> None:
        self._store = store
        self.window_s = window_s
        self._bucket_ms = max(1, window_s * 1000 // BUCKETS)
        self._settled: dict[CountsOf, Counts] = {}

    @property
    def lifetime_s(self) -> int:
        """How long a bucket is needed after the last addition, in seconds."""
        return self.window_s + 2 * self._bucket_ms // 1000 + 1

    def bucket_of(self, timestamp_ms: int) -> int:
        """Return the number of the bucket of a time."""
        return timestamp_ms // self._bucket_ms

    async def add(self, token: str, counts: Mapping[CountsOf, Counts]) -> None:
        """Add counts, once for a token; raise `StoreUnavailableError` when the store is gone."""
        await self._store.count(token, counts, lifetime_s=self.lifetime_s)

    async def read(self, model: str, now_ms: int) -> Counts:
        """Return a model's counts of the window that ends now; raise `StoreUnavailableError` when the store is gone.

        Settled buckets are read once.
        """
        last = self.bucket_of(now_ms)
        keys = [(model, bucket) for bucket in range(last - BUCKETS + 1, last + 1)]
        self._settled = {key: counts for key, counts in self._settled.items() if key[1] >= keys[0][1]}
        missing = [key for key in keys if key not in self._settled]
        found = dict(zip(missing, await self._store.counts(missing), strict=True))
        for key, counts in found.items():
            if (key[1] + 1) * self._bucket_ms + _SETTLED_AFTER_MS < now_ms:
                self._settled[key] = counts
        return _sum([found.get(key) or self._settled[key] for key in keys])


def _sum(counts: Sequence[Counts]) -> Counts:
    answers: Counter[str] = Counter()
    inputs: Counter[str] = Counter()
    for some in counts:
        answers.update(some.answers)
        inputs.update(some.inputs)
    return Counts(answers, inputs)
