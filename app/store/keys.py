"""The keys of a session in Redis.

    wb:{<shard>}:s:<session id>   string       its record
    wb:{<shard>}:h:<session id>   list         its history
    wb:{<shard>}:board            sorted set   open sessions of the shard by probability
    wb:{<shard>}:seen             sorted set   all sessions of the shard by time of last commit, in ms
    wb:{<shard>}:closed           stream       closed sessions in their stored form, until a replica publishes them
    wb:{<shard>}:outcomes         stream       closed sessions as JSON, for collectors
    wb:{<shard>}:closer           string       the replica that sweeps the shard now
    wb:{00}:trust:<model>:<n>     hash         counts of a model's answers and their outcomes, in time bucket n
    wb:{00}:drift:<model>:<n>     hash         counts of a model's inputs in closed sessions, in time bucket n
    wb:{00}:counted:<token>       string       marks counts that were added already
    wb:{<shard>}:probe:<token>:... five kinds    keys of one check of readiness, with a life of seconds
    wb:rate:{<shard>}:<limit>:<name>  hash     requests of API keys in a sliding window, see `rate_limit.lua`

The braces make the shard a Redis Cluster hash tag: all keys of a shard are in one slot, so one script may use them
together.

A commit writes the first four keys. A delete erases the session from these and from the streams. Both are atomic. A
purchase removes the session from the board and leaves it in `seen`.

The times in `seen` are of Redis' clock, which also ends sessions: a session has ended when the idle time has passed
since its time in `seen`. Then its record has expired, and the next event starts a new session. The history of an open
session stays for a grace time longer, in which the sweeper writes the session to `closed` (`app.outcomes`). The history
goes with that, with a reuse of the id, or with the end of the grace time.

An ended session stays in the two sorted sets until it is swept, so a reader of the board must check `seen`. Everything
expires: if no replica runs for the whole grace time, the outcomes of the sessions that ended meanwhile are lost. No
operation scans the keyspace.
"""

from collections.abc import Sequence
from typing import Final
from zlib import crc32

# Must never change: with another number, live sessions would not be found.
SHARDS = 256
# The shard of counts over all shards; the choice is arbitrary.
COUNTS_SHARD = 0
_PREFIXES: Final = tuple(f"wb:{{{shard:02x}}}:" for shard in range(SHARDS))
_OF_SHARD: Final = tuple((f"{prefix}board", f"{prefix}seen", f"{prefix}closed") for prefix in _PREFIXES)


def shard_of(session_id: str) -> int:
    """Return the shard, 0 to 255, of a session: CRC-32 of its UTF-8 bytes, modulo 256."""
    return crc32(session_id.encode()) % SHARDS


def record_key(session_id: str) -> str:
    """Return the key of a session's record, a string."""
    return f"{_PREFIXES[shard_of(session_id)]}s:{session_id}"


def history_key(session_id: str) -> str:
    """Return the key of a session's history, a list."""
    return f"{_PREFIXES[shard_of(session_id)]}h:{session_id}"


def record_keys(shards: Sequence[int], session_ids: Sequence[str]) -> list[str]:
    """Return the keys of sessions' records, given the shard of each, so that a caller computes the shards once."""
    return [f"{_PREFIXES[shard]}s:{session_id}" for shard, session_id in zip(shards, session_ids, strict=True)]


def keys_of(shard: int, session_id: str) -> tuple[str, str, str, str, str]:
    """Return all keys that a commit of a session of this shard touches: board, seen, closed, record, history."""
    prefix = _PREFIXES[shard]
    return *_OF_SHARD[shard], f"{prefix}s:{session_id}", f"{prefix}h:{session_id}"


def board_key(shard: int) -> str:
    """Return the key of a shard's open sessions by probability, a sorted set."""
    return f"{_PREFIXES[shard]}board"


def seen_key(shard: int) -> str:
    """Return the key of a shard's sessions by the time of their last commit, a sorted set."""
    return f"{_PREFIXES[shard]}seen"


def closed_key(shard: int) -> str:
    """Return the key of a shard's closed sessions that are not published yet, a stream."""
    return f"{_PREFIXES[shard]}closed"


def outcomes_key(shard: int) -> str:
    """Return the key of a shard's closed sessions as JSON, a stream."""
    return f"{_PREFIXES[shard]}outcomes"


def closer_key(shard: int) -> str:
    """Return the key of the replica that sweeps a shard now, a string."""
    return f"{_PREFIXES[shard]}closer"


def trust_key(model: str, bucket: int) -> str:
    """Return the key of the counts of a model's answers in a time bucket, a hash."""
    return f"{_PREFIXES[COUNTS_SHARD]}trust:{model}:{bucket}"


def drift_key(model: str, bucket: int) -> str:
    """Return the key of the counts of a model's inputs in a time bucket, a hash."""
    return f"{_PREFIXES[COUNTS_SHARD]}drift:{model}:{bucket}"


def counted_key(token: str) -> str:
    """Return the key that marks counts as added, a string."""
    return f"{_PREFIXES[COUNTS_SHARD]}counted:{token}"


def probe_keys(shard: int, token: str) -> tuple[str, str, str, str, str]:
    """Return keys for a commit that only checks that commits work: board, seen, closed, record, history."""
    prefix = f"{_PREFIXES[shard]}probe:{token}:"
    return f"{prefix}board", f"{prefix}seen", f"{prefix}closed", f"{prefix}s", f"{prefix}h"


def rate_key(name: str, limit: int) -> str:
    """Return the key of the requests of API keys of a name, given their limit per window; a hash."""
    return f"wb:rate:{{{shard_of(name):02x}}}:{limit}:{name}"
