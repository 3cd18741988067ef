"""A sliding window over counts: time cut into buckets, of which the last few are added up."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from app.store.outcomes import Counts, CountsOf, OutcomeStore

# The window slides by a 24th of its length.
BUCKETS: Final = 24
# So long after its end nothing is added to a bucket any more: sessions are taken on within seconds of their end. One
# that comes later still, after Redis was away, is seen by replicas that start later.
_SETTLED_AFTER_MS: Final = 300_000


class Window:
    """Counts of the last `window_s` seconds.

    Args:
        store: where they are.
        window_s: length of the window.
    """

    def __init__(self, store: OutcomeStore, *, window_s: int) -> None:
        self._store = store
        self.window_s = window_s
        self._bucket_ms = max(1, window_s * 1000 // BUCKETS)
        self._settled: dict[CountsOf, Counts] = {}

    @property
    def lifetime_s(self) -> int:
        """For how long a bucket is needed after something was last added to it."""
        return self.window_s + 2 * self._bucket_ms // 1000 + 1

    def bucket_of(self, timestamp_ms: int) -> int:
        """Return the number of the bucket that a time lies in."""
        return timestamp_ms // self._bucket_ms

    async def add(self, token: str, counts: Mapping[CountsOf, Counts]) -> None:
        """Add counts, once for a token; raise `StoreUnavailableError` when the store is gone."""
        await self._store.count(token, counts, lifetime_s=self.lifetime_s)

    async def read(self, model: str, now_ms: int) -> Counts:
        """Return a model's counts of the window that ends now; raise `StoreUnavailableError` when the store is gone.

        Buckets that are not added to any more are read once.
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
    trust: Counter[str] = Counter()
    drift: Counter[str] = Counter()
    for some in counts:
        trust.update(some.trust)
        drift.update(some.drift)
    return Counts(trust, drift)
