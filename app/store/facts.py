"""Version, memory, persistence and clock of Redis servers, for `willbuy doctor`."""

import time
from dataclasses import dataclass
from typing import Final

from app.store.redis.connection import Command, RedisClient

OLDEST_VERSION: Final = (6, 2)


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """One server.

    Attributes:
        name: such as `Valkey 8.1.4`.
        version: of Redis, whose protocol a Valkey of version 7.2 and later shares: 7, 2, ...
        used_bytes: memory in use.
        limit_bytes: `maxmemory`; None: there is none.
        machine_bytes: memory of the server's machine; 0: not known.
        appends: whether it writes an append-only file.
        snapshots: whether it writes snapshots by itself; None: it does not say.
        write_failed: whether its last write to disk failed.
        ahead_s: how far its clock is ahead of this machine's, in seconds.
    """

    name: str
    version: tuple[int, ...]
    used_bytes: int
    limit_bytes: int | None
    machine_bytes: int
    appends: bool
    snapshots: bool | None
    write_failed: bool
    ahead_s: float


async def read_facts(client: RedisClient) -> list[ServerFacts]:
    """Return the facts of each server that the service writes to; those that refuse INFO or TIME are left out."""
    facts = []
    for shard in await client.server_shards():
        began_s = time.time()
        info, clock = await client.execute([Command(shard, ("INFO",)), Command(shard, ("TIME",))])
        half_s = (time.time() + began_s) / 2
        (saved,) = await client.execute([Command(shard, ("CONFIG", "GET", "save"))])
        if isinstance(info, Exception) or isinstance(clock, Exception):
            continue
        # Managed servers and narrow users have no CONFIG.
        is_told = not isinstance(saved, Exception) and len(saved) > 1
        snapshots = bool(saved[1]) if is_told else None
        facts.append(_facts(info.decode(), int(clock[0]) + int(clock[1]) / 1e6 - half_s, snapshots=snapshots))
    return facts


def _facts(info: str, ahead_s: float, *, snapshots: bool | None) -> ServerFacts:
    lines = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    valkey = lines.get("valkey_version")
    version = lines.get("redis_version", "0")
    return ServerFacts(
        name=f"Valkey {valkey}" if valkey else f"Redis {version}",
        version=tuple(int(part) for part in version.split(".") if part.isdigit()),
        used_bytes=int(lines.get("used_memory", 0)),
        limit_bytes=int(lines.get("maxmemory", 0)) or None,
        machine_bytes=int(lines.get("total_system_memory", 0)),
        appends=lines.get("aof_enabled") == "1",
        snapshots=snapshots,
        write_failed="err" in {lines.get("aof_last_write_status"), lines.get("rdb_last_bgsave_status")},
        ahead_s=ahead_s,
    )
