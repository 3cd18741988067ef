"""Where a session lives in Redis.

    wb:{<shard>}:s:<session id>   string       its record
    wb:{<shard>}:h:<session id>   list         its history
    wb:{<shard>}:board            sorted set   open sessions of the shard by probability
    wb:{<shard>}:seen             sorted set   all sessions of the shard by the time of their last commit, in ms

The shard stands in braces, which makes it a Redis Cluster hash tag: all keys of a shard are in one slot, so one script
may touch them together.

A commit writes all four, a delete erases the session from all four, each atomically. A purchase takes the session off
the board and leaves it in `seen`. The times in `seen` are of Redis' clock, which also ends the sessions: a session is
over once its time in `seen` and the idle time have passed. Its record and history are then gone; what is left of it in
the two sorted sets is swept by the shard's next commits, oldest first, each commit of n sessions sweeping up to n + 16,
so that what is left shrinks under any load. Until then a reader of the board must look at `seen`. A shard without any
commit for the idle time loses both sorted sets. Nothing ever scans.
"""

from zlib import crc32

# Fixed for all time: another number would put live sessions where nobody looks for them.
SHARDS = 256


def shard_of(session_id: str) -> int:
    """Return the shard, 0 to 255, of a session: CRC-32 of its UTF-8 bytes, modulo 256."""
    return crc32(session_id.encode()) % SHARDS


def record_key(session_id: str) -> str:
    """Return the key of a session's record, a string."""
    return f"{_prefix(shard_of(session_id))}s:{session_id}"


def history_key(session_id: str) -> str:
    """Return the key of a session's history, a list."""
    return f"{_prefix(shard_of(session_id))}h:{session_id}"


def board_key(shard: int) -> str:
    """Return the key of a shard's open sessions by probability, a sorted set."""
    return f"{_prefix(shard)}board"


def seen_key(shard: int) -> str:
    """Return the key of a shard's sessions by the time of their last commit, a sorted set."""
    return f"{_prefix(shard)}seen"


def _prefix(shard: int) -> str:
    return f"wb:{{{shard:02x}}}:"
