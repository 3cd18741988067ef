"""A sliding window over counts of sessions by the time at which they began.

Time is cut into buckets. A bucket counts once its sessions have had time to end with either outcome. A purchase ends a
session at once, any other session ends after the idle time. So among the sessions that have ended, those that began
lately are nearly all buyers, and a figure over them would be too high: the usual bias of censored data.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from app.store.outcomes import Counts, CountsOf, OutcomeStore

# A window of figures slides by a 48th of its length.
BUCKETS: Final = 48
# A bucket is settled when it has counted for as long as it was pending, and for this time. A session that is published
# later, because it was very long or Redis was away, only shows at replicas that start later.
_SETTLED_AFTER_MS: Final = 300_000


class WindowCounts(NamedTuple):
    """What a window holds.

    Attributes:
        counts: of the sessions in the window.
        pending: ended sessions that began too recently to count.
    """

    counts: Counts
    pending: int


class Window:
    """Counts of the sessions that began within `window_s` seconds, up to `pending_s` seconds ago.

    Args:
        store: where the counts are.
        window_s: length of the window.
        pending_s: age from which a bucket counts: the idle time, and the time that most sessions last.
        buckets: number of buckets of the window.
    """

    def __init__(self, store: OutcomeStore, *, window_s: int, pending_s: float, buckets: int = BUCKETS) -> None:
        self._store = store
        self.window_s = window_s
        self.pending_s = pending_s
        self._pending_ms = int(pending_s * 1000)
        self._buckets = buckets
        self._bucket_ms = max(1, window_s * 1000 // buckets)
        self._settled: dict[CountsOf, Counts] = {}

    @property
    def lifetime_s(self) -> int:
        """How long a bucket is needed after the last addition, in seconds."""
        return self.window_s + int(self.pending_s) + 2 * self._bucket_ms // 1000 + 1

    def bucket_of(self, timestamp_ms: int) -> int:
        """Return the number of the bucket of a time."""
        return timestamp_ms // self._bucket_ms

    async def add(self, token: str, counts: Mapping[CountsOf, Counts]) -> None:
        """Add counts, once for a token; raise `StoreUnavailableError` when the store is gone."""
        await self._store.count(token, counts, lifetime_s=self.lifetime_s)

    async def read(self, model: str, now_ms: int) -> WindowCounts:
        """Return a model's counts at a time; raise `StoreUnavailableError` when the store is gone."""
        counts_of, end = await self.read_buckets(model, now_ms)
        return WindowCounts(
            counts=_sum([counts for bucket, counts in counts_of.items() if bucket < end]),
            pending=sum(counts.answers.get("s", 0) for bucket, counts in counts_of.items() if bucket >= end),
        )

    async def read_buckets(self, model: str, now_ms: int) -> tuple[dict[int, Counts], int]:
        """Return a model's counts by bucket, oldest first, and the first bucket that does not count yet.

        Settled buckets are read once.

        Raises:
            StoreUnavailableError: the store is gone.
        """
        # The first bucket that is not over, or whose sessions may not have ended.
        end = self.bucket_of(now_ms - self._pending_ms)
        keys = [(model, bucket) for bucket in range(end - self._buckets, self.bucket_of(now_ms) + 1)]
        self._settled = {key: counts for key, counts in self._settled.items() if key[1] >= end - self._buckets}
        missing = [key for key in keys if key not in self._settled]
        found = dict(zip(missing, await self._store.counts(missing), strict=True))
        for key, counts in found.items():
            if (key[1] + 1) * self._bucket_ms + 2 * self._pending_ms + _SETTLED_AFTER_MS < now_ms:
                self._settled[key] = counts
        return {bucket: found.get((model, bucket)) or self._settled[model, bucket] for _, bucket in keys}, end


def _sum(counts: Sequence[Counts]) -> Counts:
    answers: Counter[str] = Counter()
    inputs: Counter[str] = Counter()
    for some in counts:
        answers.update(some.answers)
        inputs.update(some.inputs)
    return Counts(answers, inputs)
