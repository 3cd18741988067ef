"""Whether the holder of a request may do what it asks."""

import asyncio
import hmac
from collections.abc import Iterable, Sequence
from typing import Final

from app.auth.keys import ApiKey, digest_of
from app.auth.scopes import Scope
from app.errors import ForbiddenError, UnauthorizedError

_BEARER: Final = b"bearer "


class Access:
    """The keys that are good now.

    Args:
        keys: them; None lets everybody do everything.

    Attributes:
        is_open: whether everybody may do everything.
        changed: set when other keys are good; another event is here by then.
    """

    def __init__(self, keys: Sequence[ApiKey] | None) -> None:
        self.is_open = keys is None
        self.changed = asyncio.Event()
        self._keys: tuple[tuple[bytes, ApiKey], ...] = ()
        self.replace(keys or ())

    def replace(self, keys: Sequence[ApiKey]) -> bool:
        """Let these keys be good from now on, and no others; return whether they differ from those before."""
        before = self._keys
        self._keys = tuple((key.digest, key) for key in keys)
        self.changed.set()
        self.changed = asyncio.Event()
        return self._keys != before

    def knows(self, key: ApiKey) -> bool:
        """Return whether this very key is still good, and for the same."""
        return any(known == key for _, known in self._keys)

    def holder(self, headers: Iterable[tuple[bytes, bytes]]) -> ApiKey:
        """Return the key that a request came with, whatever it allows; raise `UnauthorizedError` without a good one.

        Every key is compared, whichever it is, and each in a time that does not depend on how much of it is right
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

    def check(self, headers: Iterable[tuple[bytes, bytes]], needed: Scope) -> ApiKey:
        """Return the key that a request came with, as `holder` does; raise `ForbiddenError` unless it has the scope."""
        key = self.holder(headers)
        if needed not in key.scopes:
            raise ForbiddenError(f"This needs a key with the scope `{needed}`.", needed)
        return key


def _sent_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the key of `Authorization: Bearer KEY`, else of `X-API-Key`; other authorization is passed over."""
    other: bytes | None = None
    for name, value in headers:
        if name == b"authorization" and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip()
        if name == b"x-api-key":
            other = value.strip()
    if other is None:
        raise UnauthorizedError("Send an API key: `Authorization: Bearer KEY`, or `X-API-Key: KEY`.")
    return other
