"""From the service's Redis URL to a client; the service's own is made for its hot path and is not for others."""

from typing import Any, Final
from urllib.parse import unquote, urlsplit

from redis import Redis, RedisCluster, Sentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry

from training.collect.errors import CollectError

_TIMEOUT_S: Final = 30.0
# A reading whose reply was lost has given entries out; asked again, the group would give others. See `collect`.
_NO_RETRY: Final = Retry(NoBackoff(), 0)
_REDIS_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_EXPECTED: Final = "--redis-url: expected redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://"

# Its methods' return types depend on how it was made, which redis-py's annotations do not say.
Client = Any


def open_client(url: str) -> Client:
    """Return a client for the URL that the service has in `WILLBUY_REDIS_URL`; it connects when it is first used.

    Raises:
        CollectError: the URL says nothing sensible; the message does not repeat it, as it may hold a password.
    """
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if scheme not in ("redis", "rediss", "unix") or kind not in ("", "cluster", "sentinel"):
        raise CollectError(_EXPECTED)
    try:
        if not kind:
            return Redis.from_url(url, socket_timeout=_TIMEOUT_S, retry=_NO_RETRY)
        user, separator, hosts = parts.netloc.rpartition("@")
        username, _, password = user.partition(":")
        login: dict[str, Any] = {"socket_timeout": _TIMEOUT_S, "retry": _NO_RETRY, "ssl": scheme == "rediss"}
        if separator:
            login |= {"username": unquote(username) or None, "password": unquote(password) or None}
        if kind == "cluster":
            nodes = [
                ClusterNode(*_endpoint(host, _REDIS_PORT))  # type: ignore[no-untyped-call]  # redis-py ships it untyped
                for host in hosts.split(",")
            ]
            return RedisCluster(startup_nodes=nodes, **login)
        service, _, database = parts.path.strip("/").partition("/")
        sentinels = [_endpoint(host, _SENTINEL_PORT) for host in hosts.split(",")]
        sentinel = Sentinel(  # type: ignore[no-untyped-call]  # same
            sentinels, sentinel_kwargs={"socket_timeout": _TIMEOUT_S, "ssl": scheme == "rediss"}
        )
        return sentinel.master_for(unquote(service), db=int(database or 0), **login)  # type: ignore[no-untyped-call]  # same
    except ValueError as exc:
        raise CollectError(_EXPECTED) from exc


def _endpoint(text: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise CollectError("--redis-url: expected the name of a host: redis://host:6379/0")
    return parts.hostname, parts.port or default_port
