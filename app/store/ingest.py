"""What events of vendors need in Redis: the sessions of visitors, and the last records that were rejected.

wb:{<shard>}:visitor:<visitor id>  string  the visitor's last sessions, see `assign.lua`; the shard is the visitor's
wb:{00}:rejects                    stream  rejected records of vendors as JSON, the last hundred, for a day
"""

from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec

from app.store.keys import COUNTS_SHARD, Keys, shard_of
from app.store.redis.connection import Command, RedisClient
from app.store.redis.scripts import ScriptRunner, load_script, unavailable
from app.store.redis.server import RespArg

MOST_REJECTS: Final = 100
_REJECTS_KEPT_MS: Final = 86_400_000
_MOST_SESSIONS: Final = 8


class Reject(msgspec.Struct, frozen=True):
    """A record that could not become an event.

    Attributes:
        vendor: whose.
        rejected_ms: the server's clock.
        code: of the problem that a request of this event would have got.
        detail: what is wrong.
        record: the beginning of the record, as JSON.
    """

    vendor: str
    rejected_ms: int
    code: str
    detail: str
    record: str


_encode: Final = msgspec.json.Encoder().encode
_decoder: Final = msgspec.json.Decoder(Reject)


class IngestStore(Protocol):
    """Sessions of visitors, and rejected records. Failed calls raise `StoreError`."""

    async def assign(self, times: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
        """Return the session of each event, given the times of events, ms, by visitor; those of a visitor in order.

        Events whose times are at most the idle time apart have one session, and the same event always the same one.
        """
        ...

    async def add_rejects(self, rejects: Sequence[Reject]) -> None:
        """Keep some rejected records, and drop the oldest for them."""
        ...

    async def rejects(self, limit: int) -> list[Reject]:
        """Return the last rejected records, latest first."""
        ...


class RedisIngest:
    """An `IngestStore` on Redis.

    Args:
        client: sends commands.
        scripts: runs scripts.
        keys: the keys of this service.
        idle_ms: idle time after which a session ends.
        kept_ms: how long a visitor is remembered after the last event.
    """

    def __init__(self, client: RedisClient, scripts: ScriptRunner, *, keys: Keys, idle_ms: int, kept_ms: int) -> None:
        self._client = client
        self._scripts = scripts
        self._keys = keys
        self._idle_ms = idle_ms
        self._kept_ms = kept_ms
        self._script = load_script("assign.lua")

    async def assign(self, times: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
        """See `IngestStore.assign`."""
        limits = (self._idle_ms, self._kept_ms, _MOST_SESSIONS)
        calls: list[tuple[int, Sequence[RespArg]]] = [
            (shard_of(one), (1, self._keys.visitor(one), *limits, *events)) for one, events in times.items()
        ]
        replies = await self._scripts.run("assign", self._script, calls)
        found: dict[str, list[str]] = {}
        for visitor_id, starts in zip(times, replies, strict=True):
            if isinstance(starts, Exception):
                raise unavailable(starts)
            found[visitor_id] = [session_of(visitor_id, int(start)) for start in starts]
        return found

    async def add_rejects(self, rejects: Sequence[Reject]) -> None:
        """See `IngestStore.add_rejects`."""
        key = self._keys.rejects()
        arguments = [("XADD", key, "MAXLEN", MOST_REJECTS, "*", "v", _encode(reject)) for reject in rejects]
        commands = [Command(COUNTS_SHARD, one) for one in (*arguments, ("PEXPIRE", key, _REJECTS_KEPT_MS))]
        for reply in await self._client.execute(commands):
            if isinstance(reply, Exception):
                raise unavailable(reply)

    async def rejects(self, limit: int) -> list[Reject]:
        """See `IngestStore.rejects`."""
        command = Command(COUNTS_SHARD, ("XREVRANGE", self._keys.rejects(), "+", "-", "COUNT", limit))
        (reply,) = await self._client.execute([command])
        if isinstance(reply, Exception):
            raise unavailable(reply)
        return [_decoder.decode(fields[1]) for _, fields in reply]


def session_of(visitor_id: str, start_ms: int) -> str:
    """Return the id of a visitor's session that began at a time."""
    return f"{visitor_id}-{start_ms}"
