"""The accepted API keys, and the check of a request's key against them."""

import asyncio
import hmac
from collections.abc import Iterable, Sequence
from typing import Final

from app.auth.keys import ApiKey, digest_of
from app.auth.scopes import Scope
from app.errors import ForbiddenError, UnauthorizedError

_BEARER: Final = b"bearer "


class Access:
    """The accepted keys.

    Args:
        keys: the keys; None: open access, everybody may do everything.

    Attributes:
        is_open: whether access is open.
        signers: the keys whose shared secret signs requests of events.
        changed: an event that the next `replace` sets; each `replace` puts a new event here.
    """

    def __init__(self, keys: Sequence[ApiKey] | None) -> None:
        self.is_open = keys is None
        self.changed = asyncio.Event()
        self._keys: tuple[tuple[bytes, ApiKey], ...] = ()
        self.signers: tuple[ApiKey, ...] = ()
        self.replace(keys or ())

    def replace(self, keys: Sequence[ApiKey]) -> bool:
        """Accept these keys from now on, and no others; return whether they differ from the keys before."""
        before = self._keys
        self._keys = tuple((key.digest, key) for key in keys)
        self.signers = tuple(key for key in keys if key.segment_secret and Scope.EVENTS_WRITE in key.scopes)
        self.changed.set()
        self.changed = asyncio.Event()
        return self._keys != before

    def knows(self, key: ApiKey) -> bool:
        """Return whether this key is still accepted, with the same scopes and limit."""
        return any(known == key for _, known in self._keys)

    def holder(self, headers: Iterable[tuple[bytes, bytes]]) -> ApiKey:
        """Return the key of a request, whatever its scopes; raise `UnauthorizedError` without an accepted one.

        The request's key is compared with every accepted key, each in constant time
        (https://docs.python.org/3/library/hmac.html#hmac.compare_digest).

        Args:
            headers: of the request, names in lower case as ASGI has them.
        """
        digest = digest_of(_sent_key(headers))
        found: ApiKey | None = None
        for known, key in self._keys:
            if hmac.compare_digest(known, digest):
                found = key
        if found is None:
            raise UnauthorizedError("The service does not know this API key.", came_with_key=True)
        return found

    def of_digest(self, sha256: str) -> ApiKey | None:
        """Return the accepted key of a SHA-256 in hexadecimal; None where there is none any more."""
        return next((key for _, key in self._keys if key.sha256 == sha256), None)

    def check(self, headers: Iterable[tuple[bytes, bytes]], needed: Scope) -> ApiKey:
        """Return the key of a request, as `holder` does; raise `ForbiddenError` unless the key has the scope."""
        key = self.holder(headers)
        if needed not in key.scopes:
            raise ForbiddenError(f"This needs a key with the scope `{needed}`.", needed)
        return key


def _sent_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the key of `Authorization: Bearer KEY`, else of `X-API-Key`; other schemes are ignored."""
    other: bytes | None = None
    for name, value in headers:
        if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip()
        if name == b"x-api-key":
            other = value.strip()
    if other is None:
        raise UnauthorizedError("Send an API key: `Authorization: Bearer KEY`, or `X-API-Key: KEY`.")
    return other
