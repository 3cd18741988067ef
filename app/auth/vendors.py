"""How vendors say who they are, beside the headers of API keys.

All can send a header, so an API key in `Authorization: Bearer` or `X-API-Key` is the usual way. Some cannot, or should
not have to: `Authorization: Basic` has the key as its password; Google Analytics' `api_secret` is a key in the address;
Segment signs its requests with a shared secret.
"""

import base64
import binascii
import hmac
from collections.abc import Callable, Iterable, Sequence
from typing import Final
from urllib.parse import parse_qsl, urlencode

from starlette.types import Scope

from app.auth.keys import ApiKey
from app.auth.scopes import INGEST_PATH
from app.errors import UnauthorizedError

CHECK_SIGNATURE: Final = "willbuy.check_signature"
"""Entry of the ASGI scope of a request that has a signature in place of a key: takes the texts that may be signed, and
raises `UnauthorizedError` unless one is. Its route must call it."""

Headers = Iterable[tuple[bytes, bytes]]

_SIGNED_PATH: Final = f"{INGEST_PATH}segment"
_SECRET_PATH: Final = f"{INGEST_PATH}ga4"
_SECRET: Final = b"api_secret"
_BASIC: Final = b"basic "
_KEY_HEADERS: Final = frozenset({b"authorization", b"x-api-key"})


def key_headers(path: str, headers: Headers, query: bytes) -> tuple[Headers, bytes]:
    """Return the headers with the key that a vendor sent in another way, and the query string without the key.

    Args:
        path: of the request.
        headers: of the request, names in lower case as ASGI has them.
        query: the query string.
    """
    if not path.startswith(INGEST_PATH):
        return headers, query
    sent: bytes | None = None
    if path == _SECRET_PATH and _SECRET in query:
        pairs = parse_qsl(query, keep_blank_values=True)
        sent = next((value for name, value in pairs if name == _SECRET), None)
        query = urlencode([pair for pair in pairs if pair[0] != _SECRET]).encode()
    known = dict(headers)
    if sent is None and known.get(b"authorization", b"")[: len(_BASIC)].lower() == _BASIC:
        sent = _password(known[b"authorization"][len(_BASIC) :])
        known.pop(b"authorization")
    if sent is None or not _KEY_HEADERS.isdisjoint(known):
        return headers, query
    return [*known.items(), (b"x-api-key", sent)], query


def signature_of(path: str, headers: Headers) -> bytes | None:
    """Return the signature of a request that Segment signed and that has no key; None: the request needs a key."""
    known = dict(headers)
    sent = known.get(b"x-signature")
    if path != _SIGNED_PATH or sent is None or not _KEY_HEADERS.isdisjoint(known):
        return None
    return sent.strip().lower()


def signer_of(signature: bytes, texts: Sequence[bytes], keys: Sequence[ApiKey]) -> ApiKey:
    """Return the key whose shared secret signed one of the texts; raise `UnauthorizedError` where none did.

    The signature is the HMAC-SHA1 of a text, in hexadecimal. Every one is compared, each in constant time.

    Args:
        signature: as it was sent.
        texts: the body, and the first event of a list, which Segment signs alone.
        keys: those that have a secret.
    """
    found: ApiKey | None = None
    for key in keys:
        for text in texts:
            expected = hmac.digest((key.segment_secret or "").encode(), text, "sha1").hex().encode()
            if hmac.compare_digest(expected, signature):
                found = key
    if found is None:
        raise UnauthorizedError("The signature is not of this body and of a secret that the service knows.")
    return found


def check_signature(scope: Scope, texts: Sequence[bytes]) -> None:
    """Check the signature of a request that has no key; raise `UnauthorizedError` for a wrong one.

    Args:
        scope: of the request.
        texts: the texts that may have been signed.
    """
    check: Callable[[Sequence[bytes]], None] | None = scope.get(CHECK_SIGNATURE)
    if check is not None:
        check(texts)


def _password(credentials: bytes) -> bytes | None:
    try:
        return base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return None
