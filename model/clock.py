"""The wall clock. All times are milliseconds since 1970 in UTC."""

import time
from datetime import UTC, datetime


def now_ms() -> int:
    """Return the time."""
    return time.time_ns() // 1_000_000


def utc(timestamp_ms: int) -> datetime:
    """Return a time as a date."""
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC)
