"""Where the replicas put down how they are doing, so that any of them can answer for all.

    wb:{00}:replicas  sorted set   names of the replicas by the time of their last report, Redis' clock, in ms
    wb:{00}:reports   hash         the last report of each

Both vanish when nobody reports any more. A report counts for a few seconds; later reports take it out.
"""

from typing import Final, Protocol

from app.store.redis.scripts import ScriptRunner, load_script, unavailable
from app.store.redis.server import RespArg

_SHARD: Final = 0
_KEYS: Final[tuple[RespArg, ...]] = (2, "wb:{00}:replicas", "wb:{00}:reports")
# So many processes of one shop would be a mistake; the answer to it stays bounded.
_MOST_REPLICAS: Final = 1024


class ReplicaStore(Protocol):
    """The reports of all replicas. What cannot be read or written raises `StoreError`."""

    async def report(self, name: str, report: bytes) -> None:
        """Put down a replica's report in place of its last one; an empty one takes the replica out."""
        ...

    async def reports(self) -> dict[str, bytes]:
        """Return the last report of each replica that is alive, by name."""
        ...


class RedisReplicas:
    """Reports on Redis (see `ReplicaStore`).

    Args:
        scripts: runs scripts there.
        ttl_s: for how long a report counts.
    """

    def __init__(self, scripts: ScriptRunner, *, ttl_s: float) -> None:
        self._scripts = scripts
        self._ttl_ms = round(ttl_s * 1000)
        self._report_script = load_script("report.lua")
        self._reports_script = load_script("reports.lua")

    async def report(self, name: str, report: bytes) -> None:
        """See `ReplicaStore.report`."""
        call = (_SHARD, (*_KEYS, self._ttl_ms, name, report))
        (reply,) = await self._scripts.run("report", self._report_script, [call])
        if isinstance(reply, Exception):
            raise unavailable(reply)

    async def reports(self) -> dict[str, bytes]:
        """See `ReplicaStore.reports`."""
        call = (_SHARD, (*_KEYS, self._ttl_ms, _MOST_REPLICAS))
        (reply,) = await self._scripts.run("reports", self._reports_script, [call])
        if isinstance(reply, Exception):
            raise unavailable(reply)
        return {name.decode(): report for name, report in zip(reply[::2], reply[1::2], strict=True)}
