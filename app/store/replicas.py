"""The reports of all replicas, so that each replica can answer for all.

Their two keys (`app.store.keys`) expire when no replica reports. A report is valid for a few seconds; later reports
remove expired ones.
"""

from typing import Final, Protocol

from app.store.keys import COUNTS_SHARD, Keys
from app.store.redis.scripts import ScriptRunner, load_script, unavailable
from app.store.redis.server import RespArg

# Bounds the answer; no shop needs so many processes.
_MOST_REPLICAS: Final = 1024


class ReplicaStore(Protocol):
    """The reports of all replicas. Failed calls raise `StoreError`."""

    async def report(self, name: str, report: bytes) -> None:
        """Replace a replica's report; an empty report removes the replica."""
        ...

    async def reports(self) -> dict[str, bytes]:
        """Return the last report of each live replica, by name."""
        ...


class RedisReplicas:
    """Implements `ReplicaStore` on Redis.

    Args:
        scripts: runs the Lua scripts.
        keys: the keys of this service.
        ttl_s: lifetime of a report.
    """

    def __init__(self, scripts: ScriptRunner, *, keys: Keys, ttl_s: float) -> None:
        self._scripts = scripts
        self._keys: tuple[RespArg, ...] = (2, *keys.replicas())
        self._ttl_ms = round(ttl_s * 1000)
        self._report_script = load_script("report.lua")
        self._reports_script = load_script("reports.lua")

    async def report(self, name: str, report: bytes) -> None:
        call = (COUNTS_SHARD, (*self._keys, self._ttl_ms, name, report))
        (reply,) = await self._scripts.run("report", self._report_script, [call])
        if isinstance(reply, Exception):
            raise unavailable(reply)

    async def reports(self) -> dict[str, bytes]:
        call = (COUNTS_SHARD, (*self._keys, self._ttl_ms, _MOST_REPLICAS))
        (reply,) = await self._scripts.run("reports", self._reports_script, [call])
        if isinstance(reply, Exception):
            raise unavailable(reply)
        return {name.decode(): report for name, report in zip(reply[::2], reply[1::2], strict=True)}
