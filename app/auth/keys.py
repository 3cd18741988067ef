"""API keys: how to make one, its stored entry, and the file of entries.

A key is 256 random bits, and its entry has the plain SHA-256. A slow, salted hash protects passwords that can be
guessed. A random key cannot be guessed, and the check runs for every event. The key itself is stored nowhere.

    [[keys]]
    name = "shop"                     # in the log, and for the rate limit; several keys may share one
    scopes = ["events:write"]
    sha256 = "64 hexadecimal digits"
    events_per_s = 500                # optional
    segment_secret = "..."            # optional: what Segment signs its requests with, see docs/vendors.md
"""

import hashlib
import secrets
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from app.auth.scopes import Scope

MOST_KEYS: Final = 64
# Recognised by people and secret scanners.
_PREFIX: Final = "wb_"
_RANDOM_BYTES: Final = 32

KeyName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
_Digest = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-fA-F]{64}$")]
_Secret = Annotated[str, msgspec.Meta(pattern=r"^[ -~]{8,256}$")]
_Rate = Annotated[float, msgspec.Meta(gt=0, le=1_000_000)]


class AccessError(ValueError):
    """The settings do not name the accepted keys; the message is one line that says why."""


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The stored entry of a key.

    Attributes:
        name: of its user.
        scopes: its permissions.
        sha256: SHA-256 of the key, in hexadecimal.
        events_per_s: its rate limit, in events and other requests a second; None: the limit of the settings.
        segment_secret: shared secret with which Segment signs its requests; the signature needs the text itself.
    """

    name: KeyName
    scopes: Annotated[list[Scope], msgspec.Meta(min_length=1)]
    sha256: _Digest
    events_per_s: _Rate | None = None
    segment_secret: _Secret | None = None

    def __repr__(self) -> str:
        """Return a text without the secret."""
        return f"ApiKey({self.name!r})"

    @property
    def digest(self) -> bytes:
        """The SHA-256 as bytes."""
        return bytes.fromhex(self.sha256)


def new_key() -> str:
    """Return a new random key."""
    return _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest_of(key: bytes) -> bytes:
    """Return the SHA-256 of a key."""
    return hashlib.sha256(key).digest()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """Return the keys of a TOML file; raise `AccessError` when it cannot be read or has none."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        raise AccessError(f"{path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise AccessError(f"{path}: expected UTF-8") from exc
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise AccessError(f"{path}: expected TOML: {exc}") from exc
    strangers = sorted(set(table) - {"keys"})
    if strangers or "keys" not in table:
        raise AccessError(f"{path}: expected [[keys]] entries and nothing else{_named(strangers)}")
    return _checked(table["keys"], where=str(path))


def all_different(keys: Sequence[ApiKey]) -> tuple[ApiKey, ...]:
    """Return the keys; raise `AccessError` when there are too many, or one is there twice."""
    if len(keys) > MOST_KEYS:
        # Each request is compared with all keys.
        raise AccessError(f"{len(keys)} API keys: expected at most {MOST_KEYS}")
    digests: set[str] = set()
    for key in keys:
        if key.sha256.lower() in digests:
            raise AccessError(f"the API key of {key.name!r} is there twice")
        digests.add(key.sha256.lower())
    return tuple(keys)


def _checked(entries: Any, *, where: str) -> tuple[ApiKey, ...]:  # noqa: ANN401 - whatever the text holds
    try:
        keys = msgspec.convert(entries, list[ApiKey])
    except msgspec.ValidationError as exc:
        # The messages name the place and the expected type. They repeat unknown field names, and no values.
        raise AccessError(f"{where}: {exc}; scopes are {', '.join(Scope)}") from exc
    if not keys:
        raise AccessError(f"{where}: expected at least one key")
    return all_different(keys)


def _named(strangers: Sequence[str]) -> str:
    return f", not {', '.join(strangers[:3])!r}" if strangers else ""
