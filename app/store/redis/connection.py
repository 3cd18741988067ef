"""From an address to something that commands can be sent to, whatever kind of Redis it is.

A command names its shard, so that a cluster knows where it goes; a single server does not care.
"""

import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from redis.asyncio.sentinel import Sentinel

from app.store.redis.breaker import FAILURES_TO_OPEN, OPEN_S, CircuitBreaker
from app.store.redis.cluster import Cluster, Command
from app.store.redis.server import Reply, Server
from app.store.redis.wire import Connection, connect
from model.redis_url import Endpoint, RedisAddress, parse_redis_url

# Two batches, two readings of the board and the background loops run at a time; the rest is for reads of sessions.
MAX_CONNECTIONS: Final = 16

__all__ = ["Command", "ConnectionOptions", "Link", "open_link"]


@dataclass(frozen=True, slots=True)
class ConnectionOptions:
    """How Redis is called, beside its address.

    Attributes:
        timeout_s: longest wait for one round trip, connecting included.
        max_connections: most connections to one server.
        ca_file: certificates that TLS trusts; None: the system's.
        failures_to_open: failures of a server in a row after which it is left alone.
        open_s: for how many seconds it is left alone.
        on_breaker: called with True when a server is left alone, with False when it answers again.
    """

    timeout_s: float = 0.5
    max_connections: int = MAX_CONNECTIONS
    ca_file: Path | None = None
    failures_to_open: int = FAILURES_TO_OPEN
    open_s: float = OPEN_S
    on_breaker: Callable[[bool], None] = lambda _opened: None


class Link(Protocol):
    """Where commands go. Nothing raises: an error stands in its reply's place."""

    @property
    def shards_a_script(self) -> int:
        """How many shards one script call may touch; it holds up the server for as long as it runs."""
        ...

    async def get(self, shards: Sequence[int], keys: Sequence[str]) -> list[Reply]:
        """Return the strings under keys, given the shard of each, in one round trip a server."""
        ...

    async def execute(self, commands: Sequence[Command], *, wait_replicas: int = 0) -> list[Reply]:
        """Return the replies of commands in order, in one round trip a server where nothing moves.

        A command may be sent twice. With `wait_replicas`, writes that fewer replicas confirmed are errors.
        """
        ...

    async def ping(self) -> Exception | None:
        """Return what is wrong, or None when there is a server that answers."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class SingleLink:
    """One server, or the primary that sentinels name."""

    shards_a_script = 16

    def __init__(self, server: Server, sentinel: Sentinel | None = None) -> None:
        self._server = server
        self._sentinel = sentinel

    async def get(self, shards: Sequence[int], keys: Sequence[str]) -> list[Reply]:  # noqa: ARG002 - for a cluster
        """See `Link.get`."""
        if not keys:
            return []
        (values,) = await self._server.execute([("MGET", *keys)])
        return [values] * len(keys) if isinstance(values, Exception) else values

    async def execute(self, commands: Sequence[Command], *, wait_replicas: int = 0) -> list[Reply]:
        """See `Link.execute`."""
        return await self._server.execute([words for _, words in commands], wait_replicas=wait_replicas)

    async def ping(self) -> Exception | None:
        """See `Link.ping`."""
        (reply,) = await self._server.execute([("PING",)])
        return reply if isinstance(reply, Exception) else None

    async def close(self) -> None:
        """See `Link.close`."""
        await self._server.close()
        if self._sentinel is not None:
            await self._sentinel.aclose()


def open_link(url: str, options: ConnectionOptions) -> Link:
    """Return a link to what the URL names; connects when the first command comes."""
    address = parse_redis_url(url)
    tls = _tls(options) if address.tls else None
    if address.kind == "cluster":
        return Cluster(
            address.endpoints,
            lambda endpoint: _server(_connector(address, endpoint, tls), options),
            timeout_s=options.timeout_s,
        )
    if address.kind == "sentinel":
        sentinel = _sentinel(address, options)

        async def connect_to_primary() -> Connection:
            # Asked anew for each connection: another server may be the primary by now.
            host, port = await sentinel.discover_master(address.service)
            return await _connector(address, (host, port), tls)()

        return SingleLink(_server(connect_to_primary, options), sentinel)
    return SingleLink(_server(_connector(address, address.socket_path or address.endpoints[0], tls), options))


def _connector(
    address: RedisAddress, where: Endpoint | str, tls: ssl.SSLContext | None
) -> Callable[[], Awaitable[Connection]]:
    """Return what makes connections to one server."""
    return lambda: connect(
        where, tls=tls, username=address.username, password=address.password, database=address.database
    )


def _sentinel(address: RedisAddress, options: ConnectionOptions) -> Sentinel:
    return Sentinel(  # type: ignore[no-untyped-call]  # the driver ships it untyped
        address.endpoints,
        sentinel_kwargs={
            "socket_timeout": options.timeout_s,
            "socket_connect_timeout": options.timeout_s,
            "username": address.sentinel_username,
            "password": address.sentinel_password,
            **({"ssl": True} if address.tls else {}),
            **({"ssl_ca_certs": str(options.ca_file)} if address.tls and options.ca_file is not None else {}),
        },
    )


def _server(connector: Callable[[], Awaitable[Connection]], options: ConnectionOptions) -> Server:
    breaker = CircuitBreaker(
        failures_to_open=options.failures_to_open,
        open_s=options.open_s,
        clock_s=time.monotonic,
        on_change=options.on_breaker,
    )
    return Server(connector, timeout_s=options.timeout_s, max_connections=options.max_connections, breaker=breaker)


def _tls(options: ConnectionOptions) -> ssl.SSLContext:
    """Return what checks certificates and host names; loads the certificates, so a bad file is told at start."""
    return ssl.create_default_context(cafile=None if options.ca_file is None else str(options.ca_file))
