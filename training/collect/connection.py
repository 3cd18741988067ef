"""redis-py's synchronous client for the Redis of `WILLBUY_REDIS_URL`."""

from pathlib import Path
from typing import Any, Final

from redis import Redis, RedisCluster, Sentinel
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.retry import Retry

from model.redis_tls import tls_context
from model.redis_url import parse_redis_url
from training.collect.errors import CollectError

_TIMEOUT_S: Final = 30.0
# XREADGROUP moves entries to this consumer. After a lost reply, a retry would return later entries; see `collect`.
_NO_RETRY: Final = Retry(NoBackoff(), 0)

# The return types of a client's methods depend on its options, which redis-py's annotations do not express.
Client = Any


def open_client(
    url: str, ca_file: Path | None = None, cert_file: Path | None = None, key_file: Path | None = None
) -> Client:
    """Return a client, which connects at its first command.

    Args:
        url: which Redis, see `model.redis_url`.
        ca_file: certificate authorities that TLS trusts beside the system's, in PEM.
        cert_file: the client's certificate, in PEM; None: none.
        key_file: its private key, in PEM; None: it is in `cert_file`.

    Raises:
        CollectError: the URL is invalid, and the message repeats nothing of it; or a file for TLS cannot be used.
    """
    try:
        address = parse_redis_url(url)
    except ValueError as exc:
        raise CollectError(f"--redis-url: expected a Redis URL; it {exc}") from exc
    common: dict[str, Any] = {"socket_timeout": _TIMEOUT_S}
    if address.tls:
        try:
            # For its messages alone: redis-py reads the files again, and its errors name no file.
            tls_context(ca_file, cert_file, key_file)
        except ValueError as exc:
            raise CollectError(str(exc)) from exc
        files = {"ssl_ca_certs": ca_file, "ssl_certfile": cert_file, "ssl_keyfile": key_file}
        common |= {"ssl": True} | {name: None if path is None else str(path) for name, path in files.items()}
    server = common | {"retry": _NO_RETRY, "username": address.username, "password": address.password}
    if address.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in address.endpoints]  # type: ignore[no-untyped-call]  # redis-py ships it untyped
        return RedisCluster(startup_nodes=nodes, **server)
    server["db"] = address.database
    if address.kind == "sentinel":
        login = {"username": address.sentinel_username, "password": address.sentinel_password}
        # Instead of a retry, the next sentinel is asked.
        options = common | login | {"retry": _NO_RETRY}
        sentinel = Sentinel(address.endpoints, sentinel_kwargs=options)  # type: ignore[no-untyped-call]  # same
        return sentinel.master_for(address.service, **server)  # type: ignore[no-untyped-call]  # same
    if address.socket_path:
        return Redis(unix_socket_path=address.socket_path, **server)
    host, port = address.endpoints[0]
    return Redis(host=host, port=port, **server)
