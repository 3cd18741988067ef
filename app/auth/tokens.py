"""Short-lived tokens for browsers, which cannot keep an API key secret: to read one session, or the board.

A token is random and is stored in Redis under its SHA-256, so that every replica knows it and it ends by itself. It is
worth no more than the API key that it was made with: it ends with that key.
"""

import secrets
import time
from collections.abc import Iterable
from hashlib import sha256
from typing import Final
from urllib.parse import parse_qsl, urlencode

import msgspec

from app.store.keys import Keys, shard_of
from app.store.redis.connection import Command, RedisClient
from app.store.redis.scripts import unavailable

_PREFIX: Final = "wbt_"
_RANDOM_BYTES: Final = 32
_PARAMETER: Final = b"token"
_BEARER: Final = b"bearer "
_SESSION: Final = "/v1/sessions/"
_BOARD: Final = frozenset({"/v1/sessions", "/v1/stats", "/v1/history", "/v1/stream"})


class Token(msgspec.Struct, frozen=True):
    """What a token allows.

    Attributes:
        key_sha256: SHA-256, in hexadecimal, of the API key that it was made with; empty with open access.
        session_id: the session that it may read; None: the board, the statistics and the stream.
        expires_s: its end, in seconds since the epoch.
    """

    key_sha256: str
    session_id: str | None
    expires_s: float

    def allows(self, method: str, path: str) -> bool:
        """Return whether it allows a call, given the path without a proxy's prefix."""
        if method != "GET":
            return False
        return path in _BOARD if self.session_id is None else path == _SESSION + self.session_id

    @property
    def left_s(self) -> float:
        """Seconds until its end."""
        return self.expires_s - time.time()


_encode: Final = msgspec.json.Encoder().encode
_decoder: Final = msgspec.json.Decoder(Token)


class TokenStore:
    """The tokens in Redis.

    Args:
        client: the Redis that keeps them.
        keys: the keys of this service.
    """

    def __init__(self, client: RedisClient, *, keys: Keys) -> None:
        self._client = client
        self._keys = keys

    async def issue(self, key_sha256: str, session_id: str | None, lifetime_s: int) -> str:
        """Return a new token; raise `StoreError` where Redis does not keep it.

        Args:
            key_sha256: of the API key that asks, as in `Token`.
            session_id: the session that the token may read; None: the board.
            lifetime_s: its lifetime in seconds.
        """
        token = _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        digest = _digest(token)
        value = _encode(Token(key_sha256, session_id, time.time() + lifetime_s))
        command = Command(shard_of(digest), ("SET", self._keys.token(digest), value, "PX", lifetime_s * 1000))
        (reply,) = await self._client.execute([command])
        if isinstance(reply, Exception):
            raise unavailable(reply)
        return token

    async def find(self, token: str) -> Token | None:
        """Return what a token allows; None where it is unknown or has ended; raise `StoreError` without Redis."""
        digest = _digest(token)
        (reply,) = await self._client.get([shard_of(digest)], [self._keys.token(digest)])
        if isinstance(reply, Exception):
            raise unavailable(reply)
        return None if reply is None else _decoder.decode(reply)


def token_of(headers: Iterable[tuple[bytes, bytes]], query: bytes) -> tuple[str | None, bytes]:
    """Return the token of a request, and its query string without it.

    `Authorization: Bearer TOKEN` goes first. `?token=TOKEN` is for `EventSource`, which cannot send headers.

    Args:
        headers: of the request, names in lower case as ASGI has them.
        query: the query string.
    """
    for name, value in headers:
        if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            sent = value[len(_BEARER) :].strip().decode("latin-1")
            return (sent, query) if sent.startswith(_PREFIX) else (None, query)
    if _PARAMETER not in query:
        return None, query
    pairs = parse_qsl(query, keep_blank_values=True)
    sent_by_query = [value for name, value in pairs if name == _PARAMETER]
    if not sent_by_query:
        return None, query
    kept = urlencode([pair for pair in pairs if pair[0] != _PARAMETER]).encode()
    return sent_by_query[0].decode("latin-1"), kept


def _digest(token: str) -> str:
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()
