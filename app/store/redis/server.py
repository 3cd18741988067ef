"""One Redis server, or whichever is the primary now: commands in, replies out, every wait bounded.

The connections are redis-py's, and this module drives them: one write, then one read per reply. redis-py's own pipeline
costs twice the caller's CPU time, at 1, 8 and 64 sessions a batch (`python -m benchmarks.redis_client`). An asyncio
protocol of our own with hiredis was measured last before its removal, in paired runs: redis-py's connections cost 1.16,
1.11 and 1.07 times the CPU time of `load` and `commit` in the store. The whole service costs 1.04 times the CPU time
and 0.05 ms more at one connection, and the same at 64.

After a broken connection, the commands are sent once more on a new one. Send only commands that may run twice.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, NoScriptError, RedisError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError

from app.store.redis.breaker import CircuitBreaker
from app.store.redis.causes import cause_of

RespArg = str | bytes | int
# A reply as hiredis gives it, or the error in its place.
Reply = Any

_LEAST_WAIT_MS: Final = 1
# Replies that the callers answer by sending the command again or elsewhere.
_REDIRECTIONS: Final = (NoScriptError, AskError, TryAgainError)


class BreakerOpenError(RedisConnectionError):
    """The circuit breaker is open: the command was not sent."""


class ReplicationError(RedisError):
    """The primary has the write, but fewer replicas than wanted confirmed it."""


class Server:
    """Connections to one server.

    Args:
        connect: opens one; finds the primary anew each time, where it may change.
        timeout_s: longest wait for the replies to one `execute`, connecting and queueing for a connection included.
        max_connections: most connections at a time.
        breaker: the server's circuit breaker.
        on_failure: called with the cause and the error of each failed round trip or command.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[AbstractConnection]],
        *,
        timeout_s: float,
        max_connections: int,
        breaker: CircuitBreaker,
        on_failure: Callable[[str, Exception], None] = lambda _cause, _error: None,
    ) -> None:
        self._connect = connect
        self._timeout_s = timeout_s
        self._vacant = asyncio.Semaphore(max_connections)
        self._breaker = breaker
        self._on_failure = on_failure
        self._last_failure: Exception | None = None
        # Last in, first out: the server may close connections that stay idle.
        self._idle: list[AbstractConnection] = []
        self._is_closed = False

    async def execute(self, commands: Sequence[Sequence[RespArg]], *, wait_replicas: int = 0) -> list[Reply]:
        """Send all commands at once and return their replies in order, errors in their places; raises nothing.

        Args:
            commands: the arguments of each.
            wait_replicas: replicas that must confirm the writes; with fewer, every reply is `ReplicationError`.
        """
        if not commands:
            return []
        if not self._breaker.allows():
            refused = BreakerOpenError("not sent: the server failed several times in a row")
            refused.__cause__ = self._last_failure
            return [refused] * len(commands)
        try:
            async with asyncio.timeout(self._timeout_s), self._vacant:
                replies = await self._on_primary(commands, wait_replicas)
        except (RedisError, OSError, TimeoutError) as exc:
            self._breaker.failed()
            # Without its traceback, whose frames would stay alive.
            self._last_failure = exc.with_traceback(None)
            self._on_failure(cause_of(exc), exc)
            return [exc] * len(commands)
        except BaseException:
            self._breaker.abandoned()
            raise
        self._breaker.succeeded()
        for reply, command in zip(replies, commands, strict=True):
            # CONFIG may be forbidden; the caller then asks INFO.
            if isinstance(reply, Exception) and not isinstance(reply, _REDIRECTIONS) and command[0] != "CONFIG":
                self._on_failure(cause_of(reply), reply)
                break
        return replies

    async def close(self) -> None:
        """Close all connections; those in use after their round trip."""
        self._is_closed = True
        await self._close_idle()

    async def _on_primary(self, commands: Sequence[Sequence[RespArg]], wait_replicas: int) -> list[Reply]:
        replies = await self._send(commands, wait_replicas)
        if any(map(_is_read_only, replies)):
            # The server was demoted. A new connection finds the primary, by sentinels or by DNS.
            await self._close_idle()
            replies = await self._send(commands, wait_replicas)
            if all(map(_is_read_only, replies)):
                await self._close_idle()
        return replies

    async def _send(self, commands: Sequence[Sequence[RespArg]], wait_replicas: int) -> list[Reply]:
        if not wait_replicas:
            return await self._on_connection(commands)
        # WAIT takes half of the time limit, as its reply has to arrive within the limit too.
        wait = ("WAIT", wait_replicas, max(_LEAST_WAIT_MS, int(self._timeout_s * 500)))
        *replies, confirmed = await self._on_connection([*commands, wait])
        if isinstance(confirmed, Exception) or confirmed < wait_replicas:
            return [ReplicationError(f"{confirmed} of {wait_replicas} replicas confirmed")] * len(commands)
        return replies

    async def _on_connection(self, commands: Sequence[Sequence[RespArg]]) -> list[Reply]:
        # redis-py's asyncio connections pack arguments in Python, which takes 8 us a session more. Packed before a
        # connection is taken, as a command that cannot be packed would leave the connection open.
        packed = b"".join([hiredis.pack_command(tuple(arguments)) for arguments in commands])  # type: ignore[arg-type]  # its stub means a tuple of one
        connection = await self._idle_connection() or await self._connect_twice()
        try:
            replies = await _round_trip(connection, packed, len(commands))
        except RedisConnectionError:
            # A server that restarted has closed all connections, and may accept new ones already.
            connection = await self._connect()
            replies = await _round_trip(connection, packed, len(commands))
        if self._is_closed:
            await connection.disconnect(nowait=True)
        else:
            self._idle.append(connection)
        return replies

    async def _idle_connection(self) -> AbstractConnection | None:
        while self._idle:
            connection = self._idle.pop()
            # Readable without a command: the connection has ended, or a reply belongs to no command.
            if connection.is_connected and not await connection.can_read():
                return connection
            await connection.disconnect(nowait=True)
        return None

    async def _connect_twice(self) -> AbstractConnection:
        try:
            return await self._connect()
        except (RedisConnectionError, OSError):
            return await self._connect()

    async def _close_idle(self) -> None:
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)


async def _round_trip(connection: AbstractConnection, packed: bytes, commands: int) -> list[Reply]:
    """Send so many packed commands, and return the replies in order, error replies in their places.

    After any exception, cancellation included, redis-py has closed the connection: no caller reads a late reply.

    Raises:
        redis.exceptions.RedisError: the connection was lost, or the server cannot serve (LOADING, NOAUTH).
    """
    try:
        await connection.send_packed_command(packed, check_health=False)
    except RuntimeError as exc:
        # uvloop raises it for a transport that the server has just closed; redis-py lets it through.
        raise RedisConnectionError("the connection was lost") from exc
    replies: list[Reply] = []
    for _ in range(commands):
        try:
            replies.append(await connection.read_response(disable_decoding=True))
        except ResponseError as exc:
            # Without its traceback, whose frames hold this list: a reference cycle.
            replies.append(exc.with_traceback(None))
    return replies


def _is_read_only(reply: Reply) -> bool:
    # Within a script, Redis 6.2 reports a replica as a general error with READONLY somewhere in its text.
    return isinstance(reply, ResponseError) and "READONLY" in f"{type(reply).__name__.upper()} {reply}"
