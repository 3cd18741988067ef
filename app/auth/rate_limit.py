"""Rate limits of API keys: counted in Redis for all replicas together, over a sliding window of ten seconds.

A key with a limit costs one script call per request (`rate_limit.lua`); a key without one costs nothing.
"""

from typing import Final

from app.auth.keys import ApiKey
from app.errors import RateLimitedError
from app.monitoring.metrics import Metrics
from app.store.keys import Keys, shard_of
from app.store.redis.connection import RedisClient
from app.store.redis.scripts import ScriptRunner, load_script

WINDOW_S: Final = 10


class RateLimit:
    """Counts the requests of API keys, and refuses those above a key's limit.

    While Redis cannot count, every request is let through (fail open): requests that need Redis fail by themselves.

    Args:
        client: the Redis that counts.
        events_per_s: limit of keys that have none of their own; 0: none.
        metrics: counts the requests that Redis could not count.
        keys: the keys of this service; None: those of the default prefix.
        window_s: length of the sliding window.

    Attributes:
        client: the Redis that counts.
    """

    def __init__(
        self,
        client: RedisClient,
        *,
        events_per_s: float,
        metrics: Metrics,
        keys: Keys | None = None,
        window_s: int = WINDOW_S,
    ) -> None:
        self.client = client
        self._keys = keys or Keys()
        self._scripts = ScriptRunner(client)
        self._script = load_script("rate_limit.lua")
        self._events_per_s = events_per_s
        self._metrics = metrics
        self._window_s = window_s

    def is_limited(self, key: ApiKey) -> bool:
        """Return whether the key has a limit."""
        return bool(self._limit(key))

    async def take(self, key: ApiKey, count: int = 1) -> None:
        """Count events or other requests of a key; keys of one name and one limit share a count.

        Args:
            key: one that has a limit.
            count: how many; more than the limit of a window count as that limit, so that they fit an empty window.

        Raises:
            RateLimitedError: the limit is exceeded; nothing was counted.
        """
        limit = self._limit(key)
        most = max(1, round(limit * self._window_s))
        call = (1, self._keys.rate(key.name, most), most, self._window_s * 1000, min(count, most))
        # After a broken connection the script may run twice, and the key may send less until the window ends.
        (added,) = await self._scripts.run("rate_limit", self._script, [(shard_of(key.name), call)])
        if isinstance(added, Exception):
            self._metrics.rate_limit_failures.inc()
        elif not added:
            raise RateLimitedError(
                f"The key {key.name!r} may send {limit:g} events a second, on average over {self._window_s} s."
            )

    async def close(self) -> None:
        """Close the connections."""
        await self.client.close()

    def _limit(self, key: ApiKey) -> float:
        return self._events_per_s if key.events_per_s is None else key.events_per_s
