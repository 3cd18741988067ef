"""How much a key may send: counted in Redis for all replicas together, over a sliding window of ten seconds.

The count is the library's sliding window counter (https://limits.readthedocs.io/en/stable/strategies.html): two numbers
a key, whatever its limit. Keys without a limit cost nothing here.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from limits import RateLimitItemPerSecond
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.exceptions import RedisError
from starlette.types import Message, Receive

from app.auth.keys import ApiKey
from app.auth.rate_storage import Storage
from app.errors import RateLimitedError
from app.monitoring.metrics import Metrics
from app.scoring.events import NDJSON
from app.store.redis.breaker import CircuitBreaker

WINDOW_S: Final = 10


class RateLimit:
    """Counts what keys send, and refuses what is too much.

    When Redis cannot count, requests are let through: those that need Redis fail by themselves, and at once.

    Args:
        open_storage: connects to what counts; called when the first key with a limit comes.
        events_per_s: limit of keys that have none of their own; 0: none.
        timeout_s: longest wait for a count.
        breaker: told of each outcome, and asked before each count.
        metrics: where counts that failed are counted.
        window_s: over how many seconds a limit is an average.
    """

    def __init__(
        self,
        open_storage: Callable[[], Storage],
        *,
        events_per_s: float,
        timeout_s: float,
        breaker: CircuitBreaker,
        metrics: Metrics,
        window_s: int = WINDOW_S,
    ) -> None:
        self._open_storage = open_storage
        self._events_per_s = events_per_s
        self._timeout_s = timeout_s
        self._breaker = breaker
        self._metrics = metrics
        self._window_s = window_s
        self._storage: Storage | None = None
        self._limiter: SlidingWindowCounterRateLimiter | None = None

    def is_limited(self, key: ApiKey) -> bool:
        """Return whether the key has a limit."""
        return bool(self._limit(key))

    async def take(self, key: ApiKey, count: int = 1) -> None:
        """Count what a key sends; all keys of one name and one limit count together.

        Args:
            key: one that has a limit.
            count: how many events or other requests; more than fit into a window count as a window.

        Raises:
            RateLimitedError: that is too much for now; nothing was counted.
        """
        limit = self._limit(key)
        item = RateLimitItemPerSecond(max(1, round(limit * self._window_s)), self._window_s)
        if not await self._hit(item, key.name, min(count, item.amount)):
            raise RateLimitedError(
                f"The key {key.name!r} may send {limit:g} events a second, on average over {self._window_s} s."
            )

    def counted_body(self, key: ApiKey, headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> Receive:
        """Return `receive`, which counts the events of a batch when its body is complete.

        The first was counted with the request. What it returns raises `RateLimitedError`.
        """
        is_lines = any(name == b"content-type" and value.startswith(NDJSON.encode()) for name, value in headers)
        parts: list[bytes] = []

        async def receive_counted() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    more = _events(b"".join(parts), is_lines=is_lines) - 1
                    parts.clear()
                    if more > 0:
                        await self.take(key, more)
            return message

        return receive_counted

    async def close(self) -> None:
        """Close the connections."""
        if self._storage is not None:
            _, close = self._storage
            await close()

    def _limit(self, key: ApiKey) -> float:
        return self._events_per_s if key.events_per_s is None else key.events_per_s

    async def _hit(self, item: RateLimitItemPerSecond, name: str, cost: int) -> bool:
        if not self._breaker.allows():
            self._metrics.rate_limit_failures.inc()
            return True
        if self._limiter is None:
            self._storage = self._open_storage()
            self._limiter = SlidingWindowCounterRateLimiter(self._storage[0])
        try:
            async with asyncio.timeout(self._timeout_s):
                fits = await self._limiter.hit(item, name, cost=cost)
        except (RedisError, OSError, TimeoutError):
            self._breaker.failed()
            self._metrics.rate_limit_failures.inc()
            return True
        except BaseException:
            self._breaker.abandoned()
            raise
        self._breaker.succeeded()
        return fits


def _events(body: bytes, *, is_lines: bool) -> int:
    """Return how many events a batch has, without a look into them; of what is no batch, 0."""
    if is_lines:
        return sum(1 for line in body.split(b"\n") if line.strip())
    try:
        return len(msgspec.json.decode(body, type=list[msgspec.Raw]))
    except (msgspec.DecodeError, RecursionError):
        return 0
