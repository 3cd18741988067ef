"""One Redis server, or whichever is the primary now: commands in, replies out, with every wait bounded.

A broken connection is tried once more on a new one, so a command may reach the server twice: send only what may.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from app.breaker import CircuitBreaker

Word = str | bytes | int
# A reply as the driver gives it, or the error in its place.
Reply = Any

_ONE: Final = 1


class BreakerOpenError(RedisConnectionError):
    """The server failed so often in a row that it was not asked."""


class ReplicationError(RedisError):
    """The write was made, but fewer replicas than wanted have confirmed it."""


class Server:
    """A pool of connections to one server.

    Args:
        pool: makes connections; its own waits are no longer than `timeout_s`.
        timeout_s: longest wait for the replies to one `execute`, connecting and queueing for a connection included.
        max_connections: most connections at a time.
        breaker: told of each outcome, and asked before each call.
    """

    def __init__(
        self, pool: ConnectionPool, *, timeout_s: float, max_connections: int, breaker: CircuitBreaker
    ) -> None:
        self._pool = pool
        self._redis = Redis.from_pool(pool)
        self._timeout_s = timeout_s
        self._vacant = asyncio.Semaphore(max_connections)
        self._breaker = breaker

    async def execute(self, commands: Sequence[Sequence[Word]], *, wait_replicas: int = 0) -> list[Reply]:
        """Send all commands at once and return their replies in order, errors in their places; raises nothing.

        Args:
            commands: each its words.
            wait_replicas: replicas that must confirm what was written; with fewer every reply is `ReplicationError`.
        """
        if not commands:
            return []
        if not self._breaker.allows():
            return [BreakerOpenError("not asked: it failed several times in a row")] * len(commands)
        try:
            async with asyncio.timeout(self._timeout_s), self._vacant:
                replies = await self._on_primary(commands, wait_replicas)
        except (RedisError, OSError, TimeoutError) as exc:
            self._breaker.failed()
            return [exc] * len(commands)
        except BaseException:
            self._breaker.abandoned()
            raise
        self._breaker.succeeded()
        return replies

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()
        await self._pool.disconnect()

    async def _on_primary(self, commands: Sequence[Sequence[Word]], wait_replicas: int) -> list[Reply]:
        replies = await self._send(commands, wait_replicas)
        if any(map(_is_read_only, replies)):
            # It was demoted. A new connection finds the primary, by sentinels or by the name it goes by.
            await self._pool.disconnect(inuse_connections=False)
            replies = await self._send(commands, wait_replicas)
            if all(map(_is_read_only, replies)):
                await self._pool.disconnect(inuse_connections=False)
        return replies

    async def _send(self, commands: Sequence[Sequence[Word]], wait_replicas: int) -> list[Reply]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for words in commands:
                pipeline.execute_command(*words)
            if wait_replicas:
                # Half of the time that there is: the reply itself has to arrive too.
                pipeline.execute_command("WAIT", wait_replicas, max(_ONE, int(self._timeout_s * 500)))
            replies: list[Reply] = await pipeline.execute(raise_on_error=False)
        if wait_replicas:
            confirmed = replies.pop()
            if isinstance(confirmed, Exception) or confirmed < wait_replicas:
                return [ReplicationError(f"{confirmed} of {wait_replicas} replicas confirmed")] * len(commands)
        return replies


def _is_read_only(reply: Reply) -> bool:
    # Within a script, Redis 6.2 reports a replica as a general error with the word somewhere inside.
    return isinstance(reply, ResponseError) and "READONLY" in f"{type(reply).__name__.upper()} {reply}"
