"""Parser of the Redis URL. The service and `willbuy collect` read the same URL, so the parser belongs to neither.

    redis://[user:password@]host[:port][/db]            one server
    unix://[user:password@]/path[?db=number]            one server, on a Unix socket
    redis+cluster://[user:password@]host[:port],...     a cluster; some of its nodes are enough
    redis+sentinel://[user:password@]host[:port],.../service[/db][?sentinel_username=...&sentinel_password=...]
                                                        the primary that the sentinels name for the service

`rediss://`, `rediss+cluster://` and `rediss+sentinel://` are the same over TLS. User and password before the `@` belong
to the servers; the sentinels' own are options. Special characters are percent-encoded:
a `#`, `/` or `?` ends the host part, so that a piece of a password would be taken for a port, a path or an option.
"""

import contextlib
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

_REDIS_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_ENCODE: Final = (
    "must have user and password percent-encoded: write %23 for #, %2F for /, %3F for ?, %40 for @, %5B for [, "
    "%5D for ]"
)
_KINDS: Final[dict[str, tuple[Literal["single", "cluster", "sentinel"], bool]]] = {
    "redis": ("single", False),
    "rediss": ("single", True),
    "unix": ("single", False),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
}

Endpoint = tuple[str, int]


@dataclass(frozen=True, slots=True, repr=False)
class RedisAddress:
    """The parts of a Redis URL. Has no `repr`, because it holds passwords.

    Attributes:
        kind: one server, a cluster, or sentinels.
        tls: whether connections are encrypted.
        endpoints: host and port of the server, of cluster nodes, or of sentinels; empty for a Unix socket.
        username: user at the servers, if any.
        password: password at the servers, if any.
        service: the sentinels' name of the primary; else empty.
        database: number of the database.
        socket_path: path of the Unix socket; empty for TCP.
        sentinel_username: user at the sentinels, if any.
        sentinel_password: password at the sentinels, if any.
    """

    kind: Literal["single", "cluster", "sentinel"]
    tls: bool
    endpoints: tuple[Endpoint, ...]
    username: str | None
    password: str | None
    service: str
    database: int
    socket_path: str
    sentinel_username: str | None
    sentinel_password: str | None


def parse_redis_url(url: str) -> RedisAddress:
    """Return the parts of a URL.

    Raises:
        ValueError: the URL is invalid. The message begins with "must". Neither the message nor the exceptions behind
            it repeat anything of the URL, as any part of a mistyped URL may be a password.
    """
    parts = _split(url)
    if _has_misplaced_login(parts):
        raise ValueError(_ENCODE)
    if parts.scheme not in _KINDS:
        raise ValueError("must start with redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://")
    kind, tls = _KINDS[parts.scheme]
    user_part, _, host_part = parts.netloc.rpartition("@")
    username, _, password = user_part.partition(":")
    # A plus sign is itself, as before the `@`.
    options = parse_qs(parts.query.replace("+", "%2B"), keep_blank_values=True)
    is_socket = parts.scheme == "unix"
    if is_socket:
        if not parts.path:
            raise ValueError("must name the socket's path: unix:///run/redis/redis.sock")
        if host_part:
            raise ValueError(_ENCODE if user_part else "must have no host: unix:///run/redis/redis.sock")
        endpoints: tuple[Endpoint, ...] = ()
        service, database = "", _database(_option(options, "db") or "0")
    else:
        default_port = _SENTINEL_PORT if kind == "sentinel" else _REDIS_PORT
        endpoints = tuple(_endpoint(text, default_port) for text in host_part.split(","))
        service, database = _service_and_database(kind, parts.path)
    if kind == "single" and len(endpoints) > 1:
        raise ValueError("must name one host; several are for redis+cluster:// and redis+sentinel://")
    is_sentinel = kind == "sentinel"
    sentinel_username = _option(options, "sentinel_username") if is_sentinel else None
    sentinel_password = _option(options, "sentinel_password") if is_sentinel else None
    if options:
        raise ValueError(
            "must have no other options after the question mark than `db` (unix://), "
            "`sentinel_username` and `sentinel_password` (redis+sentinel://)"
        )
    return RedisAddress(
        kind=kind,
        tls=tls,
        endpoints=endpoints,
        username=unquote(username) or None,
        password=unquote(password) or None,
        service=service,
        database=database,
        socket_path=unquote(parts.path) if is_socket else "",
        sentinel_username=sentinel_username,
        sentinel_password=sentinel_password,
    )


def mask_redis_url(url: str) -> str:
    """Return a valid URL without passwords and options, fit for logs."""
    parts = urlsplit(url)
    user_part, separator, host_part = parts.netloc.rpartition("@")
    username, colon, _ = user_part.partition(":")
    # What stands alone before the `@` is a user, and in many URLs a password whose colon was forgotten.
    user = f"{username if colon else ''}:***@" if separator else ""
    return f"{parts.scheme}://{user}{host_part}{parts.path}"


def _split(url: str) -> SplitResult:
    # The standard library's message repeats the host part, and so the password. Raising outside of `except` keeps it
    # out of the new exception's context as well.
    with contextlib.suppress(ValueError):
        return urlsplit(url)
    raise ValueError(_ENCODE if "@" in url else "must be a URL: redis://host:6379/0")


def _has_misplaced_login(parts: SplitResult) -> bool:
    """Whether the end of a user or password follows the host part, which a `#`, `/` or `?` in it has ended."""
    return bool(parts.fragment) or "@" in parts.path + parts.query


def _endpoint(text: str, default_port: int) -> Endpoint:
    parts = _split(f"//{text}")
    if not parts.hostname:
        raise ValueError("must name a host: redis://host:6379/0")
    # As in `_split`; what follows the colon is a password where its `@` is missing.
    with contextlib.suppress(ValueError):
        return parts.hostname, parts.port or default_port
    raise ValueError("must have a port from 1 to 65535 after the host: redis://host:6379/0")


def _option(options: dict[str, list[str]], name: str) -> str | None:
    """Remove an option that may stand once, and return its value; None without one."""
    values = options.pop(name, [])
    if len(values) > 1:
        raise ValueError("must have options each once")
    return (values[0] or None) if values else None


def _service_and_database(kind: str, path: str) -> tuple[str, int]:
    segments = [unquote(segment) for segment in path.strip("/").split("/") if segment]
    service = ""
    if kind == "sentinel":
        if not segments:
            raise ValueError("must name the service: redis+sentinel://host:26379/service")
        service = segments.pop(0)
    if kind == "cluster" and segments not in ([], ["0"]):
        raise ValueError("must not name a database: a cluster has only database 0")
    if len(segments) > 1:
        raise ValueError("must end in a database number: redis://host:6379/0")
    return service, _database(segments[0]) if segments else 0


def _database(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("must end in a database number (unix://: option `db`): redis://host:6379/0")
    return int(text)
