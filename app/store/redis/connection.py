"""From a URL to a client: one server, a primary behind sentinels, or a cluster.

A command names its shard, by which a cluster finds the node. A single server ignores the shard.
"""

import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from app.store.redis.breaker import FAILURES_TO_OPEN, OPEN_S, CircuitBreaker
from app.store.redis.cluster import ClusterClient, Command
from app.store.redis.server import Reply, Server
from model.redis_tls import tls_context
from model.redis_url import Endpoint, RedisAddress, parse_redis_url

__all__ = ["Command", "ConnectionOptions", "RedisClient", "open_client"]

# Two batches, two readings of the board and the background loops run at a time; the rest is for reads of sessions.
MAX_CONNECTIONS: Final = 16


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """Options of connections, beside the URL.

    Attributes:
        timeout_s: longest wait for one round trip, connecting included.
        max_connections: most connections to one server.
        ca_file: certificate authorities that TLS trusts, in PEM; None: the system's.
        cert_file: the client's certificate, in PEM; None: none.
        key_file: its private key, in PEM; None: it is in `cert_file`.
        failures_to_open: failures of a server in a row that open its circuit breaker.
        open_s: seconds until an open circuit breaker lets a probe through.
        on_failure: called with the cause (`app.store.redis.causes`) and the error of each failed round trip or command.
        on_breaker: called with True when a server's circuit breaker opens, with False when it closes.
    """

    timeout_s: float = 0.5
    max_connections: int = MAX_CONNECTIONS
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    failures_to_open: int = FAILURES_TO_OPEN
    open_s: float = OPEN_S
    on_breaker: Callable[[bool], None] = lambda _opened: None
    on_failure: Callable[[str, Exception], None] = lambda _cause, _error: None


class RedisClient(Protocol):
    """Sends commands. Nothing raises: an error takes the place of its reply."""

    @property
    def max_shards_per_script(self) -> int:
        """How many shards one script call may touch; the server serves no other client while a script runs."""
        ...

    @property
    def names_all_keys(self) -> bool:
        """Whether a script's call must name every key that the script may touch."""
        ...

    async def get(self, shards: Sequence[int], keys: Sequence[str]) -> list[Reply]:
        """Return the strings under keys, given the shard of each, in one round trip per server."""
        ...

    async def execute(self, commands: Sequence[Command], *, wait_replicas: int = 0) -> list[Reply]:
        """Return the replies of commands in order, in one round trip per server unless slots move.

        A command may be sent twice. With `wait_replicas`, writes that fewer replicas confirmed are errors.
        """
        ...

    async def server_shards(self) -> list[int]:
        """Return one shard of each known server; none if no server is known."""
        ...

    async def ping(self) -> Exception | None:
        """Return the failure, or None when at least one server answers."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class SingleClient:
    """Client of one server, or of the primary that sentinels name; implements `RedisClient`."""

    max_shards_per_script = 16
    names_all_keys = False

    def __init__(self, server: Server, sentinel: Sentinel | None = None) -> None:
        self._server = server
        self._sentinel = sentinel

    async def get(self, shards: Sequence[int], keys: Sequence[str]) -> list[Reply]:  # noqa: ARG002 - for a cluster
        if not keys:
            return []
        (values,) = await self._server.execute([("MGET", *keys)])
        return [values] * len(keys) if isinstance(values, Exception) else values

    async def execute(self, commands: Sequence[Command], *, wait_replicas: int = 0) -> list[Reply]:
        return await self._server.execute([arguments for _, arguments in commands], wait_replicas=wait_replicas)

    async def server_shards(self) -> list[int]:
        return [0]

    async def ping(self) -> Exception | None:
        (reply,) = await self._server.execute([("PING",)])
        return reply if isinstance(reply, Exception) else None

    async def close(self) -> None:
        await self._server.close()
        if self._sentinel is not None:
            await self._sentinel.aclose()


def open_client(url: str, options: ConnectionOptions) -> RedisClient:
    """Return a client, which connects at its first command.

    Raises:
        ValueError: the URL is invalid, and the message repeats nothing of it; or a file for TLS cannot be used.
    """
    address = parse_redis_url(url)
    # One context for all connections: loading the certificates takes milliseconds, and a bad file fails at start.
    tls = tls_context(options.ca_file, options.cert_file, options.key_file) if address.tls else None
    if address.kind == "cluster":
        return ClusterClient(
            address.endpoints,
            lambda endpoint: _server(lambda: _connect(address, endpoint, tls), options),
            timeout_s=options.timeout_s,
        )
    if address.kind == "sentinel":
        sentinel = _sentinel(address, options)

        async def connect_to_primary() -> AbstractConnection:
            # Asked for each connection, as a fail-over makes another server the primary.
            return await _connect(address, await sentinel.discover_master(address.service), tls)

        return SingleClient(_server(connect_to_primary, options), sentinel)
    where = address.socket_path or address.endpoints[0]
    return SingleClient(_server(lambda: _connect(address, where, tls), options))


async def _connect(address: RedisAddress, where: Endpoint | str, tls: ssl.SSLContext | None) -> AbstractConnection:
    """Return a connection that is logged in and has selected the database.

    Args:
        address: login and database.
        where: host and port, or the path of a Unix socket.
        tls: None for no TLS.

    Raises:
        redis.exceptions.RedisError: there is no server, or the server refuses the login.
    """
    # Without time limits, which cost a timer per call: `Server` bounds the whole round trip.
    options: dict[str, Any] = {
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "protocol": 2,
        "driver_info": None,
        "username": address.username,
        "password": address.password,
        "db": address.database,
    }
    connection: AbstractConnection
    if isinstance(where, str):
        connection = UnixDomainSocketConnection(path=where, **options)
    elif tls is None:
        connection = Connection(host=where[0], port=where[1], **options)
    else:
        connection = SSLConnection(host=where[0], port=where[1], **options)
        # redis-py's own context trusts the system's authorities beside those of the file.
        connection.ssl_context.context = tls
    try:
        await connection.connect()  # type: ignore[no-untyped-call]  # redis-py ships it untyped
    except BaseException:
        # redis-py leaves the socket open when a login is cancelled.
        await connection.disconnect(nowait=True)
        raise
    return connection


def _sentinel(address: RedisAddress, options: ConnectionOptions) -> Sentinel:
    tls = {
        "ssl": True,
        "ssl_ca_certs": _text(options.ca_file),
        "ssl_certfile": _text(options.cert_file),
        "ssl_keyfile": _text(options.key_file),
    }
    # They are asked one after another, so one that is gone or hangs must leave time for the others and the primary:
    # redis-py would try each ten times, for seconds.
    each_s = options.timeout_s / (len(address.endpoints) + 1)
    return Sentinel(  # type: ignore[no-untyped-call]  # redis-py ships it untyped
        address.endpoints,
        sentinel_kwargs={
            "socket_timeout": each_s,
            "socket_connect_timeout": each_s,
            "retry": Retry(NoBackoff(), 0),
            "username": address.sentinel_username,
            "password": address.sentinel_password,
            **(tls if address.tls else {}),
        },
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _server(connect: Callable[[], Awaitable[AbstractConnection]], options: ConnectionOptions) -> Server:
    breaker = CircuitBreaker(
        failures_to_open=options.failures_to_open,
        open_s=options.open_s,
        clock_s=time.monotonic,
        on_change=options.on_breaker,
    )
    return Server(
        connect,
        timeout_s=options.timeout_s,
        max_connections=options.max_connections,
        breaker=breaker,
        on_failure=options.on_failure,
    )
