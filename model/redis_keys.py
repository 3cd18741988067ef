"""The prefix of all keys in Redis, and the streams of ended sessions: what the service and `willbuy collect` share."""

import re
from typing import Final

DEFAULT_KEY_PREFIX: Final = "wb:"
# Must never change: with another number, live sessions would not be found.
SHARDS: Final = 256
# Braces would change the hash tag, which keeps a shard in one slot; the others have a meaning in patterns of keys.
_PREFIX: Final = re.compile(r"[!-~]{1,64}", re.ASCII)
_REFUSED: Final = frozenset(r"{}*?[]\^")


def check_key_prefix(prefix: str) -> str:
    """Return the prefix; raise `ValueError` if keys may not begin with it."""
    if _PREFIX.fullmatch(prefix) is None or _REFUSED & set(prefix):
        raise ValueError(r"expected 1 to 64 printable ASCII characters, without blanks and without { } * ? [ ] \ ^")
    return prefix


def shard_prefix(prefix: str, shard: int) -> str:
    """Return the beginning of a shard's keys. The braces make the shard a hash tag of Redis Cluster."""
    return f"{prefix}{{{shard:02x}}}:"


def outcomes_key(prefix: str, shard: int) -> str:
    """Return the key of a shard's closed sessions as JSON, a stream."""
    return f"{shard_prefix(prefix, shard)}outcomes"
