"""Where a session lives in Redis: `wb:{<shard>}:s:<session id>` and `wb:{<shard>}:h:<session id>`.

The shard stands in braces, which makes it a Redis Cluster hash tag: all keys of a shard are in one slot, so one script
may touch them together.
"""

from zlib import crc32

# Fixed for all time: another number would put live sessions where nobody looks for them.
SHARDS = 256


def shard_of(session_id: str) -> int:
    """Return the shard, 0 to 255, of a session: CRC-32 of its UTF-8 bytes, modulo 256."""
    return crc32(session_id.encode()) % SHARDS


def record_key(session_id: str) -> str:
    """Return the key of a session's record, a string."""
    return f"wb:{{{shard_of(session_id):02x}}}:s:{session_id}"


def history_key(session_id: str) -> str:
    """Return the key of a session's history, a list."""
    return f"wb:{{{shard_of(session_id):02x}}}:h:{session_id}"
