"""Where a session lives in Redis.

    wb:{<shard>}:s:<session id>   string       its record
    wb:{<shard>}:h:<session id>   list         its history
    wb:{<shard>}:board            sorted set   open sessions of the shard by probability
    wb:{<shard>}:seen             sorted set   all sessions of the shard by the time of their last commit, in ms
    wb:{<shard>}:closed           stream       sessions that were closed, as they lay in Redis; a replica takes them on
    wb:{<shard>}:outcomes         stream       the same sessions as JSON, for whoever collects them
    wb:{<shard>}:closer           string       which replica closes the shard's sessions for now
    wb:{00}:trust:<model>:<n>     hash         counts of a model's answers and their outcomes, in time bucket n
    wb:{00}:drift:<model>:<n>     hash         counts of the inputs of closed sessions as the model sees them, likewise
    wb:{00}:counted:<token>       string       which counts were added already
    wb:rate:{<shard>}:<limit>:<name>  hash     requests of API keys in a sliding window, see `rate_limit.lua`

The shard stands in braces, which makes it a Redis Cluster hash tag: all keys of a shard are in one slot, so one script
may touch them together.

A commit writes the first four, a delete erases the session from all of them and from the streams, each atomically. A
purchase takes the session off the board and leaves it in `seen`. The times in `seen` are of Redis' clock, which also
ends the sessions: a session is over once its time in `seen` and the idle time have passed. Its record is then gone, so
that its next event starts a new session. The history of a session that was open stays for a grace time, which is what
the closer needs to write it to `closed` (`app.outcomes`); then, or when the id is used again, it goes. Until the closer
comes, an ended session stands in the two sorted sets, so a reader of the board must look at `seen`. Everything expires:
if no replica lived for the whole grace time, what ended meanwhile is gone without its outcome. Nothing ever scans.
"""

from collections.abc import Sequence
from typing import Final
from zlib import crc32

# Fixed for all time: another number would put live sessions where nobody looks for them.
SHARDS = 256
# Counts over all shards have to be somewhere; any shard would do.
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
    """Return the keys of sessions' records, given the shard of each: whoever needs that too works it out once."""
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
    """Return the key of a shard's closed sessions that no replica has taken on yet, a stream."""
    return f"{_PREFIXES[shard]}closed"


def outcomes_key(shard: int) -> str:
    """Return the key of a shard's closed sessions as JSON, a stream."""
    return f"{_PREFIXES[shard]}outcomes"


def closer_key(shard: int) -> str:
    """Return the key of the replica that closes a shard's sessions for now, a string."""
    return f"{_PREFIXES[shard]}closer"


def trust_key(model: str, bucket: int) -> str:
    """Return the key of the counts of a model's answers in a time bucket, a hash."""
    return f"{_PREFIXES[COUNTS_SHARD]}trust:{model}:{bucket}"


def drift_key(model: str, bucket: int) -> str:
    """Return the key of the counts of a model's inputs in a time bucket, a hash."""
    return f"{_PREFIXES[COUNTS_SHARD]}drift:{model}:{bucket}"


def counted_key(token: str) -> str:
    """Return the key that says that some counts were added already, a string."""
    return f"{_PREFIXES[COUNTS_SHARD]}counted:{token}"


def rate_key(name: str, limit: int) -> str:
    """Return the key of the requests of API keys of a name, given their limit per window; a hash."""
    return f"wb:rate:{{{shard_of(name):02x}}}:{limit}:{name}"
