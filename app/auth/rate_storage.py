"""Where requests are counted: the settings' Redis, by the library `limits`, whichever kind of Redis it is."""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from limits.aio.storage import RedisClusterStorage, RedisStorage
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from app.settings import Settings
from app.store.redis.connection import MAX_CONNECTIONS
from model.redis_url import RedisAddress, parse_redis_url

# Below `wb:` as all keys of the service are, so that a user of Redis may be confined to them.
_PREFIX: Final = "wb:rate"

Storage = tuple[RedisStorage, Callable[[], Awaitable[None]]]
"""What counts, and what closes its connections."""


def open_storage(settings: Settings) -> Storage:
    """Return what counts in the settings' Redis; it connects when it is first used."""
    address = parse_redis_url(settings.redis_url.get_secret_value())
    options = _options(settings, address)
    if address.kind == "cluster":
        hosts = ",".join(f"{host}:{port}" for host, port in address.endpoints)
        storage: RedisStorage = RedisClusterStorage(
            f"async+redis+cluster://{hosts}",
            implementation="redispy",
            key_prefix=_PREFIX,
            **options,
            **_login(address),
            **_tls(settings, address),
        )
        return storage, storage.bridge.storage.aclose  # type: ignore[attr-defined]  # the library hides which bridge
    redis, close = _single(settings, address, options)
    storage = RedisStorage(
        "async+redis://",
        implementation="redispy",
        key_prefix=_PREFIX,
        connection_pool=redis.connection_pool,  # type: ignore[arg-type]  # annotated without it, documented with it
    )
    return storage, close


def _single(
    settings: Settings, address: RedisAddress, options: dict[str, Any]
) -> tuple[Redis, Callable[[], Awaitable[None]]]:
    """Return a client of one server, or of the primary that sentinels name."""
    if address.kind == "single":
        waits = options | {"timeout": settings.redis_timeout_s}
        pool = BlockingConnectionPool.from_url(
            settings.redis_url.get_secret_value(), **waits, **_tls(settings, address)
        )
        redis: Redis = Redis(connection_pool=pool)

        async def close_pool() -> None:
            await redis.aclose()
            await pool.disconnect()

        return redis, close_pool
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # the driver ships it untyped
        address.endpoints,
        sentinel_kwargs=options
        | {"username": address.sentinel_username, "password": address.sentinel_password}
        | _tls(settings, address),
    )
    primary: Redis = sentinel.master_for(
        address.service, db=address.database, **options, **_login(address), **_tls(settings, address)
    )

    async def close() -> None:
        await primary.aclose()
        await sentinel.aclose()

    return primary, close


def _options(settings: Settings, address: RedisAddress) -> dict[str, Any]:
    waits: dict[str, Any] = {
        "max_connections": MAX_CONNECTIONS,
        "socket_timeout": settings.redis_timeout_s,
        "socket_connect_timeout": settings.redis_timeout_s,
    }
    # A request that could not be counted is let through, so nothing is tried for long.
    return waits if address.kind == "cluster" else waits | {"retry": Retry(NoBackoff(), 1)}


def _login(address: RedisAddress) -> dict[str, Any]:
    return {"username": address.username, "password": address.password}


def _tls(settings: Settings, address: RedisAddress) -> dict[str, Any]:
    if not address.tls:
        return {}
    ca_file = {} if settings.redis_ca_file is None else {"ssl_ca_certs": str(settings.redis_ca_file)}
    # A URL of one server says it by its scheme.
    return ca_file if address.kind == "single" else {"ssl": True, **ca_file}
