"""One Redis server, or whichever is the primary now: commands in, replies out, with every wait bounded.

A broken connection is tried once more on a new one, so a command may reach the server twice: send only what may.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from app.store.redis.breaker import CircuitBreaker
from app.store.redis.wire import Connection, Reply, Word

__all__ = ["BreakerOpenError", "ReplicationError", "Reply", "Server", "Word"]

_ONE: Final = 1


class BreakerOpenError(RedisConnectionError):
    """The server failed so often in a row that it was not asked."""


class ReplicationError(RedisError):
    """The write was made, but fewer replicas than wanted have confirmed it."""


class Server:
    """Connections to one server.

    Args:
        connect: makes one; finds the primary anew each time, where there may be another one.
        timeout_s: longest wait for the replies to one `execute`, connecting and queueing for a connection included.
        max_connections: most connections at a time.
        breaker: told of each outcome, and asked before each call.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        timeout_s: float,
        max_connections: int,
        breaker: CircuitBreaker,
    ) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._vacant = asyncio.Semaphore(max_connections)
        self._breaker = breaker
        # The one that was used last is on top: the others may idle until the server closes them.
        self._idle: list[Connection] = []
        self._is_closed = False

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
        """Close all connections; those in use once they are given back."""
        self._is_closed = True
        self._close_idle()

    async def _on_primary(self, commands: Sequence[Sequence[Word]], wait_replicas: int) -> list[Reply]:
        replies = await self._send(commands, wait_replicas)
        if any(map(_is_read_only, replies)):
            # It was demoted. A new connection finds the primary, by sentinels or by the name it goes by.
            self._close_idle()
            replies = await self._send(commands, wait_replicas)
            if all(map(_is_read_only, replies)):
                self._close_idle()
        return replies

    async def _send(self, commands: Sequence[Sequence[Word]], wait_replicas: int) -> list[Reply]:
        if not wait_replicas:
            return await self._round_trip(commands)
        # Half of the time that there is: the reply itself has to arrive too.
        wait = ("WAIT", wait_replicas, max(_ONE, int(self._timeout_s * 500)))
        *replies, confirmed = await self._round_trip([*commands, wait])
        if isinstance(confirmed, Exception) or confirmed < wait_replicas:
            return [ReplicationError(f"{confirmed} of {wait_replicas} replicas confirmed")] * len(commands)
        return replies

    async def _round_trip(self, commands: Sequence[Sequence[Word]]) -> list[Reply]:
        connection = self._idle_connection() or await self._connect_twice()
        try:
            replies = await connection.round_trip(commands)
        except RedisConnectionError:
            # A server that was restarted takes all connections with it; a new one may be there already.
            connection = await self._connect()
            replies = await connection.round_trip(commands)
        if loading := next((reply for reply in replies if isinstance(reply, RedisConnectionError)), None):
            # It is there, and no use until it has loaded its data.
            connection.close()
            raise loading
        if self._is_closed:
            connection.close()
        else:
            self._idle.append(connection)
        return replies

    def _idle_connection(self) -> Connection | None:
        while self._idle:
            if (connection := self._idle.pop()).is_open:
                return connection
        return None

    async def _connect_twice(self) -> Connection:
        try:
            return await self._connect()
        except (RedisConnectionError, OSError):
            return await self._connect()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()


def _is_read_only(reply: Reply) -> bool:
    # Within a script, Redis 6.2 reports a replica as a general error with the word somewhere inside.
    return isinstance(reply, ResponseError) and "READONLY" in f"{type(reply).__name__.upper()} {reply}"
