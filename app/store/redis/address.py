"""Which Redis is meant, read from a URL.

    redis://[user:password@]host[:port][/db]            one server
    unix:///path[?db=number]                            one server, on a socket
    redis+cluster://[user:password@]host[:port],...     a cluster, by some of its nodes
    redis+sentinel://[user:password@]host[:port],.../service[/db][?sentinel_username=...&sentinel_password=...]
                                                        the primary that these sentinels name for the service

`rediss://`, `rediss+cluster://` and `rediss+sentinel://` are the same over TLS. User and password before the `@` are
the servers'. Special characters of users and passwords are percent-encoded.
"""

from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

_REDIS_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_KINDS: Final[dict[str, tuple[Literal["single", "cluster", "sentinel"], bool]]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("single", False),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
}

_SENTINEL_OPTIONS: Final = frozenset({"sentinel_username", "sentinel_password"})

Endpoint = tuple[str, int]


@dataclass(frozen=True, slots=True, repr=False)
class RedisAddress:
    """One URL, taken apart; not printable, as it holds the password.

    Attributes:
        url: as it was given.
        kind: one server, a cluster, or sentinels.
        tls: whether connections are encrypted.
        endpoints: host and port of the server, the cluster's nodes, or the sentinels; empty for a socket.
        username: the servers' user, if any.
        password: the servers' password, if any.
        service: the sentinels' name of the primary; empty otherwise.
        database: number of the database.
        socket_path: path of the server's socket; empty when it is reached by host and port.
        sentinel_username: the sentinels' user, if any.
        sentinel_password: the sentinels' password, if any.
    """

    url: str
    kind: Literal["single", "cluster", "sentinel"]
    tls: bool
    endpoints: tuple[Endpoint, ...]
    username: str | None
    password: str | None
    service: str
    database: int
    socket_path: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = None


def parse_address(url: str) -> RedisAddress:
    """Return what the URL says; raise `ValueError`, without a word of the URL in it, when it says nothing sensible."""
    parts = urlsplit(url)
    if parts.scheme not in _KINDS:
        raise ValueError("must start with redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://")
    kind, tls = _KINDS[parts.scheme]
    user_part, separator, host_part = parts.netloc.rpartition("@")
    username, _, password = user_part.partition(":")
    if parts.scheme == "unix":
        if not parts.path:
            raise ValueError("must name the socket's path: unix:///run/redis/redis.sock")
        endpoints: tuple[Endpoint, ...] = ()
    else:
        default_port = _SENTINEL_PORT if kind == "sentinel" else _REDIS_PORT
        endpoints = tuple(_endpoint(text, default_port) for text in host_part.split(","))
    service, database = _path(kind, parts)
    if kind == "single" and len(endpoints) > 1:
        raise ValueError("must name one host; several are for redis+cluster:// and redis+sentinel://")
    if parts.query and parts.scheme != "unix" and kind != "sentinel":
        raise ValueError("must not have options after a question mark; there are settings for them")
    sentinel_login = _sentinel_login(parts) if kind == "sentinel" else {}
    return RedisAddress(
        url=url,
        kind=kind,
        tls=tls,
        endpoints=endpoints,
        username=(unquote(username) or None) if separator else None,
        password=(unquote(password) or None) if separator else None,
        service=service,
        database=database,
        socket_path=unquote(parts.path) if parts.scheme == "unix" else "",
        **sentinel_login,
    )


def masked_url(url: str) -> str:
    """Return a URL that was accepted without its password and options, fit for logs."""
    parts = urlsplit(url)
    user_part, separator, host_part = parts.netloc.rpartition("@")
    user = f"{user_part.partition(':')[0]}:***@" if separator else ""
    return f"{parts.scheme}://{user}{host_part}{parts.path}"


def _endpoint(text: str, default_port: int) -> Endpoint:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("must name a host: redis://host:6379/0")
    # `port` raises ValueError for a port that is none, without naming the URL.
    return parts.hostname, parts.port or default_port


def _sentinel_login(parts: SplitResult) -> dict[str, str]:
    # A plus sign is itself, as before the `@`.
    options = parse_qs(parts.query.replace("+", "%2B"), keep_blank_values=True)
    if not options.keys() <= _SENTINEL_OPTIONS or any(len(values) > 1 for values in options.values()):
        raise ValueError("must not have other options than sentinel_username and sentinel_password, each once")
    return {name: values[0] for name, values in options.items() if values[0]}


def _path(kind: str, parts: SplitResult) -> tuple[str, int]:
    """Return the sentinels' service and the number of the database."""
    if parts.scheme == "unix":
        options = parse_qs(parts.query, keep_blank_values=True)
        numbers = options.pop("db", ["0"])
        if options or len(numbers) > 1 or not numbers[0].isdecimal():
            raise ValueError("must have no other option than a database number: unix:///path?db=0")
        return "", int(numbers[0])
    words = [unquote(word) for word in parts.path.strip("/").split("/") if word]
    service = ""
    if kind == "sentinel":
        if not words:
            raise ValueError("must name the service: redis+sentinel://host:26379/service")
        service = words.pop(0)
    if kind == "cluster" and words not in ([], ["0"]):
        raise ValueError("must not name a database: a cluster has only database 0")
    if len(words) > 1 or not all(word.isdecimal() for word in words):
        raise ValueError("must end in a database number: redis://host:6379/0")
    return service, int(words[0]) if words else 0
