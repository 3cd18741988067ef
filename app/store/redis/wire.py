"""One connection to a Redis server: commands out in one write, replies in through hiredis.

The driver's connection sends every pipeline from a task of its own and reads every reply through a stream, which takes
six times the processor's time of this one (docs/performance.md). This one is a plain protocol of the event loop: one
write, one future, whatever the number of commands. Errors are the driver's classes.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import hiredis
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from model.redis_url import Endpoint

Word = str | bytes | int
# A reply as hiredis gives it, or the error in its place.
Reply = Any

_ERRORS: Final[dict[str, type[RedisError]]] = {
    "ASK": AskError,
    "CLUSTERDOWN": ClusterDownError,
    "LOADING": BusyLoadingError,
    "MASTERDOWN": MasterDownError,
    "MOVED": MovedError,
    "NOAUTH": AuthenticationError,
    "NOSCRIPT": NoScriptError,
    "READONLY": ReadOnlyError,
    "TRYAGAIN": TryAgainError,
    "WRONGPASS": AuthenticationError,
}
# What hiredis gives while a reply is not whole; no reply is it.
_INCOMPLETE: Final = object()


class Connection(asyncio.Protocol):
    """A connection that one caller at a time may use.

    Whoever gives up on a round trip closes the connection: what is still to come would be taken for other replies.
    """

    def __init__(self) -> None:
        self._reader = hiredis.Reader(
            protocolError=RedisConnectionError, replyError=_error_of, notEnoughData=_INCOMPLETE
        )
        self._transport: asyncio.Transport | None = None
        self._replies: list[Reply] = []
        self._wanted = 0
        self._answered: asyncio.Future[list[Reply]] | None = None

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent, as far as is known."""
        return self._transport is not None and not self._transport.is_closing()

    async def round_trip(self, commands: Sequence[Sequence[Word]]) -> list[Reply]:
        """Send commands, at least one, and return their replies in order, errors in their places.

        Raises:
            redis.exceptions.ConnectionError: the connection is closed, was lost, or does not speak the protocol.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            raise RedisConnectionError("the connection is closed")
        self._replies, self._wanted = [], len(commands)
        self._answered = asyncio.get_running_loop().create_future()
        try:
            transport.write(b"".join(map(_packed, commands)))
            return await self._answered
        except BaseException:
            self.close()
            raise
        finally:
            self._answered = None

    def close(self) -> None:
        """Close it; whoever waits gets an error."""
        if self._transport is not None:
            self._transport.abort()
        self._fail(RedisConnectionError("the connection was closed"))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        # Not asked by isinstance: uvloop's are transports by what they can do, not by descent.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _INCOMPLETE:
                self._replies.append(reply)
        except RedisConnectionError as exc:
            self._fail(exc)
            self.close()
            return
        if self._answered is None or len(self._replies) > self._wanted:
            # Nobody asked for this, so nobody could tell whose the next reply is.
            self.close()
        elif len(self._replies) == self._wanted and not self._answered.done():
            self._answered.set_result(self._replies)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self._transport = None
        lost = RedisConnectionError("the connection was lost")
        lost.__cause__ = exc
        self._fail(lost)

    def _fail(self, error: RedisConnectionError) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)


async def connect(
    where: Endpoint | str,
    *,
    tls: ssl.SSLContext | None = None,
    username: str | None = None,
    password: str | None = None,
    database: int = 0,
) -> Connection:
    """Return a connection that is logged in and has chosen its database.

    Args:
        where: host and port, or the path of a socket.
        tls: None for none.
        username: None for the default user.
        password: None for no login.
        database: number of the database.

    Raises:
        redis.exceptions.RedisError: the server refuses.
        OSError: there is none, or TLS fails.
    """
    loop = asyncio.get_running_loop()
    factory: Callable[[], Connection] = Connection
    if isinstance(where, str):
        _, connection = await loop.create_unix_connection(factory, where)
    else:
        host, port = where
        _, connection = await loop.create_connection(factory, host, port, ssl=tls)
    commands: list[Sequence[Word]] = []
    if password is not None:
        commands.append(("AUTH", password) if username is None else ("AUTH", username, password))
    if database:
        commands.append(("SELECT", database))
    if commands:
        for reply in await connection.round_trip(commands):
            if isinstance(reply, Exception):
                connection.close()
                raise reply
    return connection


def _packed(command: Sequence[Word]) -> bytes:
    packed: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]  # its stub means a tuple of one
    return packed


def _error_of(text: str) -> RedisError:
    """Return an error reply as the driver's exception, without the word that it begins with."""
    word, _, rest = text.partition(" ")
    known = _ERRORS.get(word)
    return known(rest) if known is not None else ResponseError(text)
